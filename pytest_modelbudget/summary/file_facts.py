"""What is known of a model that is a file, beside its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The file, or the files, that a model is read from.

    `file_bytes` are those of all of them, with weights beside a graph. `operators` are those of the graph and of the
    bodies of its loops and branches, None for a file of weights alone; `delegated` those that a delegate runs, which
    does not say what they are. `arena_bytes` is what a runtime plans for the tensors between operators, with the
    kernels that `arena_kernels` names; weights are not in it. `unseen` names delegates, or
    other files, that hold weights which cannot be seen, so that the params are more than those of the rows.
    """

    file_bytes: int
    operators: int | None = None
    delegated: int | None = None
    arena_bytes: int | None = None
    arena_kernels: str = ""
    unseen: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, without what is not known; `from_dict` reads it back."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) not in (None, "")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FileFacts:
        """Read back what `to_dict` gave; what a later version added is left out."""
        return cls(**{name: data[name] for name in cls.__slots__ if name in data})
