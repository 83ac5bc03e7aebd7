"""`run()` and its neighbours on a fake framework: what is built where, and what escapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_modelbudget import ModelBudgetError, ModelEntry, backends, summarize
from pytest_modelbudget.engine.run import in_ci, run
from pytest_modelbudget.results import SnapshotState, State
from tests import fakes
from tests.fakes import Model


@pytest.fixture(autouse=True)
def only_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No framework but the fake one is known."""
    monkeypatch.setattr(backends, "BACKENDS", {"tests.fakes": "tests.fakes"})


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        pytest.param({}, False, id="nothing"),
        pytest.param({"CI": ""}, False, id="empty"),
        pytest.param({"CI": "0"}, False, id="0"),
        pytest.param({"CI": "False"}, False, id="false"),
        pytest.param({"CI": "true"}, True, id="true"),
        pytest.param({"CI": "woodpecker"}, True, id="a name"),
        pytest.param({"TF_BUILD": "True"}, True, id="azure"),
    ],
)
def test_in_ci(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: bool) -> None:
    """A CI job is told by what CI services set."""
    for name in ("CI", "TF_BUILD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert in_ci() is expected


def test_a_model_is_built_inside_the_abstract_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, when its framework is there already."""
    inside: list[bool] = []
    open_now: list[bool] = []

    @contextmanager
    def abstract() -> Iterator[None]:
        open_now.append(True)
        yield
        open_now.pop()

    def build() -> Model:
        inside.append(bool(open_now))
        return Model(dense=(32, 64))

    monkeypatch.setattr(fakes, "abstract", abstract)
    result = run(ModelEntry("net", build, inputs="float32[B, 32]"), tmp_path)
    assert inside == [True]
    assert (result.state, result.snapshot.stored) == (State.NO_SNAPSHOT, SnapshotState.MISSING)
    assert list(tmp_path.iterdir()) == []


def test_a_builder_that_brings_its_framework_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first model was made for real, before anyone could know: the second is the one that is counted."""
    built: list[int] = []

    def build() -> Model:
        backends.BACKENDS["tests.fakes"] = "tests.fakes"  # as importing it for the first time would
        built.append(1)
        return Model(dense=(32, 64))

    monkeypatch.setattr(backends, "BACKENDS", {})
    result = run(ModelEntry("net", build, inputs="float32[B, 32]"), tmp_path, snapshots=False)
    assert result.state is State.OK
    assert result.summary is not None
    assert (result.summary.params, len(built)) == (2_048, 2)


def test_the_user_can_stop_a_run(tmp_path: Path) -> None:
    """Ctrl-C is no build error."""

    def build() -> Model:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ModelEntry("net", build), tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(Model(dense=(32, 64)), id="a model"),
        pytest.param(lambda: Model(dense=(32, 64)), id="a builder"),
    ],
)
def test_summarize(given: object) -> None:
    """The library's face: a model or a builder, with inputs in the grammar."""
    summary = summarize(given, "float32[B, 32]", name="net")
    assert (summary.model, summary.params, summary.flops.value) == ("net", 2_048, 4_096)
    assert "Total params: 2,048" in str(summary)
    assert "<table>" in summary._repr_html_()


def test_a_model_of_haiku_is_refused_with_the_cure() -> None:
    """Its functions can be called by a module that is counted."""
    transformed = type("Transformed", (), {"__module__": "haiku._src.transform"})()
    with pytest.raises(ModelBudgetError, match=r"no model of a known framework .*: hold its parameters in .* flax"):
        summarize(transformed)


@pytest.mark.parametrize("given", [pytest.param(7, id="a number"), pytest.param(lambda: 7, id="a builder of a number")])
def test_summarize_of_no_model(given: object) -> None:
    """The message says what it got."""
    with pytest.raises(ModelBudgetError, match=r"builtins\.int, which is no model of a known framework"):
        summarize(given)
