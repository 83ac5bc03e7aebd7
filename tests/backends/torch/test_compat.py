"""Every private name of torch in use is listed with its reason, and is there."""

from __future__ import annotations

import inspect
import re
import sys
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from pytest_modelbudget.backends.torch.private_names import PRIVATE, Private
from tests.backends.torch.private_names import used

PARTS_OF_NAMES = frozenset(
    ("_add", "_add_relu", "_backward", "_cell_dynamic", "_forward", "_get_", "_global_", "_is_in_", "_like", "_mkldnn",
     "_relu", "_set_", "_transpose")
)  # fmt: skip
"""With which names begin or end."""

OF_OTHERS = frozenset(
    ("_asdict", "_attn_implementation_internal", "_filters_mutated", "_filters_mutated_lock_held",
     "_keep_in_fp32_modules", "_local_mapping", "_resolve_parallel_plans", "_tp_plan", "_value")
)  # fmt: skip
"""Of Python, transformers and Keras."""

LISTED = tuple(name for private in PRIVATE for name in private.dotted)

OPERATORS = frozenset(
    part
    for schema in torch._C._jit_get_all_schemas()
    for part in (*schema.name.split("::"), schema.name.split("::")[-1].rstrip("_"), "_wrap_tensor_autograd")
) - {name.rpartition(".")[2] for name in LISTED}
"""Names of operators and their namespaces, which are not private; one of them is registered by Python code."""

VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])


def _covers(listed: str, name: str) -> bool:
    """Whether a listed name is the one in use: that itself, what is in it, what it is in, or its last part."""
    return f"{name}.".startswith(f"{listed}.") or f"{listed}.".startswith(f"{name}.") or listed.endswith(f".{name}")


IN_USE = {name: rooms for name, rooms in used().items() if name not in PARTS_OF_NAMES | OF_OTHERS | OPERATORS}


def test_every_private_name_is_listed() -> None:
    """A name that is new needs a reason, and an answer to what is done in a torch that lacks it."""
    unlisted = {
        name: sorted(rooms) for name, rooms in IN_USE.items() if not any(_covers(listed, name) for listed in LISTED)
    }
    assert unlisted == {}, "list them in backends/torch/private_names.py, or do without them"


def test_each_private_name_is_in_use_in_its_rooms() -> None:
    """A name that nobody uses any more goes from the list."""
    wrong = {private.names: rooms for private in PRIVATE if (rooms := _rooms(private)) != set(private.rooms.split())}
    assert wrong == {}


def test_each_private_name_is_there() -> None:
    """In the torch that is installed, unless it is of other versions."""
    missing = [
        f"{name}, for: {private.why}; without: {private.without}"
        for private in PRIVATE
        if _version(private.since) <= VERSION
        for name in private.dotted
        if not _is_there(private.owner, name)
    ]
    assert missing == [], f"torch {torch.__version__} lacks private names"


def _rooms(private: Private) -> set[str]:
    """The rooms that use one of the names; none when one of them is not in use."""
    users = [
        [rooms for name, rooms in IN_USE.items() if _covers(listed, name) and not listed.startswith(f"{name}.")]
        for listed in private.dotted
    ]
    return set().union(*(rooms for each in users for rooms in each)) if all(users) else set()


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def _is_there(owner: str, name: str) -> bool:
    """Whether the owner has it; what its code sets on objects is found in its module's source."""
    try:
        _found(name)
    except (AttributeError, ImportError):
        with suppress(OSError, TypeError):  # it has no source
            module = sys.modules[getattr(_found(owner), "__module__", owner)]
            return re.search(rf"\b{name.rpartition('.')[2]}\b", inspect.getsource(module)) is not None
        return False
    return True


def _found(name: str) -> Any:
    found: Any = torch
    for at, part in enumerate(parts := name.split(".")):
        if at and not hasattr(found, part) and isinstance(found, ModuleType):
            import_module(".".join(parts[: at + 1]))
        found = getattr(found, part) if at else found
    return found
