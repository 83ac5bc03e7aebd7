"""The order of a method's instructions as branches and loops, told by its jumps.

The exporter writes `cond(p, f, g)` as: jump past f where p is false; f; jump past g (where false is false); g. A loop
ends with a jump back to where it begins, and may have one out of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_modelbudget.backends.exported.executorch.container import damaged
from pytest_modelbudget.backends.exported.executorch.program import Call, Instruction, JumpIfFalse, Move, Value

_DEEPEST = 100


@dataclass(frozen=True, slots=True)
class Branch:
    """One of several bodies, by a value."""

    condition: int
    bodies: tuple[tuple[Step, ...], ...]


@dataclass(frozen=True, slots=True)
class Loop:
    """A body that runs a number of times that the file does not say."""

    body: tuple[Step, ...]


Step = Call | Move | Branch | Loop


class _Unstructured(Exception):
    """A jump that is no branch and no loop."""


def steps(chain: Sequence[Instruction], values: Sequence[Value]) -> tuple[Step, ...]:
    """What a chain runs; one loop of all that it has where its jumps are no branches and loops.

    Raises:
        DamagedFile: branches in branches, too deep.
    """
    if not any(isinstance(instruction, JumpIfFalse) for instruction in chain):
        return _plain(chain)
    try:
        return _Parser(chain, values, _jumps_back(chain)).between(0, len(chain), depth=0)
    except _Unstructured:
        return (Loop(_plain(chain)),)


def _plain(chain: Sequence[Instruction]) -> tuple[Step, ...]:
    return tuple(instruction for instruction in chain if isinstance(instruction, (Call, Move)))


def _jumps_back(chain: Sequence[Instruction]) -> Mapping[int, list[int]]:
    """Where a jump back to each instruction is, in order."""
    jumps: dict[int, list[int]] = defaultdict(list)
    for position, instruction in enumerate(chain):
        if isinstance(instruction, JumpIfFalse) and instruction.destination <= position:
            jumps[instruction.destination].append(position)
    return jumps


@dataclass(frozen=True, slots=True)
class _Parser:
    chain: Sequence[Instruction]
    values: Sequence[Value]
    jumps_back: Mapping[int, list[int]]

    def between(self, begin: int, end: int, depth: int, leave: int = -1) -> tuple[Step, ...]:
        """What runs from `begin` to before `end`; `leave` is where the loop around it goes on."""
        if depth > _DEEPEST:
            raise damaged(f"its branches stand in each other more than {_DEEPEST} times")
        steps: list[Step] = []
        position = begin
        while position < end:
            ends = [jump for jump in self.jumps_back.get(position, ()) if jump < end]
            if ends:
                steps.append(Loop(self.between(position, ends[-1], depth + 1, leave=ends[-1] + 1)))
                position = ends[-1] + 1
                continue
            instruction = self.chain[position]
            if not isinstance(instruction, JumpIfFalse):
                steps += _plain([instruction])
                position += 1
            elif instruction.destination == leave:
                position += 1
            else:
                branch, position = self._branch(position, instruction, end, depth, leave)
                steps.append(branch)
        return tuple(steps)

    def _branch(self, position: int, jump: JumpIfFalse, end: int, depth: int, leave: int) -> tuple[Branch, int]:
        """The branch that begins at `position`, and where it ends."""
        other = jump.destination
        if not position < other <= end:
            raise _Unstructured
        past = self.chain[other - 1] if other - 1 > position else None
        if isinstance(past, JumpIfFalse) and self._always(past) and other <= past.destination <= end:
            bodies = ((position + 1, other - 1), (other, past.destination))
        else:
            bodies = ((position + 1, other), (other, other))
        parsed = tuple(self.between(first, last, depth + 1, leave) for first, last in bodies)
        return Branch(jump.condition, parsed), bodies[1][1]

    def _always(self, jump: JumpIfFalse) -> bool:
        return self.values[jump.condition] is False
