"""From the memory of a graph to a plan, with all that is not known of it."""

from __future__ import annotations

from dataclasses import replace

from pytest_modelbudget.backends.tf_memory.liveness import GraphMemory
from pytest_modelbudget.backends.tf_memory.rounds import MOST_NODES
from pytest_modelbudget.planner import Recipe, Training
from pytest_modelbudget.planner.recipe import describe
from pytest_modelbudget.planner.timeline import plan_of
from pytest_modelbudget.summary import Kind, Plan

EXECUTOR_NOTE = (
    "compile: none: what TensorFlow's executor takes on a CPU without XLA and oneDNN, with one thread between "
    "operators (inter_op_parallelism_threads); steps with two took 19 % less to 20 % more; with XLA (jit_compile) "
    "the peak is another one"
)
PACKING_NOTE = (
    "operands that matrix products and convolutions pack are counted as on two threads of a processor with 1 MiB of "
    "second-level cache"
)
ONEDNN_NOTE = (
    "TensorFlow fuses operators for oneDNN in this process, and on other processors it may not: plans are held against "
    "steps with TF_ENABLE_ONEDNN_OPTS=0 in the environment"
)
LOOP_NOTE = (
    "in loops the order of operators depends on how long they take: the peak is the higher one of two extremes, and "
    "the orders that were followed take {:,} to {:,} bytes"
)
ORDER_NOTE = (
    "what becomes ready together runs in another order in each process: the peak is that of the order in the middle, "
    "and the {} that were followed take {:,} to {:,} bytes"
)
XLA_NOTE = "not planned: with compile: xla the compiler decides what is alive at once; compile: none is planned"

LEAST_SHARE = 0.01
"""Share of the peak from which on it matters that there is no rule for a kernel, or that orders differ."""


def plan_of_graph(memory: GraphMemory, recipe: Recipe, *, xla: bool) -> Plan:
    """The plan of a run whose graph is known; without a peak where that is not known, and then with the reason first.

    What XLA takes is not known.
    """
    kind: Kind = "training" if isinstance(recipe, Training) else "inference"
    assumed = (EXECUTOR_NOTE, PACKING_NOTE, *([ONEDNN_NOTE] if memory.for_onednn else []))
    plan = plan_of(memory.trace, kind, describe(recipe))
    reason = XLA_NOTE if xla else _reason(memory, plan.peak_bytes or 0)
    if not reason:
        return replace(plan, notes=(*assumed, *_of_orders(memory, plan.peak_bytes or 0)))
    parts = tuple(part for part in plan.parts if part.role in ("param", "buffer", "optimizer", "input"))
    held_bytes = sum(part.bytes for part in parts)
    runs_too_soon = bool(memory.open_loops or memory.too_long_loops)  # what waits for the end of a loop
    low = held_bytes if xla or runs_too_soon else memory.lowest
    notes = (reason,) if xla else (reason, *assumed)
    return Plan(kind, describe(recipe), None, low_bytes=low, parts=parts, notes=notes)


def _of_orders(memory: GraphMemory, peak: int) -> list[str]:
    """What is to be said of other orders."""
    if memory.has_loops:
        return [LOOP_NOTE.format(memory.lowest, memory.highest)]
    differ = memory.highest - memory.lowest > LEAST_SHARE * peak
    return [ORDER_NOTE.format(memory.orders, memory.lowest, memory.highest)] if differ else []


def _reason(memory: GraphMemory, peak: int) -> str:
    """Why the peak is not known; empty where it is."""
    if memory.too_long_loops:  # loops that need what these give are open because of them
        names = ", ".join(sorted(set(memory.too_long_loops)))
        return (
            f"the peak is not known: the rounds of the loop {names} are more than the {MOST_NODES:,} operators that "
            "are followed: plan fewer rounds"
        )
    if memory.open_loops:
        names = ", ".join(sorted(set(memory.open_loops)))
        return f"the peak is not known: only values would tell how often the loop {names} runs"
    if memory.open_sizes:
        names = ", ".join(sorted(memory.open_sizes))
        return f"the peak is at least {memory.lowest:,} bytes: without values the sizes of {names} are not known"
    if memory.unfolded_by_cache:
        names = ", ".join(memory.unfolded_by_cache)
        return (
            f"the peak is at least {memory.lowest:,} bytes: how many volumes {names} unfold at a time goes by the "
            "last cache of the processor"
        )
    without = {name: size for name, size in memory.without_rule.items() if size >= LEAST_SHARE * peak or not size}
    if without:
        names = ", ".join(sorted(without))
        is_fused = memory.for_onednn and any(name.startswith("_") for name in without)  # by TensorFlow's optimizer
        cure = ": set TF_ENABLE_ONEDNN_OPTS=0 in the environment, which leaves them apart" if is_fused else ""
        return f"the peak is not known: what TensorFlow's kernels {names} do with memory has no rule here{cure}"
    return ""
