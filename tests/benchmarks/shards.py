"""A zoo in shards against the zoo in one run: `python tests/benchmarks/shards.py --names 60 --shards 20`.

Makes a repository of timm models with snapshots, an obsolete one, a limit that was loosened since the base, limits that
some models and a sum break; checks it once in one run and once in shards, one after the other; compares every report
and the exit code byte for byte, times apart; and tries each part missing, doubled and altered. `--names 0` takes all
that timm has. To run by hand; prints seconds, and ends at the first difference.
Needs `pip install timm`.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from pytest_modelbudget.cli import main as modelbudget  # noqa: E402
from pytest_modelbudget.reports import REPORTS  # noqa: E402
from tests.gitrepo import Repository, repository  # noqa: E402

MANIFEST = """\
defaults: {{budgets: {{params: {limit}}}}}
groups:
  all: {{models: "*", sum: {{params: 10M}}}}
models:
"""
TIMELESS = """\
from types import SimpleNamespace

from pytest_modelbudget.engine import run

run.time = SimpleNamespace(perf_counter=lambda: 0.0)  # reports are compared byte for byte
"""
REPORT_WORDS = [f"{kind}:out/report.{kind}" for kind in REPORTS]


@contextmanager
def timed(text: str) -> Iterator[None]:
    """Say how long something took, for a person and the processors."""
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    yield
    print(f"{text}: {time.perf_counter() - start:.1f} s, {sum(os.times()[:4]) - cpu:.1f} CPU s", flush=True)


def models(names: int) -> Iterator[str]:
    """A line of the manifest for each of so many timm models, spread over all of them."""
    import timm

    listed = timm.list_models()
    step = max(1, len(listed) // names) if names else 1
    for name in listed[::step][: names or None]:
        size = ", ".join(map(str, timm.get_pretrained_cfg(name).input_size))
        yield f'  {name}: {{build: "timm:create_model", args: [{name}], inputs: "float32[B, {size}]"}}\n'


def pytest(folder: Path, *words: str) -> int:
    """`pytest ...` in the project, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no", *words]
    return subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=False).returncode


def merge(*words: str) -> tuple[int, str]:
    """`modelbudget merge ...`: its exit code, and what it said of parts that are no run."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as err:
        code = modelbudget(["merge", *words])
    return code, err.getvalue()


def make(folder: Path, names: int) -> Repository:
    """The project, on a branch that loosened a limit since the base."""
    made = repository(folder)
    lines = "".join(models(names))
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "conftest.py").write_text(TIMELESS)
    (folder / ".gitignore").write_text("out/\nparts/\n")
    (folder / "modelbudget.yaml").write_text(MANIFEST.format(limit="20M") + lines)
    with timed("update, which writes the snapshots"):
        pytest(folder, "--model-budget-update")
    snapshot = next((folder / "__model_budget__").glob("*.yaml"))
    gone = snapshot.with_name("gone.yaml")
    gone.write_text(snapshot.read_text().replace(f"model: {snapshot.stem}\n", "model: gone\n"))
    made.commit("base")
    made.git("checkout", "-q", "-b", "topic")
    (folder / "modelbudget.yaml").write_text(MANIFEST.format(limit="25M") + lines)
    made.commit("topic")
    return made


def reports(folder: Path) -> dict[str, bytes]:
    """What was written, and is taken away."""
    files = {path.name: path.read_bytes() for path in (folder / "out").glob("*")}
    for name in files:
        (folder / "out" / name).unlink()
    return files


def main() -> None:
    """See above."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--names", type=int, default=60)
    options.add_argument("--shards", type=int, default=20)
    words = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, words.names)
        os.chdir(folder)
        with timed("one run"):
            whole_code = pytest(folder, "--model-budget", *(f"--model-budget-report={word}" for word in REPORT_WORDS))
        whole = reports(folder)
        with timed(f"{words.shards} shards"):
            for number in range(1, words.shards + 1):
                part = f"--model-budget-part=parts/{number}.part"
                pytest(folder, part, f"--model-budget-shard={number}/{words.shards}")
        with timed("merge"):
            code, problems = merge("parts", *(f"--report={word}" for word in REPORT_WORDS))
        merged = reports(folder)
        assert not problems, problems
        assert code == whole_code == 1, (code, whole_code)
        for kind in REPORTS:
            assert merged[f"report.{kind}"] == whole[f"report.{kind}"], f"the {kind} report differs"
        print(f"{len(merged)} reports and the exit code are the same; {sum(map(len, merged.values())):,} bytes")
        with timed("each part missing, doubled and altered"):
            spoil(folder, words.shards)


def spoil(folder: Path, shards: int) -> None:
    """Each part in turn is missing, there twice, or has one other byte."""
    paths = [folder / "parts" / f"{number}.part" for number in range(1, shards + 1)]
    altered = folder / "out" / "altered.part"
    for number, path in enumerate(paths, 1):
        others = [str(other) for other in paths if other != path]
        data = bytearray(path.read_bytes())
        data[len(data) * number // (shards + 1)] ^= 1
        altered.write_bytes(data)
        for given, expected in (
            (others, f"shard {number}/{shards} is missing"),
            ([*others, str(path), str(path)], f"{path} is the same part"),
            ([*others, str(altered)], f"{altered}: "),
        ):
            code, problems = merge(*given)
            assert code == 1, (number, code)
            assert expected in problems, (number, problems)
    print(f"{3 * shards} spoiled sets of parts: exit code 1 each, with the name")


if __name__ == "__main__":
    main()
