"""`lora` in a recipe: low-rank pairs beside frozen layers, which may be quantised; how it is written and told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LORA_TARGETS = ("q_proj", "v_proj")
"""Layers that get adapters where `lora` names none."""

ALL_LINEAR = "all-linear"
"""Stands for all linear layers but the head."""

BASES = ("nf4", "fp4", "int8")
"""Formats of quantised base weights, those of bitsandbytes."""

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Elements that share a scale, as bitsandbytes takes them."""

_BIASES = ("none", "all", "lora_only")
_COMPUTE = ("bf16", "fp16", "fp32")
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
    return next(_mistakes(value, _LORA_OPTIONS), ""), value


def _mistakes(value: Mapping[str, Any], options: Mapping[str, tuple[Callable[[Any], bool], str]]) -> Iterator[str]:
    for name, option in value.items():
        if name not in options:
            yield f"{name} is unknown: {_write_one_of(options)}"
        elif not options[name][0](option):
            yield options[name][1] if name == "targets" else f"{name}: {options[name][1]}"
        elif name == "base" and isinstance(option, Mapping):
            yield from _base_mistakes(option)


def _write_one_of(values: Iterable[object]) -> str:
    *others, last = map(str, values)
    return f"write {', '.join(others)} or {last}"


def _base_mistakes(base: Mapping[str, Any]) -> Iterator[str]:
    ((name, options),) = base.items()
    yield from (f"base: {mistake}" for mistake in _mistakes(options or {}, _BASE_OPTIONS))
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(name, str) for name in value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


_LORA_OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rank": (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
        "write a whole number, at least 1",
    ),
    "targets": (lambda value: value == ALL_LINEAR or _are_names(value), f"write {_EXAMPLE}, or targets: {ALL_LINEAR}"),
    "alpha": (lambda value: _is_number(value) and value > 0, "write a number above 0"),
    "dropout": (lambda value: _is_number(value) and 0 <= value < 1, "write a number from 0 to below 1"),
    "bias": (lambda value: value in _BIASES, _write_one_of(_BIASES)),
    "rslora": (_is_flag, "write true or false"),
    "dora": (_is_flag, "write true or false"),
    "base": (_is_base, "write nf4, fp4 or int8, or {nf4: {double_quant: true, block: 64}}"),
}
_BASE_OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "double_quant": (_is_flag, "write true or false"),
    "block": (lambda value: value in BLOCKS, _write_one_of(BLOCKS)),
    "compute": (lambda value: value in _COMPUTE, _write_one_of(_COMPUTE)),
    "skip": (_are_names, "write a list of globs over layers' names"),
}

_FLAG = {"type": "boolean"}
_NAMES = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_BASE_SCHEMA = {
    "type": "object",
    "properties": {
        "double_quant": _FLAG,
        "block": {"enum": list(BLOCKS)},
        "compute": {"enum": list(_COMPUTE)},
        "skip": _NAMES,
    },
    "additionalProperties": False,
}
LORA_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["rank"],
    "properties": {
        "rank": {"type": "integer", "minimum": 1},
        "targets": {"anyOf": [{"const": ALL_LINEAR}, _NAMES]},
        "alpha": {"type": "number", "exclusiveMinimum": 0},
        "dropout": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
        "bias": {"enum": list(_BIASES)},
        "rslora": _FLAG,
        "dora": _FLAG,
        "base": {
            "anyOf": [
                {"enum": list(BASES)},
                {
                    "type": "object",
                    "properties": dict.fromkeys(BASES, _BASE_SCHEMA),
                    "additionalProperties": False,
                    "minProperties": 1,
                    "maxProperties": 1,
                },
            ]
        },
    },
    "additionalProperties": False,
}
"""`lora` as a JSON schema."""
