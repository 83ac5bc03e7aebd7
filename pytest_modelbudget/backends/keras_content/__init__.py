"""What is in a Keras file, `.keras` or `.h5`: its config, and the shapes of its weights; imports no Keras.

Nothing is unpickled, no code of a file is run, no dataset is read and no other file is opened. `unpacked` and `hdf5`
read within bounds; `names` refuses what a config names outside of Keras and of what is registered, by what a `library`
offers, and `graph` what would never end; `refusals` says why.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_modelbudget.backends.keras_content import graph, hdf5, names
from pytest_modelbudget.backends.keras_content.content import Content, Shape, without_training
from pytest_modelbudget.backends.keras_content.library import Library, existing_classes
from pytest_modelbudget.backends.keras_content.refusals import refusal
from pytest_modelbudget.backends.keras_content.unpacked import FileParts, FileUnreadable, parse_json
from pytest_modelbudget.backends.model_files import shown
from pytest_modelbudget.errors import ModelBudgetError

__all__ = ["Content", "Library", "Shape", "content", "existing_classes", "is_from_file", "read_from_file", "refusal"]

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_FROM_FILE = "_modelbudget_from_file"


def content(path: Path, library: Library) -> Content:
    """What is in a file, and may be handed to the Keras of `library`.

    Raises:
        ModelBudgetError: it is damaged, holds weights only or Python code, or names anything outside of Keras and of
            what is registered.
    """
    with _readable(path):
        file_content = _keras_format(path) if path.is_dir() or zipfile.is_zipfile(path) else _hdf5_format(path)
        if not isinstance(file_content.config, dict) or not isinstance(file_content.config.get("class_name"), str):
            raise FileUnreadable("is damaged: its config describes no model")
        file_content = replace(
            file_content,
            config=without_training(file_content.config),
            optimizer=_optimizer_config(file_content, library),
        )
        try:
            problem = names.problem(file_content.config, library)
        except names.NotInLibrary as error:
            raise refusal(path, file_content, library.title, error) from None
        if problem := problem or graph.problem(file_content.config, library.called):
            raise FileUnreadable(problem)
    return file_content


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except ModelBudgetError:
        raise
    except FileUnreadable as error:
        separator = " " if str(error).startswith(("is ", "holds ")) else ": "
        raise ModelBudgetError(f"{shown(path)}{separator}{error}") from None
    except Exception as error:  # of damaged bytes, the libraries that read them raise whatever they come upon
        reason = str(error) or type(error).__name__
        raise ModelBudgetError(
            f"{shown(path)} is damaged or truncated: {reason[:300]}. Fetch it again, or save the model again"
        ) from None


def _keras_format(path: Path) -> Content:
    """A `.keras` file, or a folder of its parts."""
    if path.is_dir():
        return _parts(FileParts(path, None))
    with zipfile.ZipFile(path) as archive:
        return _parts(FileParts(path, archive))


def _parts(parts: FileParts) -> Content:
    if _CONFIG not in parts:
        raise FileUnreadable(f"is no .keras file: there is no {_CONFIG} in it")
    config = parts.json(_CONFIG)
    metadata = parts.json(_METADATA) if _METADATA in parts else {}
    stored = None
    if _WEIGHTS in parts:
        with parts.seekable(_WEIGHTS) as raw, hdf5.open_hdf5(raw) as weights:
            stored = hdf5.shapes(weights)
    training = config.get("compile_config") if isinstance(config, dict) else None
    version = metadata.get("keras_version", "?") if isinstance(metadata, dict) else "?"
    return Content(config, False, stored, str(version), _dict_part(training, "optimizer"))


def _dict_part(training: Any, key: str) -> dict[str, Any] | None:
    value = training.get(key) if isinstance(training, dict) else None
    return value if isinstance(value, dict) else None


def _hdf5_format(path: Path) -> Content:
    """A `.h5` file."""
    with path.open("rb") as raw, hdf5.open_hdf5(raw) as file:
        size = path.stat().st_size
        config = hdf5.text(file, "model_config", size)
        if config is None:
            raise FileUnreadable(
                "holds weights only, not the model they are of: name a builder of the model, or save "
                "the whole model with model.save()"
            )
        stored = hdf5.shapes(file, "model_weights")
        training = parse_json((hdf5.text(file, "training_config", size) or "null").encode())
        version = hdf5.text(file, "keras_version", size) or "?"
        return Content(parse_json(config.encode()), True, stored, version, _dict_part(training, "optimizer_config"))


_OPTIMIZER_OF_A_BACKEND = re.compile(r"keras\.src\.backend\.\w+\.optimizers\.\w+")


def _optimizer_config(file_content: Content, library: Library) -> dict[str, Any] | None:
    """The config of the optimizer, None too where it names what Keras must not see: it is no part of the model."""
    config = _with_public_names(file_content.optimizer)
    try:
        return None if names.problem(config, library) else config
    except names.NotInLibrary:
        return None


def _with_public_names(config: Any) -> Any:
    """An optimizer's config with Keras' public name for what each backend has a class of its own for."""
    if not isinstance(config, dict):
        return config
    named = {key: _with_public_names(value) for key, value in config.items()}
    module = named.get("module")
    is_of_backend = isinstance(module, str) and _OPTIMIZER_OF_A_BACKEND.fullmatch(module)
    return {**named, "module": "keras.optimizers"} if is_of_backend else named


def read_from_file(model: Any) -> Any:
    """`model`, marked: its automatic names count what the session that saved it had built."""
    setattr(model, _FROM_FILE, True)
    return model


def is_from_file(model: Any) -> bool:
    """Whether a model was marked by `read_from_file`."""
    return bool(getattr(model, _FROM_FILE, False))
