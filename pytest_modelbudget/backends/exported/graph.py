"""What an exported file says of a model, as plain data, the same for every format.

A reader of a format makes an `ExportedModel` of a file and nothing else; `rows`, `costs` and the summary are made of it
in one way for all. Names of values, constants and operators are unique within a model: a reader that meets a graph in
a graph gives what is in it names of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pytest_modelbudget.summary import Input, TensorSpec


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the source that an exporter kept: its path (`layer1.0.conv1`) and its class (`Conv2d`).

    `call` counts the calls of a module that is called more than once, from 0 on, where the exporter tells them apart.
    """

    path: str
    type: str = ""
    call: int = 0


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that the file stores.

    `shape` and `dtype` are what its elements stand for (4-bit weights in bytes have the shape of the weights), and
    `stored_bytes` what they take in the file, None where that is shape times dtype. Constants with the same `storage`
    are stored once. `role` is `buffer` for what is no weight: scales, zero points, shapes, running statistics where the
    format says that they are. `trainable` is False for formats that are made to be run, not trained.
    """

    shape: tuple[int, ...]
    dtype: str
    storage: Hashable
    role: Literal["param", "buffer"] = "param"
    stored_bytes: int | None = None
    trainable: bool = False


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of a graph.

    `type` is its name in the format's own words (`Conv`, `aten.conv2d`, `CONV_2D`), by which FLOP rules know it.
    `inputs` and `outputs` are names of values and constants, in the operator's order; an input that is left out is an
    empty name. `name` is what the file calls it, `modules` the modules of the source around it, outermost first.

    An operator with `bodies` runs them: all of them `trips` times (None: not known), or one of them where `chooses`.
    """

    type: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    modules: tuple[Module, ...] = ()
    bodies: tuple[tuple[Operator, ...], ...] = ()
    trips: int | None = 1
    chooses: bool = False


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """A model as its file has it.

    `format` is what users call it (`onnx`), `dialect` the table of FLOP rules that has its operators (empty without
    any).

    `values` are the shapes and dtypes of the tensors between operators: a dimension is a size, an expression of symbols
    (`2*B`, `T+1`, see `expressions`), or None where the file does not say it; a value of which nothing is said is
    missing. Names of `inputs` and `outputs` are those of values. `constants` are by their names in the file, each once,
    also those that no operator uses. `operators` is None for a file of weights alone. `file_bytes` are those of all its
    files together, `arena_bytes` what the runtime plans for tensors between operators, with the kernels that
    `arena_kernels` names; `delegated` counts the operators that a delegate runs. `unseen` names
    the delegates, or other files, that hold weights of which the file says nothing.
    """

    format: str
    file_bytes: int
    constants: Mapping[str, Constant]
    dialect: str = ""
    operators: tuple[Operator, ...] | None = None
    values: Mapping[str, TensorSpec] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Input, ...] = ()
    arena_bytes: int | None = None
    arena_kernels: str = ""
    delegated: int | None = None
    unseen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
