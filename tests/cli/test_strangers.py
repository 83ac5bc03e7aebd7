"""A stranger's first five minutes, in projects as they are found: three commands, nothing written by hand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STRANGERS = Path(__file__).parents[1] / "data" / "strangers"


def run(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in the project, with this plugin installed and nothing else of ours."""
    paths = os.pathsep.join((str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": paths, "TORCH_HOME": str(project.parent / "torch"), "CI": ""}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=project, env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "params", "manifest", "edit", "explanation"),
    [
        pytest.param(
            "config_class",
            # 96*32 + 64*32 + 2 blocks of (3*32*32 + 3*32 + 32*32 + 32 + 32*128 + 128 + 128*32 + 32) + 32*96
            {"lm": 33_344},
            ['config: {call: "model:LMConfig"}', 'inputs: "int64[B, 8]"  # as in train.py:5'],
            ("model.py", "4 * config.width", "5 * config.width"),
r"~ blocks\.0-1  widened .* 32\*128 \+ 128 = 4,224 -> 32\*160 \+ 160 = 5,280",
            id="a class that takes a configuration",
        ),
        pytest.param(
            "named_sizes",
            # (80*3 + 1)*64 + (64*3 + 1)*64 + 1000*64
            {"speech": 91_776},
            ["guesses: put the real ones here", 'mel: "float32[B, 80, 256]"', 'tokens: "int64[B, T]"', "build: speech:load_model"],
            ("speech/nets.py", "kernel_size=3, stride=2, padding=1", "kernel_size=5, stride=2, padding=2"),
            r"encoder\.second .*12,352 params -> 20,544 params",  # (64*3 + 1)*64, (64*5 + 1)*64
            id="weights by name, sizes without defaults",
        ),
        pytest.param(
            "documented",
            # (3*16*16 + 1)*48 + (48*36 + 1)*10; a ResNet-18 as published, its head 512*10 + 10
            {"patch-net": 54_202, "pixels-resnet18": 11_689_512 - 513_000 + 5_130},
            ["# as in README.md:", 'inputs: "float32[B, 3, 96, 96]"  # as in README.md:', "pretrained: false", "build: vision.broken:Extra"],
            ("vision/patches.py", "channels * height * width, dim)", "channels * height * width, dim, bias=False)"),
            r"embed .*36,912 params -> 36,864 params",
            id="called in the README, and in hubconf.py",
        ),
    ],
)  # fmt: skip
def test_three_commands_to_a_failing_check_with_an_explanation(
    tmp_path: Path, name: str, params: dict[str, int], manifest: list[str], edit: tuple[str, str, str], explanation: str
) -> None:
    """`init`, an update and a check, which fails when the model was changed and says what changed."""
    project = tmp_path / name
    shutil.copytree(STRANGERS / name, project)
    looked = run(project, "pytest_modelbudget.cli", "init")
    assert looked.returncode == 0, looked.stdout + looked.stderr
    found = re.findall(r"^  ([\w-]+) +([\d,]+) params", looked.stdout, re.MULTILINE)
    assert {name: int(count.replace(",", "")) for name, count in found} == params
    text = (project / "modelbudget.yaml").read_text(encoding="utf-8")
    for part in manifest:
        assert part in text + looked.stdout
    plugin = ("pytest", "-p", "no:cacheprovider")
    updated = run(project, *plugin, "--model-budget-update")
    assert updated.returncode == 0, updated.stdout + updated.stderr
    path, before, after = edit
    source = (project / path).read_text(encoding="utf-8")
    (project / path).write_text(source.replace(before, after), encoding="utf-8")
    checked = run(project, *plugin, "--model-budget")
    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert re.search(explanation, checked.stdout), checked.stdout
