"""A run in parts, on as many machines: what a part says, its file, who checks what, and the merge that is the gate.

A part is data and never a verdict: what only all models together tell (sums, obsolete snapshots, what the base says,
that there is a model at all) is left to the merge, which refuses parts that are not of one run or not all of it.
"""

from pytest_modelbudget.parts.part import ObsoleteFiles, Part, PartHead, Registered, RunRegistry

__all__ = ["ObsoleteFiles", "Part", "PartHead", "Registered", "RunRegistry"]
