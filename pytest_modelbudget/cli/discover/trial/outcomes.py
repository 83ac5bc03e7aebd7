"""What became of each thing that may build a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class BuildableModel:
    """A model that can be built and counted.

    `args` and `kwargs` are what its builder is called with and `origin` says where they are from, `guessed` which of
    them are guesses. `inputs` and `dims` are nothing for a model that knows its own; `inputs_seen` that they were not
    guessed either.
    """

    reference: str
    is_class: bool
    framework: str
    params: int
    weight_bytes: int
    flops: int | None
    sameness: str
    inputs: Any = None
    dims: dict[str, int] = field(default_factory=dict)
    inputs_seen: bool = False
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    origin: str = ""
    guessed: tuple[str, ...] = ()
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """Something that builds a model and could not be run, with what is known of how; `unknown` arguments are open."""

    reference: str
    why: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    variant: str = ""
    inputs: Any = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that is not registered, and why."""

    what: str
    why: str


Outcome = BuildableModel | Skeleton | LeftOut
