"""`MODELBUDGET_DEBUG`: what each layer of the torch engine did, on standard error, and its shortcuts switched off.

A comma-separated list. Each topic is written out, `all` stands for all of them; `no-` before a shortcut has the engine
go without it. A shape that a shortcut gets wrong is right without that one, so two runs tell which it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TextIO

from pytest_modelbudget.errors import ModelBudgetError

VARIABLE = "MODELBUDGET_DEBUG"

TOPICS = ("trace", "replay", "cache", "rules", "memory")
"""Calls of modules, repeated blocks, remembered results of operators, shape rules, and the events of a recording."""

SHORTCUTS = ("replay", "cache", "rules")
"""What spares the engine to ask torch."""

_ALL, _WITHOUT = "all", "no-"
WORDS = (*TOPICS, _ALL, *(f"{_WITHOUT}{shortcut}" for shortcut in SHORTCUTS))


@dataclass(frozen=True, slots=True)
class Debug:
    """The topics that are written out, and the shortcuts that are not taken."""

    topics: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()


@cache
def parse(text: str) -> Debug:
    """What the variable asks for.

    Raises:
        ModelBudgetError: one of its words is unknown.
    """
    words = frozenset(word for part in text.lower().split(",") if (word := part.strip()))
    if unknown := sorted(words - set(WORDS)):
        raise ModelBudgetError(f"{VARIABLE}: unknown: {', '.join(unknown)}\n  it takes {', '.join(WORDS)}")
    topics = frozenset(TOPICS) if _ALL in words else words.intersection(TOPICS)
    return Debug(topics, frozenset(shortcut for shortcut in SHORTCUTS if f"{_WITHOUT}{shortcut}" in words))


def current() -> Debug:
    """What the environment asks for now; see `parse`."""
    return parse(os.environ.get(VARIABLE, ""))


_STREAMS: list[TextIO] = []
"""Where lines go, the last one; else to standard error."""


@contextmanager
def lines_to(stream: TextIO) -> Iterator[None]:
    """Inside, lines go to `stream`: standard error is the user's code's, and may be kept apart."""
    _STREAMS.append(stream)
    try:
        yield
    finally:
        _STREAMS.remove(stream)


def write(text: str) -> None:
    """Write lines; that nobody takes them is no error of the model's."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or None where there is no standard error
        (_STREAMS[-1] if _STREAMS else sys.stderr).write(text)


def log_of_model() -> DebugLog | None:
    """A log for one model; None when nothing is asked for."""
    debug = current()
    return DebugLog(debug) if debug != Debug() else None


class DebugLog:
    """Writes lines of the topics that are asked for, each with the layer at work."""

    def __init__(self, debug: Debug) -> None:
        self.debug = debug
        self._layer = "(model)"

    def shows(self, topic: str) -> bool:
        """Whether lines of a topic are written."""
        return topic in self.debug.topics

    def uses(self, shortcut: str) -> bool:
        """Whether a shortcut is taken."""
        return shortcut not in self.debug.without

    def write(self, topic: str, text: str) -> None:
        """Write a line, where its topic is asked for."""
        if self.shows(topic):
            write(f"modelbudget {topic:<6} | {self._layer} | {text}\n")

    @contextmanager
    def inside(self, layer: str) -> Iterator[None]:
        """Inside, `layer` is at work."""
        before, self._layer = self._layer, layer or "(model)"
        try:
            yield
        finally:
            self._layer = before
