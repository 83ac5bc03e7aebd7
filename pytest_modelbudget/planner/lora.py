"""`lora` in a recipe: low-rank pairs beside frozen layers, which may be quantised; how it is written and told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_modelbudget.planner.options import Option, choice, count, flag, mistakes, names, schema_of

LORA_TARGETS = ("q_proj", "v_proj")
"""Layers that get adapters where `lora` names none."""

ALL_LINEAR = "all-linear"
"""Stands for all linear layers but the head."""

BASES = ("nf4", "fp4", "int8")
"""Formats of quantised base weights, those of bitsandbytes."""

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Elements that share a scale, as bitsandbytes takes them."""

_EXAMPLE = "{rank: 8, targets: [q_proj, v_proj]}"


@dataclass(frozen=True, slots=True)
class QuantizedBase:
    """How the weights of frozen linear layers are stored: `format` is one of `BASES`.

    `nf4` and `fp4` have 4 bits an element and a float32 scale for each `block` of them, with `double_quant` a scale of
    8 bits with a float32 for 256 of those. `int8` has a float32 scale for each row. Layers whose names match a glob of
    `skip` are left as they are, beside the head and what is tied to a table. `compute` is the precision of the
    products (empty: the recipe's).
    """

    format: str
    double_quant: bool = False
    block: int = 64
    compute: str = ""
    skip: tuple[str, ...] = ()

    @classmethod
    def of(cls, written: Any) -> QuantizedBase | None:
        """What `base: nf4` or `base: {nf4: {double_quant: true}}` says; None for no base."""
        if not written:
            return None
        if isinstance(written, str):
            return cls(written)
        ((name, options),) = written.items()
        return cls(name, **{**(options or {}), "skip": tuple((options or {}).get("skip", ()))})

    def __str__(self) -> str:
        parts = [
            *(["double_quant"] if self.double_quant else []),
            *([f"block {self.block}"] if self.block != 64 else []),
        ]
        parts += [f"compute {self.compute}"] if self.compute else []
        parts += [f"not {', '.join(self.skip)}"] if self.skip else []
        return self.format + (f" ({', '.join(parts)})" if parts else "")


@dataclass(frozen=True, slots=True)
class Lora:
    """Pairs of low rank beside the `targets` (Hu et al. 2021, arXiv 2106.09685), with the options of peft's LoraConfig.

    `dropout` is that before the first of a pair, `bias` says which biases are trained (`none`, `all`, `lora_only`),
    `dora` adds a magnitude for each output (Liu et al. 2024, arXiv 2402.09353). The scale, of which `alpha` and
    `rslora` are, changes no memory.
    """

    rank: int
    targets: tuple[str, ...] = LORA_TARGETS
    dropout: float = 0.0
    bias: str = "none"
    dora: bool = False
    base: QuantizedBase | None = None

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Lora:
        """What `lora` says, which was checked before."""
        targets = written.get("targets", LORA_TARGETS)
        return cls(
            rank=int(written["rank"]),
            targets=(targets,) if isinstance(targets, str) else tuple(targets),
            dropout=float(written.get("dropout", 0.0)),
            bias=str(written.get("bias", "none")),
            dora=bool(written.get("dora", False)),
            base=QuantizedBase.of(written.get("base")),
        )


def lora_text(written: Mapping[str, Any]) -> str:
    """What changes memory, in words: `LoRA of rank 8 on q_proj, v_proj, over nf4 (double_quant)`."""
    lora = Lora.of(written)
    return ", ".join(
        (
            f"{'DoRA' if lora.dora else 'LoRA'} of rank {lora.rank} on {', '.join(lora.targets)}",
            *([f"dropout {lora.dropout:g}"] if lora.dropout else []),
            *([f"bias {lora.bias}"] if lora.bias != "none" else []),
            *([f"over {lora.base}"] if lora.base else []),
        )
    )


def check_lora(value: Any) -> tuple[str, Any]:
    """What is wrong with a written `lora` (empty: nothing), and the same."""
    if not isinstance(value, Mapping) or "rank" not in value:
        return f"write {_EXAMPLE}", value
    return next(_mistakes(value), ""), value


def _mistakes(value: Mapping[str, Any]) -> Iterator[str]:
    yield from mistakes(value, _LORA_OPTIONS)
    base = value.get("base")
    if isinstance(base, Mapping) and _is_base(base):
        ((name, options),) = base.items()
        yield from (f"base: {mistake}" for mistake in mistakes(options or {}, _BASE_OPTIONS))
        if name == "int8" and set(options or {}) & {"double_quant", "block"}:
            yield "base: int8 has a scale for each row: leave double_quant and block out"


def _is_base(value: Any) -> bool:
    if isinstance(value, Mapping):
        return (
            len(value) == 1
            and set(value) <= set(BASES)
            and all(o is None or isinstance(o, Mapping) for o in value.values())
        )
    return value in BASES


def _number(least: float, below: float | None, mistake: str, *, exclusive: bool = False) -> Option:
    def is_valid(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return (value > least if exclusive else value >= least) and (below is None or value < below)

    schema = {"type": "number", "exclusiveMinimum" if exclusive else "minimum": least}
    return Option(is_valid, mistake, schema if below is None else {**schema, "exclusiveMaximum": below})


_NAMES = names("layers' names")
_BASE_OPTIONS = {
    "double_quant": flag(),
    "block": choice(*BLOCKS),
    "compute": choice("bf16", "fp16", "fp32"),
    "skip": names("globs over layers' names"),
}
_BASES_WITH_OPTIONS = {
    "type": "object",
    "properties": dict.fromkeys(BASES, schema_of(_BASE_OPTIONS)),
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
}
_LORA_OPTIONS = {
    "rank": count(1),
    "targets": Option(
        lambda value: value == ALL_LINEAR or _NAMES.is_valid(value),
        f"write {_EXAMPLE}, or targets: {ALL_LINEAR}",
        {"anyOf": [{"const": ALL_LINEAR}, _NAMES.schema]},
    ),
    "alpha": _number(0, None, "write a number above 0", exclusive=True),
    "dropout": _number(0, 1, "write a number from 0 to below 1"),
    "bias": choice("none", "all", "lora_only"),
    "rslora": flag(),
    "dora": flag(),
    "base": Option(
        _is_base,
        "write nf4, fp4 or int8, or {nf4: {double_quant: true, block: 64}}",
        {"anyOf": [{"enum": list(BASES)}, _BASES_WITH_OPTIONS]},
    ),
}

LORA_SCHEMA = schema_of(_LORA_OPTIONS, required=["rank"])
"""`lora` as a JSON schema."""
