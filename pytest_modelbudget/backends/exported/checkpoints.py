"""Which part of what `torch.save` wrote is the model: all of it, or what a checkpoint has under a known key.

Where a checkpoint does not say it, none is taken: a part that is not the model has a count too, which looks like one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice

from pytest_modelbudget.backends.exported.torch_tensors import Tensor
from pytest_modelbudget.backends.model_files import DamagedFile

_MODEL_KEYS = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params",
)  # fmt: skip
"""Under which a checkpoint has its model; of several the first one is read."""

_OF_TRAINING = re.compile(r"optim|sched|callback|scaler|(^|_)(rngs?|random|amp|apex|loops?)(_|$)", re.IGNORECASE)
"""Keys of parts that a checkpoint has of the run, never of the model."""

_EXTRA_STATE = "_extra_state"
"""How `torch.nn.Module.get_extra_state` is named in a state dict, whatever it returns."""

_DEEPEST = 4


def model_in(content: object) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of the model in what was saved, and notes that name what else is there.

    Raises:
        DamagedFile: nothing there is a model, or several parts may be.
    """
    if isinstance(content, Tensor):
        raise DamagedFile("is a single tensor, not a model: save model.state_dict()")
    if not isinstance(content, dict):
        raise DamagedFile("holds no mapping of tensors: save model.state_dict()")
    return _model_in(content, (), _holders(content))


def tensors_of(value: object) -> dict[str, Tensor]:
    """The tensors that a mapping has by names."""
    if not isinstance(value, dict):
        return {}
    return {name: tensor for name, tensor in value.items() if isinstance(name, str) and isinstance(tensor, Tensor)}


def _model_in(
    content: Mapping[object, object], path: tuple[str, ...], holders: frozenset[int]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """`path` are the keys under which `content` is, `holders` the containers that hold tensors."""
    parts = {key: value for key, value in content.items() if id(value) in holders and not _is_extra_state(key)}
    tensors = tensors_of(content)
    key = _model_key(parts, tensors)
    if key is not None and len(path) < _DEEPEST and isinstance(part := parts[key], dict):
        inner, notes = _model_in(part, (*path, key), holders)
        return inner, (*_note_of_others((*path, key), {name: content[name] for name in content if name != key}), *notes)
    others = {name: value for name, value in content.items() if name not in tensors}
    if parts or not tensors or any(_is_of_training(name) or isinstance(others[name], Tensor) for name in others):
        raise _ambiguous(parts, tensors, path, holders)
    return tensors, tuple(_note_of_others((), others))


def _model_key(parts: Mapping[object, object], tensors: Mapping[str, Tensor]) -> str | None:
    """The key of the model: a known one, or that of the only state dict where nothing else holds tensors."""
    known = [key for key in _MODEL_KEYS if isinstance(parts.get(key), dict)]
    if known:
        return known[0]
    candidates = [key for key in parts if not _is_of_training(key)]
    if tensors or len(candidates) != 1 or not tensors_of(parts[candidates[0]]):
        return None
    return candidates[0] if isinstance(candidates[0], str) else None


def _is_of_training(key: object) -> bool:
    return isinstance(key, str) and not _is_extra_state(key) and _OF_TRAINING.search(key) is not None


def _is_extra_state(key: object) -> bool:
    return isinstance(key, str) and key.endswith(_EXTRA_STATE)


def _ambiguous(
    parts: Mapping[object, object], tensors: Mapping[str, Tensor], path: tuple[str, ...], holders: frozenset[int]
) -> DamagedFile:
    """Why no part is taken, with the names of those that hold tensors, down to the second level."""
    names = [*tensors, *(name for key, value in parts.items() for name in _names(key, value, holders))]
    shown = ", ".join(repr(".".join((*path, name))[:100]) for name in islice(names, 5)) or "none"
    more = ", ..." if len(names) > 5 else ""
    return DamagedFile(
        f"does not say which part is the model (with tensors: {shown}{more}): save the model's state_dict alone"
    )


def _names(key: object, value: object, holders: frozenset[int]) -> list[str]:
    """The name of a part; where tensors are only in parts of it, theirs."""
    if not isinstance(value, dict) or tensors_of(value) or _is_of_training(key):
        return [str(key)]
    return [f"{key}.{name}" for name, inner in value.items() if id(inner) in holders]


def _note_of_others(path: tuple[str, ...], others: Mapping[object, object]) -> Iterator[str]:
    """What is not counted, tensors first."""
    if others:
        names = [str(name)[:50] for name in sorted(others, key=lambda name: not isinstance(others[name], Tensor))]
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        is_part = f"the model is what the checkpoint has as {'.'.join(path)[:200]}; " if path else ""
        yield f"{is_part}not counted: {shown}"


def _holders(content: Mapping[object, object]) -> frozenset[int]:
    """The ids of all containers in `content` that hold a tensor at any depth, in time that grows with their size."""
    around: dict[int, list[int]] = defaultdict(list)
    pending: list[object] = [content]
    holding: list[int] = []
    while pending:
        container = pending.pop()
        for item in _items(container):
            if isinstance(item, Tensor):
                holding.append(id(container))
            elif isinstance(item, (dict, list, tuple)):
                if id(item) not in around:
                    pending.append(item)
                around[id(item)].append(id(container))
    visited = set[int]()
    while holding:
        if (holder := holding.pop()) not in visited:
            visited.add(holder)
            holding.extend(around.get(holder, ()))
    return frozenset(visited)


def _items(container: object) -> Iterator[object]:
    if isinstance(container, dict):
        yield from container.values()
    elif isinstance(container, (list, tuple)):
        yield from container
