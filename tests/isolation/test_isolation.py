"""Models of every door are counted in a worker as they would be here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pytest_modelbudget import backends
from pytest_modelbudget.engine.run import entries_from, run
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError, Place
from pytest_modelbudget.isolation import Isolation, UserModule, YieldedBuilder, isolation_enabled, process_state
from pytest_modelbudget.isolation.channel import Job, write_job
from pytest_modelbudget.isolation.worker import _Jobs
from pytest_modelbudget.results import State
from pytest_modelbudget.session.registry import register_manifest

FAKES = Path(__file__).parents[1] / "fakes.py"
ROOMS = """
import sys, warnings
from fakenet import Model
from pytest_modelbudget import ModelEntry, backends, model

backends.BACKENDS["fakenet"] = "fakenet"
CALLS = []

def small(): return Model(dense=(32, 64))
def speaks():
    print("to the one")
    print("to the other", file=sys.stderr)
    return small()
def warns():
    warnings.warn("old", DeprecationWarning)
    return small()
def by_variable():
    import os
    return Model(dense=(32, int(os.environ["WIDTH"])))
def fails(): return Model(dense=(32, "x" + 1))
def stops():
    breakpoint()
    return small()
def endless(): sum(__import__("itertools").repeat(0))
def interrupts(): raise KeyboardInterrupt
def entries():
    CALLS.append(1)
    for width in (8, 16):
        yield ModelEntry(id=f"w{width}", build=lambda width=width: Model(dense=(32, width)), inputs="float32[B, 32]", tags=["zoo"])
def twins():
    return [ModelEntry(id="twin", build=small), ModelEntry(id="twin", build=small)]
def slow_entries():
    import time
    time.sleep(60)
def broken_entries():
    raise OSError("no list")
def leaving_entries():
    import os
    os._exit(0)

@model(inputs="float32[B, 32]")
def decorated(): return small()

class TestInside:
    @model(inputs="float32[B, 32]")
    def inner(): return Model(dense=(32, 3))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the search path with the fake framework and builders in it."""
    folder = tmp_path_factory.mktemp("isolated")
    (folder / "fakenet.py").write_text(FAKES.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "isolated_rooms.py").write_text(ROOMS, encoding="utf-8")
    known = dict(backends.BACKENDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    backends.BACKENDS.clear()
    backends.BACKENDS.update(known)
    for name in ("fakenet", "isolated_rooms"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def isolation(home: Path) -> Iterator[Isolation]:
    """One worker for all tests."""
    isolated = Isolation()
    yield isolated
    isolated.close()


def entry(builder: str, **options: object) -> ModelEntry:
    """An entry of a manifest."""
    return ModelEntry(id=builder, build=f"isolated_rooms:{builder}", inputs="float32[B, 32]", **options)  # type: ignore[arg-type]


def test_a_model_has_its_numbers(isolation: Isolation) -> None:
    """32 * 64 params, and what they take and cost."""
    summary = isolation.count(entry("small"))
    assert (summary.params, summary.weight_bytes, summary.flops.value) == (2048, 8192, 4096)


def test_its_samples_and_sizes_are_kept(isolation: Isolation) -> None:
    """What an entry says beside its builder reaches the worker."""
    summary = isolation.count(entry("small", samples=10, batch=3))
    assert (summary.samples, summary.flops.value) == (10, 3 * 4096)


def test_what_it_prints_is_printed_here(isolation: Isolation, capsys: pytest.CaptureFixture[str]) -> None:
    """On the stream it was printed on, once."""
    isolation.count(entry("speaks"))
    isolation.count(entry("small"))
    assert capsys.readouterr() == ("to the one\n", "to the other\n")


def test_its_warnings_are_warned_of_here(isolation: Isolation) -> None:
    """With their class and their place, so that pytest's filters apply."""
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        isolation.count(entry("warns"))
    assert [(one.category, str(one.message), Path(one.filename).name) for one in recorded] == [
        (DeprecationWarning, "old", "isolated_rooms.py")
    ]


AHEAD = {
    "fine": "import sys\nprint('ahead')",
    "warns": "import warnings\nwarnings.warn('old', DeprecationWarning)",
    "raises": "import isolated_rooms\nisolated_rooms.small = None\n1 / 0",
    "ends": "import os\nos._exit(0)",
    "interrupts": "raise KeyboardInterrupt",
    "spoils": "import builtins\nbuiltins.len = lambda items: 7",
}


@pytest.mark.parametrize(
    "module", [pytest.param(name, marks=() if name in ("fine", "raises") else pytest.mark.slow) for name in AHEAD]
)
def test_what_is_imported_ahead_costs_no_other_model(
    module: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The module of a model that is never asked for is imported meanwhile: others have their numbers, and its output."""
    (home / f"ahead_{module}.py").write_text(AHEAD[module], encoding="utf-8")
    with closing(Isolation()) as isolation, warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        isolation.start(ModelEntry(id="ahead", build=f"ahead_{module}:net"))
        assert isolation.count(entry("small")).params == 2048
    assert (capsys.readouterr().out, [str(warning.message) for warning in recorded]) == (
        "ahead\n" if module == "fine" else "",
        ["old"] if module == "warns" else [],
    )


def test_a_variable_set_since_is_set_there(isolation: Isolation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker came up before a conftest, or a test module, changed the environment."""
    isolation.start()
    monkeypatch.setenv("WIDTH", "5")
    assert isolation.count(entry("by_variable")).params == 160


def test_an_error_has_the_users_line(isolation: Isolation, home: Path) -> None:
    """The result is the one that a run in this process gives."""
    there = run(entry("fails"), home, snapshots=False, count=isolation.count)
    here = run(entry("fails"), home, snapshots=False)
    assert there.state is State.BUILD_ERROR
    assert "isolated_rooms.py:20: in fails" in there.error
    assert there.error == here.error


def test_a_breakpoint_is_reached_in_this_process(isolation: Isolation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker has nobody to talk to, so the model is built here, where the debugger is."""
    reached = []
    monkeypatch.setattr(sys, "breakpointhook", lambda: reached.append(True))
    assert isolation.count(entry("stops")).params == 2048
    assert reached == [True]


def test_an_interrupt_comes_through(isolation: Isolation) -> None:
    """A builder that raises KeyboardInterrupt interrupts the run."""
    with pytest.raises(KeyboardInterrupt):
        isolation.count(entry("interrupts"))


def test_not_isolated_models_are_built_here(isolation: Isolation, capsys: pytest.CaptureFixture[str]) -> None:
    """`isolate: false` is this process, whose module then has been imported."""
    sys.modules.pop("isolated_rooms", None)
    assert isolation.count(entry("small", isolate=False)).params == 2048
    assert "isolated_rooms" in sys.modules


@pytest.mark.parametrize(("name", "params"), [("decorated", 2048), ("inner", 96)])
def test_a_decorated_builder_is_found_in_its_module(isolation: Isolation, home: Path, name: str, params: int) -> None:
    """By its id, also in a class."""
    module = UserModule(str(home / "isolated_rooms.py"), str(home), "prepend")
    assert isolation.count(replace(entry("small"), id=name, build=lambda: None), module).params == params


def test_what_its_module_lacks_there_is_built_here(isolation: Isolation, home: Path) -> None:
    """An entry that only this process knows is counted in it."""
    from isolated_rooms import small

    module = UserModule(str(home / "isolated_rooms.py"), str(home), "prepend")
    assert isolation.count(replace(entry("small"), id="made-here", build=small), module).params == 2048


def test_sources_are_called_there(isolation: Isolation, home: Path) -> None:
    """Their entries have stand-ins for builders here, and their numbers there."""
    manifest = home / "modelbudget.yaml"
    manifest.write_text("defaults: {batch: 2}\nsources: [isolated_rooms:entries]\n", encoding="utf-8")
    known = register_manifest(manifest, home, isolation.entries)
    assert [(one.id, one.tags, one.batch) for one in known.entries] == [("w16", ("zoo",), 2), ("w8", ("zoo",), 2)]
    assert all(isinstance(one.build, YieldedBuilder) for one in known.entries)
    assert {one.id: isolation.count(one).params for one in known.entries} == {"w8": 256, "w16": 512}
    first = known.entries[0]
    assert isolation.count(replace(first, isolate=False)).params == isolation.count(first).params


def test_a_source_whose_models_are_not_isolated_is_called_here_once(home: Path) -> None:
    """By their own word, or by that of the defaults, which then holds for the source as well."""
    import isolated_rooms

    isolated_rooms.CALLS.clear()
    source = ("isolated_rooms:entries", ModelEntry(id="sources", build="isolated_rooms:entries"))
    with closing(Isolation()) as isolation:
        for one in isolation.entries(*source):
            assert isolation.count(replace(one, isolate=False)).params in (256, 512)
    assert len(isolated_rooms.CALLS) == 1
    manifest = home / "modelbudget.yaml"
    manifest.write_text("defaults: {isolate: false}\nsources: [isolated_rooms:entries]\n", encoding="utf-8")
    assert all(callable(one.build) for one in register_manifest(manifest, home, isolation.entries).entries)
    assert len(isolated_rooms.CALLS) == 2


@pytest.mark.parametrize(
    ("now", "before", "lower"), [(10, 20, True), (20, 10, False), (10, -1, True), (-1, 10, False), (-1, -1, False)]
)
def test_a_limit_of_the_process_may_be_raised(now: int, before: int, lower: bool) -> None:
    """-1 is none."""
    assert process_state._is_lower(now, before) is lower


def test_a_source_that_fails_says_why(isolation: Isolation) -> None:
    """As it does when it is called in this process."""
    holder = ModelEntry(id="sources", build="isolated_rooms:broken_entries", place=Place("modelbudget.yaml", 2))
    with pytest.raises(ModelBudgetError, match="OSError: no list"):
        isolation.entries("isolated_rooms:broken_entries", holder)
    with pytest.raises(ModelBudgetError, match="there is no module 'nowhere'"):
        isolation.entries("nowhere:entries", holder)
    with pytest.raises(
        ModelBudgetError, match="leaving_entries: its process ended with exit code 0, before it answered"
    ):
        isolation.entries("isolated_rooms:leaving_entries", holder)
    with pytest.raises(OSError, match="no list"):
        entries_from("isolated_rooms:broken_entries", holder)


def test_two_models_of_one_id_are_both_told_of(isolation: Isolation) -> None:
    """So that the second is a mistake of the manifest, rather than gone."""
    holder = ModelEntry(id="sources", build="", place=Place("modelbudget.yaml", 3))
    assert [entry.id for entry in isolation.entries("isolated_rooms:twins", holder)] == ["twin", "twin"]


def test_a_source_keeps_the_limits_of_the_defaults(
    isolation: Isolation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that takes longer is named, with the limit and its line, which stands for the whole stack."""
    manifest = tmp_path / "modelbudget.yaml"
    manifest.write_text("defaults: {limits: {seconds: 1}}\nsources: [isolated_rooms:slow_entries]\n", encoding="utf-8")
    ((_, message),) = register_manifest(manifest, tmp_path, isolation.entries).broken
    assert "took longer than the 1 s that limits.seconds allows" in message
    assert "isolated_rooms.py:" in message
    assert "most recent call first" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="kill")
def test_a_worker_ends_with_whoever_started_it(home: Path, tmp_path: Path) -> None:
    """Also in C code that never gives way, when the process that waits for it is killed."""
    script = (
        "import os, sys, signal, threading\n"
        "from pytest_modelbudget.entry import ModelEntry\n"
        "from pytest_modelbudget.isolation import Isolation\n"
        "isolation = Isolation()\n"
        "isolation.count(ModelEntry(id='small', build='isolated_rooms:small', inputs='float32[B, 32]'))\n"
        "print(isolation._worker._process.pid, flush=True)\n"
        "threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()\n"
        "isolation.count(ModelEntry(id='c', build='isolated_rooms:endless'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{home}{os.pathsep}{FAKES.parents[1]}"}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    worker = int(run.stdout)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != "zombie" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == "zombie"


def test_a_worker_leaves_what_its_code_wrote(home: Path) -> None:
    """At its end: by exit functions, and into files that are still open."""
    (home / "writes_late.py").write_text(
        "import atexit\nfrom isolated_rooms import small\nlog = open('log', 'w')\n"
        "def build():\n"
        "    log.write('built')\n"
        "    atexit.register(lambda: open('exit', 'w').write('left'))\n"
        "    return small()\n",
        encoding="utf-8",
    )
    with closing(Isolation()) as isolated, pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert isolated.count(replace(entry("small"), build="writes_late:build")).params == 2048
    assert ((home / "log").read_text(encoding="utf-8"), (home / "exit").read_text(encoding="utf-8")) == (
        "built",
        "left",
    )


@pytest.mark.parametrize(("done", "exits"), [(True, []), (False, [1])])
def test_jobs_that_end_stop_a_job_only(monkeypatch: pytest.MonkeyPatch, done: bool, exits: list[int]) -> None:
    """The end of the jobs ends a worker at once in the middle of a job; with the job done, it ends in its own time."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as stream:
        with open(write_end, "wb") as jobs_stream:
            write_job(jobs_stream, 1, Job("call"))
            jobs = _Jobs(stream)
            queue = iter(jobs)
            assert next(queue) == (1, Job("call"))
            if done:
                jobs.done()
        assert next(queue, None) is None
    assert codes == exits


@pytest.mark.parametrize(("value", "isolated"), [("0", False), ("off", False), ("1", True), ("", True)])
def test_the_variable_turns_it_off(monkeypatch: pytest.MonkeyPatch, value: str, isolated: bool) -> None:
    """For a whole run."""
    monkeypatch.setenv("MODELBUDGET_ISOLATE", value)
    assert isolation_enabled() is isolated


@pytest.mark.slow
@pytest.mark.parametrize("isolated", ["0", "1"])
def test_coverage_has_what_ran_in_the_worker(home: Path, tmp_path: Path, isolated: str) -> None:
    """The lines of a builder count as run, as they do in this process."""
    pytest.importorskip("coverage")
    (tmp_path / "modelbudget.yaml").write_text(
        'models: {small: {build: "isolated_rooms:small", inputs: "float32[B, 32]"}}\n', encoding="utf-8"
    )
    environment = {**os.environ, "MODELBUDGET_ISOLATE": isolated, "PYTHONPATH": f"{home}{os.pathsep}{FAKES.parents[1]}"}
    measure = [sys.executable, "-m", "coverage"]
    run = [*measure, "run", "--source", "isolated_rooms", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    subprocess.run([*run, "--model-budget-update"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    subprocess.run([*measure, "json", "-o", "c.json"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    (file,) = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["files"].values()
    lines = ROOMS.splitlines()
    missing = {lines[number - 1].strip() for number in file["missing_lines"]}
    assert 'warnings.warn("old", DeprecationWarning)' in missing
    assert "def small(): return Model(dense=(32, 64))" not in missing


@pytest.mark.slow
def test_a_default_type_that_a_module_sets_is_that_of_its_own_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch.set_default_dtype` where a module is imported: 20 params take 160 bytes there, and 80 of any other module."""
    net = "from torch import nn\ndef net(): return nn.Linear(4, 4)\n"
    (tmp_path / "plain_room.py").write_text(net)
    (tmp_path / "double_room.py").write_text(f"import torch\ntorch.set_default_dtype(torch.float64)\n{net}")
    monkeypatch.syspath_prepend(str(tmp_path))
    isolated = Isolation()
    try:
        sizes = [
            isolated.count(ModelEntry(id=room, build=f"{room}_room:net")).weight_bytes
            for room in ("double", "double", "plain", "double")
        ]
    finally:
        isolated.close()
    assert sizes == [160, 160, 80, 160]
