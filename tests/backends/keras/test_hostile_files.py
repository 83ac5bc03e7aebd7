"""Model files as data: none of them runs code, reads another file, or takes more than it has."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget import ModelBudgetError, summarize
from tests.backends.keras.hostile_files import (
    GOOD,
    MARK,
    NAMES,
    SIZES,
    keras_file,
)

GOOD_PARAMS = 4 * 2 + 2

unix = pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices")


@pytest.mark.parametrize(("write", "message"), [pytest.param(*case, id=name) for name, case in NAMES.items()])
def test_what_a_config_must_not_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, message: str) -> None:
    """It is refused with its name, nothing of it is imported or called, and the next file is read right."""
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / MARK)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path)
    with pytest.raises(ModelBudgetError) as error:
        summarize(path)
    assert message in str(error.value)
    assert path.name in str(error.value)
    assert not (tmp_path / MARK).exists()
    assert "evil_module" not in sys.modules
    assert summarize(keras_file(GOOD, "good.keras")(tmp_path)).params == GOOD_PARAMS


@unix
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("write", "message"), [pytest.param(*case, id=name) for name, case in SIZES.items()])
def test_what_a_file_must_not_take(tmp_path: Path, write: Callable[[Path], Path], message: str) -> None:
    """It is refused at once, with its name, and the next file is read right."""
    path = write(tmp_path)
    with pytest.raises(ModelBudgetError) as error:
        summarize(str(path))
    assert message in str(error.value)
    assert path.name in str(error.value)
    assert summarize(keras_file(GOOD, "good.keras")(tmp_path)).params == GOOD_PARAMS
