"""TensorFlow's start-up log does not reach the terminal; everything else does."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from pytest_modelbudget.backends.quiet_start import without_noise
from tests.project import WITHOUT_OTHERS, Project

NOISE = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1795375010.739873   14299 port.cc:153] oneDNN custom operations are on.",
    "W0000 00:00:1795375010.739873   14299 computation_placer.cc:177] computation placer already registered",
    "E0000 00:00:1795375014.638321   14299 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error",
    "2026-11-22 19:16:52.000001: I tensorflow/core/platform/cpu_feature_guard.cc:210] This TensorFlow binary",
    "2026-11-22 19:16:52.000001: E external/local_xla/xla/stream_executor/cuda/cuda_fft.cc:467] Unable to register",
    "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow",
]
NEWS = [
    "F0000 00:00:1795375010.739873   14299 port.cc:99] Check failed: cannot go on",
    "E0000 00:00:1795375010.739873   14299 io.cc:12] the disk is gone",
    "the user's own words: I0000",
]

NOISY = """
    import os
    os.write(2, {text!r}.encode())
    {then}
"""
BUILDERS = "import tensorflow\nfrom zoo import small\n"
ONLY_FAKENET = """
    from pytest_modelbudget import backends

    backends.BACKENDS.clear()
    backends.BACKENDS["fakenet"] = "fakenet"
"""
MANIFEST = """
    models:
      small: {build: "builders:small", inputs: "float32[B, 32]"}
"""


def _project_with_tensorflow(project: Project, then: str = "") -> None:
    text = "".join(f"{line}\n" for line in (*NOISE, *NEWS))
    project.write("tensorflow.py", NOISY.format(text=text, then=then))
    project.write("other.py", NOISY.format(text=text, then=""))
    project.write("conftest.py", ONLY_FAKENET)  # a module that is called tensorflow is none
    project.write("builders.py", BUILDERS)
    project.manifest(MANIFEST)


def _said(result: pytest.RunResult) -> list[str]:
    return [line for line in result.errlines if line in (*NOISE, *NEWS)]


def test_only_the_news_of_an_import_reach_the_terminal(project: Project) -> None:
    """With pytest's own capture off, log lines of the import are gone and real errors are there, in order; what any
    other module writes is the user's."""
    _project_with_tensorflow(project)
    project.write("builders.py", BUILDERS.replace("\n", "\nimport other\n", 1))
    result = project.alone("--model-budget-update", "-s")
    assert result.ret == 0
    assert _said(result) == [*NEWS, *NOISE, *NEWS]


@pytest.mark.slow
def test_an_import_in_conftest_is_quiet_too(project: Project) -> None:
    """A conftest is imported before anything is collected."""
    _project_with_tensorflow(project)
    with (project.path / "conftest.py").open("a", encoding="utf-8") as conftest:
        conftest.write("\nimport tensorflow\n")
    assert _said(project.alone("--model-budget-update", "-s")) == NEWS


def test_without_the_option_nothing_is_filtered(project: Project) -> None:
    """Off, the plugin does not touch what others print."""
    _project_with_tensorflow(project)
    project.write("test_other.py", "import tensorflow\n\ndef test_it():\n    assert tensorflow\n")
    assert _said(project.alone("-s")) == [*NOISE, *NEWS]


def test_the_last_words_before_a_crash_are_kept(project: Project) -> None:
    """An import that aborts the process still says why."""
    _project_with_tensorflow(project, then="os.write(2, b'LLVM ERROR: inconsistent\\n'); os.abort()")
    command = [sys.executable, "-m", "pytest", *WITHOUT_OTHERS, "--model-budget-update", "-s"]
    result = subprocess.run(command, cwd=project.path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert result.returncode != 0
    lines = result.stderr.splitlines()
    assert [line for line in (*NOISE, *NEWS, "LLVM ERROR: inconsistent") if line in lines] == [
        *NEWS,
        "LLVM ERROR: inconsistent",
    ]


def test_an_import_that_fails_leaves_stderr_as_it_was(project: Project) -> None:
    """The error is the model's, and later output still arrives."""
    _project_with_tensorflow(project, then="raise ImportError('broken install')")
    project.write("test_later.py", "import os\n\ndef test_it():\n    os.write(2, b'later\\n')\n")
    result = project.alone("--model-budget", "-s")
    result.stdout.fnmatch_lines(["*broken install*"])
    assert "later" in result.errlines


@pytest.mark.slow
@pytest.mark.skipif(find_spec("keras") is None or find_spec("tensorflow") is None, reason="needs Keras on TensorFlow")
def test_tensorflow_itself_comes_up_quietly(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real run with a real Keras model writes nothing to stderr."""
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    pytester.makepyfile(
        nets="import keras\ndef net():\n    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])"
    )
    (pytester.path / "modelbudget.yaml").write_text("models:\n  net: nets:net\n", encoding="utf-8")
    result = pytester.runpytest_subprocess(*WITHOUT_OTHERS, "--model-budget-update", "-s")
    assert result.ret == 0
    assert result.stderr.str().strip() == ""


def test_captured_sections_lose_the_same_lines() -> None:
    """What pytest captured and shows for a failing model is filtered by the same rule."""
    lines = [*NOISE[:3], NEWS[0], *NOISE[3:], *NEWS[1:]]
    assert without_noise("\n".join(lines)) == "\n".join(NEWS)
