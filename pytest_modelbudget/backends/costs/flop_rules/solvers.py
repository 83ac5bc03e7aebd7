"""Triangular systems."""

from __future__ import annotations

from math import prod

from pytest_modelbudget.backends.costs.flop_rule import OperatorCall, flop_rule


@flop_rule(
    torch="aten.linalg_solve_triangular",
    keras="ops.SolveTriangular",
    jax="triangular_solve",
    tensorflow="MatrixTriangularSolve BatchMatrixTriangularSolve",
    matrix=0,
)
@flop_rule(torch="aten.triangular_solve", matrix=1)
@flop_rule(torch="aten.linalg_lu_solve aten.linalg_ldl_solve", matrix=0, systems=2)
@flop_rule(torch="aten.cholesky_solve aten._cholesky_solve_helper", matrix=1, systems=2)
def triangular_systems(call: OperatorCall, *, matrix: int, systems: int = 1) -> int:
    """n^2 for each column of n unknowns; a matrix that is given by its factors is two systems.

    n (n + 1) / 2 products and divisions and n (n - 1) / 2 sums: Golub and Van Loan, Matrix Computations, 3.1.
    """
    return systems * prod(call.outputs[0]) * call.inputs[matrix][-1]


@flop_rule(tensorflow="BandedTriangularSolve")
def banded_system(call: OperatorCall) -> int:
    """Row i of a matrix `(.., bands, n)` has min(i, bands) elements: a division, and a multiply-add for each other."""
    bands, unknowns = call.inputs[0][-2:]
    full_rows = min(bands, unknowns)
    row_flops = full_rows**2 + (unknowns - full_rows) * (2 * full_rows - 1)
    return row_flops * prod(call.outputs[0]) // max(unknowns, 1)
