"""The one error users see, and the place it points at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written by the user: a file relative to the root, and a line counted from 1."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


class ModelBudgetError(Exception):
    """A mistake the user can mend; the message says what is wrong, where, and how to cure it."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`, did you mean 'params'` for an error about a name that is not known; empty where none is near it."""
    from difflib import get_close_matches  # most runs need none

    by_small_letters = {word.casefold(): word for word in known}
    nearest = get_close_matches(str(name).casefold(), list(by_small_letters), n=1)
    return f", did you mean {by_small_letters[nearest[0]]!r}" if nearest else ""


class TooLarge(ModelBudgetError):
    """A model would have to be run with memory, and its weights take more than may be taken unasked."""


class NotOfFramework(ModelBudgetError):
    """A builder ran as those of `framework` do, which its model is not of: it has to be run as without that one."""

    def __init__(self, framework: str) -> None:
        super().__init__(f"the builder uses {framework}, and its model is of another framework")
        self.framework = framework


class ValuesUnknown(ModelBudgetError):
    """A builder asks for values that it does not get while it runs as those of `framework` do."""

    def __init__(self, framework: str, message: str) -> None:
        super().__init__(message)
        self.framework = framework


class FrameworkMissing(ModelBudgetError):
    """The framework that a model needs is not installed; `framework` is the missing module."""

    def __init__(self, framework: str, message: str) -> None:
        super().__init__(message)
        self.framework = framework
