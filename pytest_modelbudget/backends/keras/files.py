"""`.keras` and `.h5` files: the model of their config, built without memory; of the weights only the shapes are read.

Nothing is unpickled and no code of a file is run: Keras' safe mode stays on, so custom classes have to be registered
by the project itself. What a file was compiled with is left out, and with it every variable of an optimizer.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py
import keras

from pytest_modelbudget.backends.files import shown
from pytest_modelbudget.backends.keras import walk
from pytest_modelbudget.errors import ModelBudgetError

Shape = tuple[int, ...]

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_ASIDE = ("optimizer", "optimizer_weights")
"""Groups of a file's weights that hold those of its optimizer."""


def read(path: Path) -> Any:
    """The model of a file, without values; see `backends.files.Reader`.

    Raises:
        ModelBudgetError: the file is damaged or holds weights only, its config has a Lambda or a class that is not
            registered, or the weights in it are not those of its config.
    """
    with _readable(path):
        if path.is_dir() or zipfile.is_zipfile(path):
            config, stored, version = _keras_format(path)
            model = _rebuilt(path, config, version, legacy=False)
        else:
            config, stored, version = _hdf5_format(path)
            model = _rebuilt(path, config, version, legacy=True)
    if stored is not None:
        _check_weights(path, model, stored)
    return model


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, KeyError, UnicodeDecodeError, json.JSONDecodeError, zipfile.BadZipFile) as error:
        raise ModelBudgetError(f"{shown(path)} is damaged or truncated: {error}") from None


def _keras_format(path: Path) -> tuple[Any, list[Shape] | None, str]:
    """Config, shapes of the stored weights and Keras' version of a `.keras` file, or of a folder of its parts."""
    if path.is_dir():
        parts = {part.name: part for part in path.iterdir()}
        return _parts(path, lambda name: parts[name].open("rb"), set(parts))
    with zipfile.ZipFile(path) as archive:
        return _parts(path, archive.open, set(archive.namelist()))


def _parts(path: Path, opened: Any, names: set[str]) -> tuple[Any, list[Shape] | None, str]:
    if _CONFIG not in names:
        raise ModelBudgetError(f"{shown(path)} is no .keras file: there is no {_CONFIG} in it")
    config = json.loads(_text(opened(_CONFIG)))
    metadata = json.loads(_text(opened(_METADATA))) if _METADATA in names else {}
    stored = None
    if _WEIGHTS in names:
        with opened(_WEIGHTS) as raw, h5py.File(raw, "r") as weights:
            stored = _shapes(weights)
    return config, stored, str(metadata.get("keras_version", "?"))


def _text(raw: IO[bytes]) -> str:
    with raw:
        return raw.read().decode("utf-8")


def _hdf5_format(path: Path) -> tuple[Any, list[Shape] | None, str]:
    """The same of a `.h5` file."""
    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs:
            raise ModelBudgetError(
                f"{shown(path)} holds weights only, not the model they are of: name a builder of the model, or save "
                "the whole model with model.save()"
            )
        config = json.loads(_decoded(file.attrs["model_config"]))
        stored = _shapes(file["model_weights"]) if "model_weights" in file else None
        return config, stored, _decoded(file.attrs.get("keras_version", "?"))


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


def _rebuilt(path: Path, config: Any, version: str, *, legacy: bool) -> Any:
    """The model of a config.

    Raises:
        ModelBudgetError: a Lambda, a class or function that is not registered, or anything else Keras refuses.
    """
    _refuse_code(path, config)
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise ModelBudgetError(f"{shown(path)} is damaged: its config describes no model")
    try:
        return _deserialized(_without_training(config), legacy=legacy)
    except Exception as error:
        raise ModelBudgetError(f"{shown(path)}: {_refusal(error, config, version)}") from None


def _deserialized(config: Any, *, legacy: bool) -> Any:
    """The model of a config, in safe mode also where the process has it off.

    Keras has no public name for that scope, nor for configs as `.h5` files have them (`legacy`) without weights.
    """
    from keras.src.legacy.saving import saving_options, saving_utils
    from keras.src.saving.serialization_lib import SafeModeScope

    with SafeModeScope(True):
        if not legacy:
            return keras.saving.deserialize_keras_object(config)
        with saving_options.keras_option_scope(use_legacy_config=True):
            return saving_utils.model_from_config(config)


def _without_training(config: Any) -> Any:
    """`config` without what models were compiled with, at any depth."""
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if key != "compile_config" or "class_name" not in config}
        return {key: _without_training(value) for key, value in kept.items()}
    return [_without_training(item) for item in config] if isinstance(config, list) else config


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


def _refusal(error: Exception, config: Any, version: str) -> str:
    """Why Keras does not rebuild a config, and the cure."""
    text = str(error)
    if match := re.search(r"(?:Could not locate|Unknown) (class|function|layer|object)[^'\"]*['\"](.+?)['\"]", text):
        return _not_located(match[2], config)
    said = text.partition("\n\nconfig=")[0].partition(" Full object config")[0].strip() or type(error).__name__
    newer = _newer(version)
    return f"Keras {keras.__version__} cannot rebuild its config, written by Keras {version}{newer}: {said[:500]}"


def _not_located(name: str, config: Any) -> str:
    found = next(((one, layer) for one, layer in _described(config, "") if name in _names(one)), None)
    where = f" of layer {found[1]!r}" if found is not None and found[1] else ""
    key = str(found[0].get("registered_name") or name) if found is not None else name
    return (
        f"{name!r}{where} is not one of Keras' own and is not registered: in conftest.py, import the module that "
        "decorates it with @keras.saving.register_keras_serializable(), or set "
        f"keras.saving.get_custom_objects()[{key!r}] = {name}"
    )


def _names(described: dict[str, Any]) -> tuple[Any, ...]:
    inner = described.get("config")
    return described["class_name"], inner if isinstance(inner, str) else None


def _newer(version: str) -> str:
    """A hint when a file is of another Keras than can be expected to read it."""
    if version.startswith("2."):
        return " (for models of Keras 2: pip install tf_keras, and framework: tf_keras)"
    return ""


def _check_weights(path: Path, model: Any, stored: list[Shape]) -> None:
    """Hold the shapes of a file's weights against those of its config, where layers store them one by one.

    Raises:
        ModelBudgetError: a weight of the model is not in the file: its class has changed since the file was saved.
    """
    layers = list(walk.each(model))
    if not all(layer.built for layer in layers) or not all(map(_stores_plainly, layers)):
        return
    missing = Counter(tuple(map(int, weight.shape)) for weight in model.weights) - Counter(stored)
    if missing:
        shape = next(iter(missing))
        weight = next(one for one in model.weights if tuple(one.shape) == shape)
        raise ModelBudgetError(
            f"{shown(path)}: its config gives {weight.path!r} the shape {list(shape)}, and the weights stored in the "
            "file have none of that shape left: the classes of the model changed since, save it again"
        )


def _stores_plainly(layer: Any) -> bool:
    """Whether each variable is a dataset of its own shape: not so where a class stores them itself, or quantised."""
    store = type(layer).save_own_variables
    if store is keras.layers.Layer.save_own_variables:
        return True
    return store.__module__.startswith("keras.src.") and getattr(layer, "quantization_mode", None) is None
