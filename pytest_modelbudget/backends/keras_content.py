"""What is in a Keras file, `.keras` or `.h5`: its config, and the shapes of its weights; imports no Keras.

Nothing is unpickled, no code of a file is run and no dataset is read.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import h5py

from pytest_modelbudget.backends.files import shown
from pytest_modelbudget.errors import ModelBudgetError

Shape = tuple[int, ...]

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_MARK = "_modelbudget_from_file"
_ASIDE = ("optimizer", "optimizer_weights")
"""Groups of a file's weights that hold those of its optimizer."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a file says of its model.

    `config` is without what models were compiled with; `optimizer` is the config of the optimizer among that, None
    when the model was not compiled. `legacy` says that configs are as `.h5` files have them, `shapes` are those of
    all stored weights (None when there are none), `version` is the Keras that wrote the file.
    """

    config: dict[str, Any]
    legacy: bool
    shapes: list[Shape] | None
    version: str
    optimizer: dict[str, Any] | None = None


def content(path: Path) -> Content:
    """What is in a file.

    Raises:
        ModelBudgetError: it is damaged, holds weights only, or Python code.
    """
    with _readable(path):
        found = _keras_format(path) if path.is_dir() or zipfile.is_zipfile(path) else _hdf5_format(path)
    if not isinstance(found.config, dict) or not isinstance(found.config.get("class_name"), str):
        raise ModelBudgetError(f"{shown(path)} is damaged: its config describes no model")
    found = replace(found, config=_without_training(found.config))
    _refuse_code(path, found.config)
    return found


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, KeyError, UnicodeDecodeError, json.JSONDecodeError, zipfile.BadZipFile) as error:
        raise ModelBudgetError(f"{shown(path)} is damaged or truncated: {error}") from None


def _keras_format(path: Path) -> Content:
    """A `.keras` file, or a folder of its parts."""
    if path.is_dir():
        parts = {part.name: part for part in path.iterdir()}
        return _parts(path, lambda name: parts[name].open("rb"), set(parts))
    with zipfile.ZipFile(path) as archive:
        return _parts(path, archive.open, set(archive.namelist()))


def _parts(path: Path, opened: Any, names: set[str]) -> Content:
    if _CONFIG not in names:
        raise ModelBudgetError(f"{shown(path)} is no .keras file: there is no {_CONFIG} in it")
    config = json.loads(_text(opened(_CONFIG)))
    metadata = json.loads(_text(opened(_METADATA))) if _METADATA in names else {}
    stored = None
    if _WEIGHTS in names:
        with opened(_WEIGHTS) as raw, h5py.File(raw, "r") as weights:
            stored = _shapes(weights)
    training = config.get("compile_config") if isinstance(config, dict) else None
    return Content(config, False, stored, str(metadata.get("keras_version", "?")), _part(training, "optimizer"))


def _part(training: Any, key: str) -> dict[str, Any] | None:
    found = training.get(key) if isinstance(training, dict) else None
    return found if isinstance(found, dict) else None


def _text(raw: IO[bytes]) -> str:
    with raw:
        return raw.read().decode("utf-8")


def _hdf5_format(path: Path) -> Content:
    """A `.h5` file."""
    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs:
            raise ModelBudgetError(
                f"{shown(path)} holds weights only, not the model they are of: name a builder of the model, or save "
                "the whole model with model.save()"
            )
        config = json.loads(_decoded(file.attrs["model_config"]))
        stored = _shapes(file["model_weights"]) if "model_weights" in file else None
        training = json.loads(_decoded(file.attrs.get("training_config", "null")))
        version = _decoded(file.attrs.get("keras_version", "?"))
        return Content(config, True, stored, version, _part(training, "optimizer_config"))


def _decoded(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _shapes(group: Any) -> list[Shape]:
    """The shapes of all datasets of a group, those of the optimizer left out; no dataset is read."""
    found: list[Shape] = []

    def note(name: str, member: Any) -> None:
        if isinstance(member, h5py.Dataset) and name.partition("/")[0] not in _ASIDE:
            found.append(tuple(map(int, member.shape)))

    group.visititems(note)
    return found


def _without_training(config: Any) -> Any:
    """`config` without what models were compiled with, at any depth."""
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if key != "compile_config" or "class_name" not in config}
        return {key: _without_training(value) for key, value in kept.items()}
    return [_without_training(item) for item in config] if isinstance(config, list) else config


def read_from_file(model: Any) -> Any:
    """`model`, marked: its automatic names count what the session that saved it had built."""
    setattr(model, _MARK, True)
    return model


def is_from_file(model: Any) -> bool:
    """Whether a model was marked by `read_from_file`."""
    return bool(getattr(model, _MARK, False))


def _refuse_code(path: Path, config: Any) -> None:
    """Refuse Python code that is stored in a config, before Keras sees it."""
    for described, layer in _described(config, ""):
        inner = described.get("config")
        function = inner.get("function") if isinstance(inner, dict) else None
        kind = inner.get("function_type") if isinstance(inner, dict) else None
        if described["class_name"] == "__lambda__" or isinstance(function, list) or kind == "lambda":
            raise ModelBudgetError(
                f"{shown(path)}: layer {layer!r} is a Lambda whose Python code is stored in the file, and code of a "
                "file is never run: make it a registered Layer class (or a registered function) and save the model "
                "again, or name a builder instead of the file"
            )


def _described(config: Any, layer: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Everything in a config that names its class, with the name of the layer it is or belongs to."""
    if isinstance(config, dict):
        if "class_name" in config:
            inner = config.get("config")
            layer = str(inner.get("name") or layer) if isinstance(inner, dict) else layer
            yield config, layer
        for value in config.values():
            yield from _described(value, layer)
    elif isinstance(config, list):
        for item in config:
            yield from _described(item, layer)


def refusal(path: Path, found: Content, keras: str, error: Exception) -> ModelBudgetError:
    """Why a version of Keras does not rebuild a config, and the cure."""
    text = str(error)
    match = re.search(r"(?:Could not locate|Unknown) (class|function|layer|object)[^'\"]*['\"](.+?)['\"]", text)
    if match and not (_is_of_two(found, keras) and _is_of_keras(match[2], found.config)):
        return ModelBudgetError(f"{shown(path)}: {_not_located(match[2], found.config)}")
    said = text.partition("\n\nconfig=")[0].partition(" Full object config")[0].strip() or type(error).__name__
    other = (
        " (for models of Keras 2: pip install tf_keras, and framework: tf_keras)" if _is_of_two(found, keras) else ""
    )
    return ModelBudgetError(
        f"{shown(path)}: {keras} cannot rebuild its config, written by Keras {found.version}{other}: {said[:500]}"
    )


def _not_located(name: str, config: Any) -> str:
    found = next(((one, layer) for one, layer in _described(config, "") if name in _names(one)), None)
    where = f" of layer {found[1]!r}" if found is not None and found[1] else ""
    key = str(found[0].get("registered_name") or name) if found is not None else name
    return (
        f"{name!r}{where} is not one of Keras' own and is not registered: in conftest.py, import the module that "
        "decorates it with @keras.saving.register_keras_serializable(), or set "
        f"keras.saving.get_custom_objects()[{key!r}] = {name}"
    )


def _is_of_keras(name: str, config: Any) -> bool:
    """Whether a name stands for a class of some version of Keras."""
    modules = (str(one.get("module")) for one, _ in _described(config, "") if name in _names(one))
    return any(module.partition(".")[0] in ("keras", "tf_keras") for module in modules)


def _names(described: dict[str, Any]) -> tuple[Any, ...]:
    inner = described.get("config")
    return described["class_name"], inner if isinstance(inner, str) else None


def _is_of_two(found: Content, keras: str) -> bool:
    return found.version.startswith("2.") and not keras.startswith("tf_keras")
