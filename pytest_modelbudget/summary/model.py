"""Rows and whole summaries, and both as plain JSON data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from pytest_modelbudget import units
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary.export import Export
from pytest_modelbudget.summary.file_facts import FileFacts
from pytest_modelbudget.summary.growth import Growth
from pytest_modelbudget.summary.plan import Kind, Plan
from pytest_modelbudget.summary.tensors import TensorSpec, Weight, weight_text

FLOP_RULES = 2
"""Version of the rules by which FLOPs are counted; raised when a release counts the same model differently."""

_MOST_DIGITS = 30


@dataclass(frozen=True, slots=True)
class Layer:
    """One row: a module of the model with the weights it holds itself, or a join of tensors in a module's own code.

    `path` is unique in a model; `container` rows hold other rows (those whose path begins with theirs) and
    come before them. `outputs` are the output tensors of each call, `inputs` those it was given, and `connected_to`
    the paths that fed it, all with equal calls listed once, in the order first seen; `calls` counts all calls, 0
    means never called (None: not known). `flops` are of all calls, its own work without that of the rows below it.
    `activation_bytes` is memory held for the backward pass, at the innermost module whose call saved it first (what
    a join saved is at the module it stands in).

    A join (`block.add` of type `add`, as a residual sum) is a leaf as Keras' Add and Concatenate are: it has no
    weights, and counts as a layer. `inputs` take no part in snapshots and comparisons.
    """

    path: str
    type: str
    outputs: tuple[tuple[TensorSpec, ...], ...] = ()
    connected_to: tuple[tuple[str, ...], ...] = ()
    weights: tuple[Weight, ...] = ()
    calls: int | None = 1
    flops: int | None = None
    container: bool = False
    inputs: tuple[tuple[TensorSpec, ...], ...] = ()
    activation_bytes: int | None = None
    _elements: tuple[int, int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_elements", _elements(self.weights))  # asked for a dozen times in a run

    def __repr__(self) -> str:
        output = f" {self.output_text}" if self.outputs else ""
        return f"<Layer {self.path!r:.80} ({self.type:.40}){output:.80}: {self.params:,} params>"

    @property
    def own(self) -> tuple[Weight, ...]:
        """The weights that count here: all that are not tied to an earlier one."""
        return tuple(weight for weight in self.weights if weight.tied_to is None)

    @property
    def params(self) -> int:
        """Elements of its own parameters, tied ones counted at their owner."""
        return self._elements[0]

    @property
    def trainable_params(self) -> int:
        """Elements of its own parameters that are trained."""
        return self._elements[1]

    @property
    def non_trainable_params(self) -> int:
        """Elements of its own parameters that are frozen (and Keras' moving averages)."""
        return self.params - self.trainable_params

    @property
    def buffers(self) -> int:
        """Elements of its own buffers."""
        return self._elements[2]

    @property
    def weight_bytes(self) -> int:
        """Bytes of its own parameters and buffers."""
        return sum(weight.bytes for weight in self.weights if weight.tied_to is None)

    @property
    def output_text(self) -> str:
        """All outputs: tensors of one call joined by `, `, different calls by `; `."""
        return "; ".join(", ".join(spec.brief for spec in call) for call in self.outputs)

    @property
    def weights_text(self) -> str:
        """Where the params come from: `kernel 3x3x3x32 + bias 32`."""
        return " + ".join(weight_text(weight) for weight in self.weights)


def _elements(weights: tuple[Weight, ...]) -> tuple[int, int, int]:
    """Elements of the params, of those that are trained, and of the buffers; tied ones count at their owner."""
    params = trained = buffers = 0
    for weight in weights:
        if weight.tied_to is not None:
            continue
        elements = weight.elements
        if weight.role == "buffer":
            buffers += elements
            continue
        params += elements
        trained += elements if weight.trainable else 0
    return params, trained, buffers


@dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs of one forward pass at the declared inputs; a multiply-add counts 2.

    Counted: matrix products, convolutions, attention (the full square), recurrent products times their
    steps, FFTs. Zero by rule: elementwise work, normalisation, softmax, pooling, look-ups, views, copies.
    `value` is None when nothing is known. `uncounted` names operators without a formula, with their number
    of calls: then `value` is a lower bound.
    """

    value: int | None = None
    uncounted: tuple[tuple[str, int], ...] = ()
    rules: int = FLOP_RULES

    @property
    def is_lower_bound(self) -> bool:
        """Whether an operator without a formula was met, so that the true number is at least `value`."""
        return self.value is not None and bool(self.uncounted)


@dataclass(frozen=True, slots=True)
class Input:
    """One declared input: its name (or position) and its tensor."""

    name: str
    spec: TensorSpec

    def __str__(self) -> str:
        return f"{self.name} {self.spec}"


@dataclass(frozen=True, slots=True)
class Summary:
    """A model as it was counted: its rows, and totals derived from them.

    `sizes` are the sizes its symbolic dimensions had while FLOPs were counted. `activation_bytes` are those that
    one forward pass in training mode holds for the backward pass at these sizes, without parameters, buffers and
    inputs; they depend on the kernels of the framework, so they take no part in comparisons, and they may be more than
    those of all rows, since the model's own code around its layers may have no row. `optimizer_bytes` are those of all
    variables of the optimizer a model is compiled with, None where there is none; never part of params. `real_run` says
    that the abstract pass could not decide and a copy was run with memory instead. `notes` are short sentences for the
    reader (what could not be known, and why a copy was run). `plans` say what runs of it take of a device's memory,
    `growth` how its numbers follow its dimensions. None of the five takes part in comparisons. `file` is there for a
    model that is an exported file, and does; `export` says how it stands to the model that it was made from.
    """

    model: str
    framework: str
    layers: tuple[Layer, ...]
    inputs: tuple[Input, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    flops: Flops = field(default_factory=Flops)
    samples: int | None = None
    sizes: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()
    activation_bytes: int | None = None
    real_run: bool = False
    optimizer_bytes: int | None = None
    plans: tuple[Plan, ...] = ()
    growth: tuple[Growth, ...] = ()
    file: FileFacts | None = None
    export: Export | None = None

    def __post_init__(self) -> None:
        if len({layer.path for layer in self.layers}) != len(self.layers):
            raise ModelBudgetError(f"{self.model}: two layers have the same path")

    @property
    def params(self) -> int:
        """Elements of all parameters, each shared one once."""
        return sum(layer.params for layer in self.layers)

    @property
    def trainable_params(self) -> int:
        """Elements of the parameters that are trained."""
        return sum(layer.trainable_params for layer in self.layers)

    @property
    def non_trainable_params(self) -> int:
        """Elements of the frozen parameters (and Keras' moving averages)."""
        return self.params - self.trainable_params

    @property
    def buffers(self) -> int:
        """Elements of torch buffers, persistent or not, and of scales and the like beside quantised Keras weights."""
        return sum(layer.buffers for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of parameters and buffers in their own dtypes."""
        return sum(layer.weight_bytes for layer in self.layers)

    @property
    def leaves(self) -> tuple[Layer, ...]:
        """The rows that hold no other rows."""
        return tuple(layer for layer in self.layers if not layer.container)

    @property
    def leaf_count(self) -> int:
        """How many rows hold no other rows."""
        return sum(not layer.container for layer in self.layers)

    @property
    def largest_layer(self) -> Layer | None:
        """The row with most params of its own, the first of equals; None when there are none."""
        return max(self.layers, key=lambda layer: layer.params, default=None) if self.params else None

    @property
    def largest_layer_share(self) -> Fraction | None:
        """Share of the params that sit in the largest layer; None for a model without params."""
        return Fraction(largest.params, self.params) if (largest := self.largest_layer) else None

    @property
    def params_per_sample(self) -> Fraction | None:
        """Params for each sample of the training set; None when `samples` was not given."""
        return Fraction(self.params, self.samples) if self.samples else None

    @property
    def non_embedding_params(self) -> int | None:
        """Params but for those of look-up tables and of heads tied to one; None where it cannot be told what is one."""
        from pytest_modelbudget.summary import embeddings  # it looks at summaries

        return embeddings.params_outside(self)

    @property
    def brief(self) -> str:
        """Its main numbers in one line: `38,720 params, 79.04 MFLOPs, 2 layers, training peak 2.607 MiB`."""
        layers = f"{len(self.leaves):,} layer{'' if len(self.leaves) == 1 else 's'}"
        flops = "? FLOPs" if self.flops.value is None else units.flops(self.flops.value)
        peaks = (
            f"{plan.kind} peak {'?' if plan.peak_bytes is None else units.size(plan.peak_bytes)}" for plan in self.plans
        )
        bound = ">= " if self.flops.is_lower_bound else ""
        params = "? params" if self.file and self.file.unseen else f"{self.params:,} params"
        return ", ".join((params, f"{bound}{flops}", layers, *peaks))

    def plan(self, kind: Kind) -> Plan | None:
        """The plan of its training, its inference or its serving; None when none was asked for."""
        return next((plan for plan in self.plans if plan.kind == kind), None)

    def below(self, path: str) -> Iterator[Layer]:
        """The row at `path` and, for a container, all rows inside it."""
        for layer in self.layers:
            if layer.path == path or layer.path.startswith((f"{path}.", f"{path}/")):
                yield layer

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: totals first, then every row; `from_dict` reads it back."""
        return {
            "model": self.model,
            "framework": self.framework,
            "inputs": [{"name": port.name, "spec": str(port.spec)} for port in self.inputs],
            "outputs": [str(spec) for spec in self.outputs],
            "sizes": dict(self.sizes),
            "params": self.params,
            "trainable_params": self.trainable_params,
            "non_trainable_params": self.non_trainable_params,
            "buffers": self.buffers,
            "weight_bytes": self.weight_bytes,
            "flops": {"rules": self.flops.rules, "value": self.flops.value, "uncounted": dict(self.flops.uncounted)},
            "activation_bytes": self.activation_bytes,
            "optimizer_bytes": self.optimizer_bytes,
            "samples": self.samples,
            "real_run": self.real_run,
            "notes": list(self.notes),
            **({} if self.file is None else {"file": self.file.to_dict()}),
            **({} if self.export is None else {"export": self.export.to_dict()}),
            "plans": [plan.to_dict() for plan in self.plans],
            "growth": [growth.to_dict() for growth in self.growth],
            "layers": [_layer_dict(layer) for layer in self.layers],
        }

    def to_dataframe(self) -> Any:
        """Its rows as a pandas DataFrame, with the columns of `modelbudget show --csv`; unknown numbers are missing.

        Raises:
            ModelBudgetError: pandas is not installed.
        """
        from pytest_modelbudget.summary.show import records

        return records.data_frame(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Summary:
        """Read back what `to_dict` gave."""
        flops = data["flops"]
        return cls(
            model=data["model"],
            framework=data["framework"],
            layers=tuple(_layer_from(row) for row in data["layers"]),
            inputs=tuple(Input(port["name"], TensorSpec.parse(port["spec"])) for port in data["inputs"]),
            outputs=tuple(map(TensorSpec.parse, data["outputs"])),
            flops=Flops(flops["value"], tuple(flops["uncounted"].items()), flops["rules"]),
            samples=data["samples"],
            sizes=tuple(data["sizes"].items()),
            notes=tuple(data["notes"]),
            activation_bytes=data.get("activation_bytes"),
            real_run=data.get("real_run", False),
            optimizer_bytes=data.get("optimizer_bytes"),
            plans=tuple(map(Plan.from_dict, data.get("plans", ()))),
            growth=tuple(map(Growth.from_dict, data.get("growth", ()))),
            file=FileFacts.from_dict(data["file"]) if data.get("file") else None,
            export=Export.from_dict(data["export"]) if data.get("export") else None,
        )

    @classmethod
    def checked(cls, data: Any) -> Summary:
        """The same of data that anybody may have written.

        Raises:
            ModelBudgetError: it is no summary, with the place.
        """
        from pytest_modelbudget.summary import schema

        if problem := schema.mistake(data):
            raise ModelBudgetError(problem)
        try:
            summary = cls.from_dict(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelBudgetError(f"it has a field that is not known ({error})") from None
        if too_large := next((row for row in summary.layers if max(row.params, row.buffers) >= 10**_MOST_DIGITS), None):
            raise ModelBudgetError(f"layer {too_large.path[:200]!r} has more elements than any memory")
        return summary

    def __repr__(self) -> str:
        return f"<Summary {self.model!r:.40} ({self.framework}): {self.brief}>"

    def __str__(self) -> str:
        from pytest_modelbudget.summary.show import table  # what lays it out is imported by those who look alone

        return table.summary_text(self)

    def _repr_html_(self) -> str:
        from pytest_modelbudget.summary.show import notebook

        return notebook.summary_fragment(self)


def _layer_dict(layer: Layer) -> dict[str, Any]:
    return {
        "path": layer.path,
        "type": layer.type,
        "container": layer.container,
        "calls": layer.calls,
        "inputs": [[str(spec) for spec in call] for call in layer.inputs],
        "outputs": [[str(spec) for spec in call] for call in layer.outputs],
        "connected_to": [list(call) for call in layer.connected_to],
        "params": layer.params,
        "trainable_params": layer.trainable_params,
        "flops": layer.flops,
        "activation_bytes": layer.activation_bytes,
        "weights": [
            {
                "name": weight.name,
                "shape": list(weight.shape),
                "dtype": weight.dtype,
                "trainable": weight.trainable,
                "role": weight.role,
                "tied_to": weight.tied_to,
                "packed_bytes": weight.packed_bytes,
            }
            for weight in layer.weights
        ],
    }


def _layer_from(row: Mapping[str, Any]) -> Layer:
    return Layer(
        path=row["path"],
        type=row["type"],
        outputs=tuple(tuple(map(TensorSpec.parse, call)) for call in row["outputs"]),
        inputs=tuple(tuple(map(TensorSpec.parse, call)) for call in row.get("inputs", ())),
        connected_to=tuple(map(tuple, row["connected_to"])),
        weights=tuple(Weight(**{**weight, "shape": tuple(weight["shape"])}) for weight in row["weights"]),
        calls=row["calls"],
        flops=row["flops"],
        container=row["container"],
        activation_bytes=row.get("activation_bytes"),
    )
