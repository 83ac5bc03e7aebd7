"""How fast a summary is, against the peer and the floor: `python tests/benchmarks/summary_speed.py`.

Each arm runs in a process of its own, by turns, three rounds, and the least of each is shown: CPU seconds of building
and counting (`summarize(builder, spec)`, as users call it), and peak memory above what importing the framework took. A
column has the seconds of the same model in a run of pytest, as its report gives them. The arms are ours; the peer,
`torchinfo` with the model on meta; and the floor, building the model on meta and adding up its parameters. The first
operator on meta makes torch import lazily: every arm has counted a tiny model before its clock starts, and lines below
the table show what the first ones cost. Needs `pip install torchvision timm torchinfo`. Models can be named, and
another number of rounds given: `... --rounds 1 resnet152 "Llama 8B"`.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

ROUNDS = 3
ARMS = ("ours", "torchinfo", "floor")
PROJECT = """
import sys

sys.path.insert(0, {folder!r})
from summary_speed import MODELS, bring_libraries, llama


def tiny():
    import torch

    bring_libraries({name!r})
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))


def decoder():
    return llama(16, 16, 1, 4, 2)


def model():
    return MODELS[{name!r}][0]()
"""
LLAMAS = {  # width, inner width, layers, heads, heads of keys; published params
    "Llama 8B": ((4096, 14336, 32, 32, 8), 8_030_261_248),
    "Llama 70B": ((8192, 28672, 80, 64, 8), 70_553_706_496),
    "Llama 405B": ((16384, 53248, 126, 128, 8), 405_853_388_800),
}
TOKENS, WORDS = 2048, 128_256


def llama(width: int, inner: int, layers: int, heads: int, groups: int) -> Any:
    """A decoder of the shape of Llama 3, rotary positions included."""
    import torch
    from torch import nn
    from torch.nn.functional import scaled_dot_product_attention, silu

    size = width // heads

    def turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat((-second, first), -1) * angles.sin()

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
            self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
            self.k, self.v = (nn.Linear(width, groups * size, bias=False) for _ in range(2))
            self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
            self.down = nn.Linear(inner, width, bias=False)

        def forward(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
            y, (batch, tokens, _) = self.norm1(x), x.shape
            q, k, v = (one(y).view(batch, tokens, -1, size).transpose(1, 2) for one in (self.q, self.k, self.v))
            y = scaled_dot_product_attention(turned(q, angles), turned(k, angles), v, is_causal=True, enable_gqa=True)
            x = x + self.o(y.transpose(1, 2).reshape(batch, tokens, -1))
            y = self.norm2(x)
            return x + self.down(silu(self.gate(y)) * self.up(y))

    class Llama(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(WORDS, width)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, WORDS, bias=False)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embed(ids)
            rates = 500_000.0 ** (torch.arange(0, size, 2, device=ids.device) / -size)
            angles = torch.arange(ids.shape[1], device=ids.device)[:, None] * rates
            angles = torch.cat((angles, angles), -1)
            for block in self.blocks:
                x = block(x, angles)
            return self.head(self.norm(x))

    return Llama()


def linears(count: int) -> Any:
    """A chain of small layers."""
    from torch import nn

    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(count)))


def _vision(name: str, **settings: Any) -> Callable[[], Any]:
    def build() -> Any:
        import torchvision

        return torchvision.models.get_model(name, weights=None, **settings)

    return build


def _timm(name: str) -> Callable[[], Any]:
    def build() -> Any:
        import timm

        return timm.create_model(name)

    return build


MODELS: dict[str, tuple[Callable[[], Any], list[int], str]] = {
    "resnet152": (_vision("resnet152"), [1, 3, 224, 224], "float32"),
    "vit_h_14 at 518": (_vision("vit_h_14", image_size=518), [1, 3, 518, 518], "float32"),
    "convnext_xxlarge": (_timm("convnext_xxlarge"), [1, 3, 256, 256], "float32"),
    **{
        name: ((lambda shape=shape: llama(*shape)), [1, TOKENS], "int64")  # type: ignore[misc]
        for name, (shape, _) in LLAMAS.items()
    },
    "1,000 Linear": (lambda: linears(1_000), [1, 8], "float32"),
    "10,000 Linear": (lambda: linears(10_000), [1, 8], "float32"),
}


def _ours(build: Callable[[], Any], shape: list[int], dtype: str) -> int:
    """What a user calls: the batch and the tokens have names."""
    from pytest_modelbudget import summarize

    dims = {"T": shape[1]} if dtype == "int64" else {}
    spec = ["B", *dims, *shape[1 + len(dims) :]]
    return summarize(build, f"{dtype}[{', '.join(map(str, spec))}]", dims=dims, name="model").params


def _torchinfo(build: Callable[[], Any], shape: list[int], dtype: str) -> int:
    import torch
    import torchinfo

    with torch.device("meta"):
        model = build()
    data = torch.zeros(shape, dtype=getattr(torch, dtype), device="meta")
    return int(torchinfo.summary(model, input_data=data, device="meta", verbose=0).total_params)


def _floor(build: Callable[[], Any], shape: list[int], dtype: str) -> int:
    import torch

    with torch.device("meta"):
        model = build()
    return sum(parameter.numel() for parameter in model.parameters())


def measure(arm: str, name: str) -> dict[str, Any]:
    """In the process of one arm: import, count a tiny model, then the real one."""
    import torch

    run = {"ours": _ours, "torchinfo": _torchinfo, "floor": _floor}[arm]
    build, shape, dtype = MODELS[name]
    bring_libraries(name)
    if arm == "torchinfo":
        import torchinfo  # noqa: F401
    if arm == "ours":
        import pytest_modelbudget.backends.torch  # noqa: F401
    imported = time.process_time()
    for _ in range(2):
        run(lambda: torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)), [1, 8], "float32")
    first = time.process_time() - imported
    if name.startswith("Llama"):
        run(lambda: llama(16, 16, 1, 4, 2), [1, 8], "int64")
    before, begin = _peak(), time.process_time()
    try:
        params = run(build, shape, dtype)
    except Exception as mistake:
        return {"error": f"{type(mistake).__name__}: {mistake}"}
    return {"seconds": time.process_time() - begin, "mb": _peak() - before, "first": first, "params": params}


def bring_libraries(name: str) -> None:
    """Import what builds the model, which is no part of its time."""
    if "vit" in name or "resnet" in name or "convnext" in name:
        with contextlib.suppress(ImportError):
            import timm  # noqa: F401
            import torchvision  # noqa: F401


def in_pytest(name: str) -> dict[str, Any]:
    """Seconds that a run of pytest takes for a tiny model, the first one, and for the real one after a tiny decoder."""
    _, shape, dtype = MODELS[name]
    dims = {"T": shape[1]} if dtype == "int64" else {}
    spec = f"{dtype}[{', '.join(map(str, ['B', *dims, *shape[1 + len(dims) :]]))}]"
    models = {
        "a-tiny": {"build": "speed_project:tiny", "inputs": "float32[B, 8]"},
        "b-decoder": {"build": "speed_project:decoder", "inputs": "int64[B, 8]"},
        "model": {"build": "speed_project:model", "inputs": spec, "dims": dims},
    }
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        text = PROJECT.format(folder=str(Path(__file__).parent), name=name)
        (project / "speed_project.py").write_text(text, encoding="utf-8")
        (project / "modelbudget.yaml").write_text(json.dumps({"version": 1, "models": models}), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--model-budget"]
        subprocess.run(
            [*command, "--model-budget-report=json:report.json"], cwd=folder, capture_output=True, check=False
        )
        report = json.loads((project / "report.json").read_text(encoding="utf-8"))
    seconds = {model["id"].rpartition("::")[2]: model["seconds"] for model in report["models"]}
    return {"seconds": seconds["model"], "first": seconds["a-tiny"]}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measured(arm: str, name: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, "--arm", arm, name], capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"error": done.stderr[-300:]}


def table(names: list[str], rounds: int) -> str:
    """The Markdown table, and the ratios that the bars ask for."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for name in names:
            for arm in ARMS:
                found.setdefault((name, arm), []).append(_measured(arm, name))
            found.setdefault((name, "pytest"), []).append(in_pytest(name))
    text = [
        "| model | here, CPU s | torchinfo | ratio | bare build | ratio | in pytest, s | memory, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    best: dict[str, float] = {}
    for name in names:
        ours, peer, floor = (_least(found[name, arm], "seconds") for arm in ARMS)
        assert ours is not None, found[name, "ours"]
        best[name] = ours
        wanted = LLAMAS[name][1] if name in LLAMAS else found[name, "floor"][0]["params"]
        assert found[name, "ours"][0]["params"] == wanted
        memory = max(one["mb"] for one in found[name, "ours"])
        text.append(
            f"| {name} | {ours:.3f} | {_shown(peer)} | {_shown(peer and ours / peer)} | {_shown(floor)} | "
            f"{_shown(floor and ours / floor)} | {_shown(_least(found[name, 'pytest'], 'seconds'))} | {memory:.0f} |"
        )
    if {"1,000 Linear", "10,000 Linear"} <= best.keys():
        text.append(f"\n1,000 to 10,000 layers: {best['10,000 Linear'] / best['1,000 Linear']:.1f} x the time")
    # torchvision and timm import by themselves what torch would import late: only the models without them show it
    plain = [name for name in names if name.endswith(("B", "Linear"))]
    ours, peer = (_least([one for name in plain for one in found[name, arm]], "first") for arm in ARMS[:2])
    if ours is not None and peer is not None:
        lazy = f"ours {ours:.3f}, torchinfo {peer:.3f} CPU s"
        text.append(f"first two tiny models, with torch's lazy imports: {lazy}")
    first = _least([one for name in names for one in found[name, "pytest"]], "first")
    text.append(
        f"first model of a run of pytest, a tiny one, with the imports of torch and of what counts: {first:.3f} s"
    )
    return "\n".join(text)


def _least(results: list[dict[str, Any]], key: str) -> float | None:
    return min((one[key] for one in results if key in one), default=None)


def _shown(value: float | None) -> str:
    return "fails" if value is None else f"{value:.3f}"


def _known(names: list[str]) -> list[str]:
    if unknown := set(names) - set(MODELS):
        sys.exit(f"there is no model {', '.join(sorted(unknown))}; known are {', '.join(MODELS)}")
    return names or list(MODELS)


if __name__ == "__main__":
    given = sys.argv[1:]
    if given[:1] == ["--arm"]:
        print(json.dumps(measure(*given[1:3])))
    elif given[:1] == ["--rounds"]:
        print(table(_known(given[2:]), int(given[1])))
    else:
        print(table(_known(given), ROUNDS))
