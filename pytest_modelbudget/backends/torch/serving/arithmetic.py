"""Plans of passes, put together: the larger one, what is left of one, and what comes beside it."""

from __future__ import annotations

from dataclasses import replace

from pytest_modelbudget.summary import Part, Plan


def larger(*plans: Plan) -> Plan:
    """The one with the highest peak."""
    return max(plans, key=lambda plan: plan.peak_bytes or 0)


def with_work_of(worker: Plan, plan: Plan) -> Plan:
    """`plan` with what the pass of `worker` computes and moves."""
    moved = replace(plan, bytes_moved=worker.bytes_moved, time_bounds=worker.time_bounds)
    return replace(moved, flops=worker.flops, flops_at_least=worker.flops_at_least)


def only_weights(plan: Plan) -> Plan:
    """`plan` of a pass when it is over, and all that it made is let go of."""
    kept = tuple(part for part in plan.parts if part.role in {"param", "buffer"})
    size = sum(part.bytes for part in kept)
    small = replace(plan, peak_bytes=size, reserved_bytes=size, low_bytes=size, high_bytes=size)
    return replace(small, parts=kept, timeline=(), op="")


def with_more(plan: Plan, part: Part, saved: int = 0) -> Plan:
    """`plan` with `part` alive all the time, and weights that take `saved` bytes less."""
    more = part.bytes - saved

    def shifted(number: int | None) -> int | None:
        return None if number is None else number + more

    return replace(
        plan,
        peak_bytes=shifted(plan.peak_bytes),
        reserved_bytes=shifted(plan.reserved_bytes),
        low_bytes=shifted(plan.low_bytes),
        high_bytes=shifted(plan.high_bytes),
        parts=(part, *(_smaller(other, saved) for other in plan.parts)),
        timeline=tuple(replace(point, bytes=point.bytes + more) for point in plan.timeline),
    )


def _smaller(part: Part, saved: int) -> Part:
    """A part of a plan, weights that take `saved` bytes less."""
    return replace(part, bytes=part.bytes - saved) if part.role == "param" and not part.path else part
