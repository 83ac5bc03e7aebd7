"""A file against the model it was exported from: each difference has its cause, and the causes add up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_modelbudget.budget import judge, parse
from pytest_modelbudget.budget.limits import Budget
from pytest_modelbudget.diff import changes
from pytest_modelbudget.diff.exports import export_of
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Export, FileFacts, Flops, Input, Layer, Summary, TensorSpec, Weight
from pytest_modelbudget.summary.metrics import METRICS
from pytest_modelbudget.summary.show.exports import export_lines
from pytest_modelbudget.summary.totals import Totals

KERNEL, TABLE = Weight("weight", (8, 3, 3, 3)), Weight("weight", (100, 16))
NORM = (Weight("weight", (8,)), Weight("bias", (8,)), Weight("running_mean", (8,), role="buffer"))
MODEL = Summary(
    "net",
    "torch",
    (
        Layer("conv", "Conv2d", weights=(KERNEL,), flops=1000),
        Layer("bn", "BatchNorm2d", weights=NORM),
        Layer("wte", "Embedding", weights=(TABLE,)),
        Layer("head", "Linear", weights=(replace(TABLE, tied_to="wte.weight"),), flops=3200),
    ),
    (Input("x", TensorSpec(("B", 3, 8, 8))),),
    (TensorSpec(("B", 100)),),
    Flops(4200),
    sizes=(("B", 1),),
)


def file(*layers: Layer, **fields: object) -> Summary:
    made = replace(MODEL, model="f", framework="onnx", layers=layers, **{"file": FileFacts(5000), **fields})  # type: ignore[arg-type]
    return replace(made, flops=Flops(sum(layer.flops or 0 for layer in layers)))


CONV = Layer("conv", "Conv", weights=(replace(KERNEL, trainable=False),), flops=1000)
BIASED = replace(CONV, weights=(*CONV.weights, Weight("bias", (8,))))
EMBEDDING = Layer("wte", "Gather", weights=(TABLE,))
HEAD = Layer("head", "Gemm", weights=(replace(TABLE, tied_to="wte.weight"),), flops=3200)
NORM_ROW = MODEL.layers[1]
INT8 = replace(KERNEL, dtype="int8")


@pytest.mark.parametrize(
    ("layers", "causes"),
    [
        pytest.param(
            (BIASED, EMBEDDING, HEAD),
            {"batch norms folded into the layers before": (-8, -64)},
            id="a folded batch norm",
        ),
        pytest.param((CONV, NORM_ROW, EMBEDDING, HEAD), {}, id="nothing"),
        pytest.param(
            (CONV, NORM_ROW, EMBEDDING, replace(HEAD, weights=(replace(TABLE, name="w"),))),
            {"head.w written twice": (1600, 6400)},
            id="a tied matrix written twice",
        ),
        pytest.param(
            (CONV, NORM_ROW, EMBEDDING, replace(HEAD, weights=(replace(TABLE, name="w", shape=(16, 100)),))),
            {"head.w written twice": (1600, 6400)},
            id="written twice and turned",
        ),
        pytest.param(
            (
                replace(CONV, weights=(INT8, Weight("scale", (8,), role="buffer"))),
                NORM_ROW,
                replace(EMBEDDING, weights=(replace(TABLE, dtype="int8"),)),
                HEAD,
            ),
            {"float32 -> int8": (0, -3 * 216 - 3 * 1600), "scales, zero points and other constants": (0, 32)},
            id="quantised",
        ),
        pytest.param(
            (CONV, replace(NORM_ROW, weights=NORM[:1]), EMBEDDING, HEAD),
            {"bias of BatchNorm2d not in the file": (-8, -32), "running_mean of BatchNorm2d not in the file": (0, -32)},
            id="tensors that were left out",
        ),
        pytest.param(
            (replace(CONV, weights=(replace(KERNEL, name="w", shape=(24, 9)),)), NORM_ROW, EMBEDDING, HEAD),
            {},
            id="another shape",
        ),
        pytest.param(
            (
                replace(CONV, path="m.conv"),
                replace(NORM_ROW, path="m.bn"),
                Layer("Gather_1", "Gather", weights=(replace(TABLE, name="onnx::w"),)),
                replace(HEAD, path="m.head", weights=()),
            ),
            {},
            id="other names",
        ),
    ],
)
def test_each_difference_of_weights_has_its_cause(
    layers: tuple[Layer, ...], causes: dict[str, tuple[int, int]]
) -> None:
    exported = file(*layers)
    export = export_of(MODEL, exported)
    for position, metric in enumerate(("params", "weight_bytes")):
        amounts = {cause.label: cause.amount for cause in export.causes_of(metric)}
        assert amounts == {label: amount[position] for label, amount in causes.items() if amount[position]}
        assert sum(amounts.values()) == getattr(exported, metric) - getattr(MODEL, metric)


def test_a_matrix_that_kept_its_dtype_among_quantised_ones_is_named() -> None:
    exported = file(replace(CONV, weights=(INT8,)), NORM_ROW, EMBEDDING, HEAD)
    assert export_of(MODEL, exported).notes == ("float32 where int8 was meant: 1 of 2 weights, 6.250 KiB (wte.weight)",)


@pytest.mark.parametrize(
    ("layers", "causes"),
    [
        ((CONV, EMBEDDING, replace(HEAD, flops=3600)), {"head": 400}),
        ((CONV, EMBEDDING, Layer("MatMul_7", "MatMul", flops=3300)), {"Linear (model)": -3200, "MatMul (file)": 3300}),
        ((CONV, EMBEDDING, Layer("MatMul_7", "MatMul", flops=3200)), {}),
    ],
)
def test_flops_differ_by_row_and_by_type(layers: tuple[Layer, ...], causes: dict[str, int]) -> None:
    export = export_of(MODEL, file(*layers))
    assert {cause.label: cause.amount for cause in export.causes_of("flops")} == causes


def test_inputs_and_outputs_that_differ_are_told_one_by_one() -> None:
    exported = file(
        *MODEL.layers, inputs=(Input("input.1", TensorSpec((1, 3, 8, 8))),), outputs=(TensorSpec((1, 100)),)
    )
    assert export_of(MODEL, exported).notes == (
        "input: x float32[B, 3, 8, 8] -> input.1 float32[1, 3, 8, 8]",
        "output: float32[B, 100] -> float32[1, 100]",
    )


@pytest.mark.parametrize(
    ("shape", "size", "compared"),
    [((1, 3, 8, 8), 1, True), (("B", 3, 8, 8), 1, True), ((2, 3, 8, 8), 1, False), (("N", 3, 8, 8), 4, False), ((1, 3, 16, 16), 1, False)],
)  # fmt: skip
def test_flops_are_compared_at_the_same_inputs_alone(shape: tuple[int | str, ...], size: int, compared: bool) -> None:
    """Else neither is blamed, and a limit on them is not known to hold."""
    sizes = tuple((dim, size) for dim in shape if isinstance(dim, str))
    layers = (CONV, EMBEDDING, replace(HEAD, flops=3600))
    export = export_of(MODEL, file(*layers, inputs=(Input("x", TensorSpec(shape)),), sizes=sizes))
    note = "FLOPs are not compared: the file and the model get inputs of other sizes"
    assert (export.numbers["flops"], bool(export.causes_of("flops")), note in export.notes) == (
        (4200, True, False) if compared else (None, False, True)
    )


def test_a_lower_bound_has_no_causes() -> None:
    exported = replace(file(CONV, EMBEDDING), flops=Flops(1000, (("MatMul", 1),)))
    export = export_of(MODEL, exported)
    assert export.causes_of("flops") == ()
    assert export.notes == ("FLOPs of the file are a lower bound: not known of MatMul x1",)


def test_a_batch_norm_that_is_never_called_is_not_folded() -> None:
    model = replace(MODEL, layers=(*MODEL.layers[:1], replace(NORM_ROW, calls=0), *MODEL.layers[2:]))
    labels = {cause.label for cause in export_of(model, file(CONV, EMBEDDING, HEAD)).causes}
    assert labels == {f"{name} of BatchNorm2d not in the file" for name in ("weight", "bias", "running_mean")}


def limits(section: object) -> list[Budget]:
    rules = parse({"export": section}, lambda _: None)
    return [rule for rule in rules if isinstance(rule, Budget)]


@pytest.mark.parametrize(
    ("section", "broken"),
    [
        ({"weight_bytes": "100%"}, []),
        (
            {"weight_bytes": "26%", "params": "+0.4%"},
            [
                "weight_bytes of the export: 13,696 bytes, 186.087% of the 7,360 bytes of net; 26% is allowed: "
                "head.w written twice +6,400, batch norms folded into the layers before -64",
            ],
        ),
    ],
)
def test_limits_hold_a_file_against_its_model(section: object, broken: list[str]) -> None:
    """The bytes by hand: 4 * (216 + 24 + 1600) of the model, 4 * (216 + 8 + 2 * 1600) of the file."""
    twice = file(BIASED, EMBEDDING, replace(HEAD, weights=(replace(TABLE, name="w"),)))
    exported = file(BIASED, EMBEDDING, HEAD) if broken == [] else twice
    violations, _ = judge(replace(exported, export=export_of(MODEL, exported)), limits(section))
    assert [str(violation) for violation in violations][:1] == broken


@pytest.mark.parametrize(
    ("export", "reason"),
    [
        (None, "exported_from does not say which model"),
        (Export("net", {}, problem="net cannot be counted: boom"), "net cannot be counted: boom"),
        (Export("net", {"flops": None}), "flops of net is not known"),
    ],
)
def test_what_cannot_be_compared_breaks_a_limit_with_the_reason(export: Export | None, reason: str) -> None:
    [violation], _ = judge(replace(file(CONV), export=export), limits({"flops": "+1%"}))
    assert (violation.actual, violation.severity) == (None, "fail")
    assert reason in str(violation)


@pytest.mark.parametrize("section", [{"layers": "5%"}, {"flops": 5}, {"flops": "1 GFLOPs"}, [], {"flops": "-5%"}])
def test_a_section_that_is_none_says_how_to_write_one(section: object) -> None:
    with pytest.raises(ModelBudgetError, match=r"budgets\.export.*(write export|known are)"):
        limits(section)


def test_lines_have_both_numbers_and_survive_json() -> None:
    exported = file(BIASED, EMBEDDING, HEAD)
    export = Export.from_dict(export_of(MODEL, exported).to_dict())
    assert list(export_lines(export, exported)) == [
        ("Exported from", "net"),
        ("  params", "1,824 of 1,832 (-0.4%): batch norms folded into the layers before -8"),
        ("  weight_bytes", "7,296 bytes of 7,360 bytes (-0.9%): batch norms folded into the layers before -64"),
        ("  flops", "4,200 FLOPs, the same"),
    ]


def test_a_file_with_weights_that_cannot_be_seen_is_compared_by_those_that_can() -> None:
    """Its metrics are not known; what its rows have is compared with its snapshot as everywhere."""
    before = file(CONV, EMBEDDING, HEAD, file=FileFacts(5000, unseen="CoreMLBackend"))
    after = replace(before, layers=(BIASED, EMBEDDING, HEAD))
    assert METRICS["params"].get(after) is None
    for sides in ((before, after), (Totals.of(before), Totals.of(after))):
        assert "params 1,816 -> 1,824" in " ".join(map(str, changes(*sides)))
