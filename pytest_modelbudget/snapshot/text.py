"""A summary as YAML text, one fact a line, and back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import InvalidText, Tree, read_yaml
from pytest_modelbudget.snapshot.fold import Item, Repeat, Row, fold, size, unfold
from pytest_modelbudget.summary import (
    FileFacts,
    Flops,
    Input,
    Kind,
    Layer,
    Plan,
    ServingCache,
    Summary,
    TensorSpec,
    TimeBound,
    Weight,
    parse_weight,
    weight_text,
)
from pytest_modelbudget.summary.metrics import STORED

FORMAT = 1
"""Version of the file's shape; a reader that meets a higher one says so."""

_HEAD = "# snapshot of pytest-modelbudget; accept a change with: pytest --model-budget-update\n"
MOST_ROWS = 200_000
"""Rows that a snapshot may stand for; the largest known models, with all their experts, have half of that."""

_MOST_NODES = 2_000_000

_MOST_CHARACTERS = 50 * 10**6
"""Characters of all these rows."""

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./*+=()-]*(?: [A-Za-z0-9_./*+=()%-]+)*")
_PORT = re.compile(r"(?:[A-Za-z0-9_.]+ )?[A-Za-z][A-Za-z0-9_]*\[[A-Za-z0-9_+*/ ,?()-]*\]")
_WORDS = frozenset(("true", "false", "yes", "no", "on", "off", "y", "n", "null"))
_SPEC = re.compile(r"(?<![A-Za-z0-9_])[A-Za-z0-9_]*\[[^\[\]]*\]")
_ESTIMATES = "\nestimates:\n"
_MARKER = re.compile(r"^(<{7}|={7}|>{7}|\|{7})( |$)", re.MULTILINE)


def render(summary: Summary, *, declared: str) -> str:
    """Return the snapshot of `summary`: the same text for the same model, on every machine and run."""
    body = "".join(f"{line}\n" for line in _body(summary))
    totals, rows = body.split("layers:", 1)
    head = f"{_HEAD}format: {FORMAT}\nmodel: {_scalar(summary.model)}\ndeclared: {_scalar(declared)}\n"
    estimates = "".join(f"{line}\n" for line in _estimates(summary.plans))
    return f"{head}{totals}digest: {_digest(summary.model, body)}\nlayers:{rows}{estimates}"


def compared(text: str) -> str | None:
    """The part of a snapshot that takes part in the comparison, all but its estimates; None in a git conflict."""
    if _MARKER.search(text):
        return None
    body, estimates, _ = text.partition(_ESTIMATES)
    return f"{body}\n" if estimates else text


def _estimates(plans: Iterable[Plan]) -> Iterator[str]:
    """Peaks of planned runs: they depend on the kernels of the framework, so they come last, outside of the digest."""
    for index, plan in enumerate(plans):
        if index == 0:
            yield _ESTIMATES.strip()
        yield f"  {plan.kind}: {flow(stored_plan(plan))}"


def stored_plan(plan: Plan) -> dict[str, Any]:
    """What is written down of a planned run."""
    fields: dict[str, Any] = {"recipe": plan.recipe, "peak_bytes": plan.peak_bytes}
    if plan.reserved_bytes is not None:
        fields["reserved_bytes"] = plan.reserved_bytes
    if plan.cache is not None:
        fields["kv_cache_bytes"] = plan.cache.bytes
        fields["kv_bytes_per_token"] = plan.cache.bytes_per_token
    if plan.bytes_moved is not None:
        fields |= {} if plan.flops_at_least else {"flops": plan.flops}
        fields["bytes_moved"] = plan.bytes_moved
    times = {bound.device: bound.picoseconds for bound in plan.time_bounds if bound.picoseconds is not None}
    return {**fields, "least_picoseconds": times} if times else fields


def _digest(model: str, body: str) -> str:
    return hashlib.sha256(f"{model}\n{body}".encode()).hexdigest()[:12]


def _body(summary: Summary) -> Iterator[str]:
    """The lines that the digest covers."""
    yield f"framework: {_scalar(summary.framework)}"
    yield from _list("inputs", map(str, summary.inputs))
    yield from _list("outputs", map(str, summary.outputs))
    yield from (f"{name}: {getattr(summary, name)}" for name in STORED)
    yield f"flops: {flow(stored_flops(summary.flops))}"
    if summary.file is not None:
        yield f"file: {flow(summary.file.to_dict())}"
    if not summary.layers:
        yield "layers: []"
        return
    yield "layers:"
    yield from _items(fold(tuple(map(_row, summary.layers))), "")


def _list(name: str, values: Iterable[str]) -> Iterator[str]:
    lines = [f"- {_scalar(value, block=True)}" for value in values]
    yield f"{name}:" if lines else f"{name}: []"
    yield from lines


def stored_flops(flops: Flops) -> dict[str, Any]:
    """What is written down of FLOPs."""
    fields: dict[str, Any] = {"rules": flops.rules, "value": flops.value}
    if flops.uncounted:
        fields["uncounted"] = [f"{name} x{calls}" for name, calls in flops.uncounted]
    return fields


def _items(items: tuple[Item, ...], indent: str) -> Iterator[str]:
    for item in items:
        if isinstance(item, Repeat):
            yield f"{indent}- repeat: {_scalar(str(item))}"
            yield f"{indent}  layers:"
            yield from _items(item.body, f"{indent}  ")
        else:
            yield f"{indent}- {flow(item)}"


def _row(layer: Layer) -> dict[str, Any]:
    fields: dict[str, Any] = {"path": layer.path, "type": layer.type}
    if layer.container:
        fields["container"] = True
    if layer.outputs:
        fields["out"] = layer.output_text
    if any(layer.connected_to):
        calls = [list(call) for call in layer.connected_to]
        fields["from"] = calls[0] if len(calls) == 1 else calls
    if layer.calls != 1:
        fields["calls"] = layer.calls
    if layer.params:
        fields["params"] = layer.params
    if layer.weights:
        fields["weights"] = layer.weights_text
    return fields


def flow(value: Any) -> str:
    """Plain data as YAML on one line."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case Mapping():
            return f"{{{', '.join(f'{_scalar(key)}: {flow(item)}' for key, item in value.items())}}}"
        case list():
            return f"[{', '.join(map(flow, value))}]"
        case _:
            return _scalar(str(value))


def _scalar(text: str, *, block: bool = False) -> str:
    """`text` as a YAML scalar, plain where it is read back as the same text; `block`: outside brackets."""
    plain = _PORT.fullmatch(text) if block else _PLAIN.fullmatch(text)
    if plain and text.lower() not in _WORDS:
        return text
    escaped = "".join(map(_escaped, text)).replace("##", r"#\x23")  # `##[` is a command where a log shows a diff
    return f'"{escaped}"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def read(text: str, most_rows: int = MOST_ROWS) -> Summary:
    """Read a snapshot of at most so many rows back.

    Raises:
        NewerFormat: it was written by a newer version.
        ModelBudgetError: conflict markers, no YAML, a field missing or of the wrong kind, or a digest that
            does not fit: the message begins with the line where there is one.
    """
    if marker := _MARKER.search(text):
        line = text.count("\n", 0, marker.start()) + 1
        raise ModelBudgetError(f"line {line} has a git conflict marker: both sides changed this model")
    tree = _load(text)
    data: dict[str, Any] = tree.data
    if not isinstance(data.get("format"), int):
        raise ModelBudgetError("there is no 'format' line: the file is cut off or not a snapshot")
    if data["format"] > FORMAT:
        raise NewerFormat(
            f"it has format {data['format']}, written by a newer pytest-modelbudget (this one reads up to {FORMAT}): "
            "upgrade pytest-modelbudget"
        )
    if missing_fields := [name for name in ("layers", "digest", "model") if name not in data]:
        raise ModelBudgetError(f"it is cut off or damaged: the field {missing_fields[0]!r} is missing")
    _verify(text, data)
    if isinstance(data["layers"], list) and len(data["layers"]) > most_rows:
        raise ModelBudgetError(f"it has {len(data['layers']):,} rows or more: at most {most_rows:,} are read here")
    _hold_shape(tree)
    try:
        summary = _summary(data, most_rows)
    except (KeyError, TypeError, ValueError, AttributeError, ModelBudgetError) as error:
        raise ModelBudgetError(f"it is cut off or damaged: {error}") from None
    _verify_totals(text, data, summary)
    return summary


class NewerFormat(ModelBudgetError):
    """A snapshot of a format that this version does not know; it is never overwritten."""


def _load(text: str) -> Tree:
    try:
        tree = read_yaml(text, _MOST_NODES)
    except InvalidText as error:
        line = f"line {error.line}: " if error.line else ""
        raise ModelBudgetError(f"{line}{error}: the file is cut off or damaged") from None
    if not isinstance(tree.data, dict):
        raise ModelBudgetError("not a snapshot: the file is empty, cut off or damaged")
    for keys, first, second in tree.twice:
        raise ModelBudgetError(f"line {second}: {keys[-1]!r} is there twice (first in line {first}): it is damaged")
    return tree


def _verify(text: str, data: Mapping[str, Any]) -> None:
    """Hold the digest against the lines it covers."""
    heads = ("#", "format:", "model:", "declared:", "digest:")
    covered = text.partition(_ESTIMATES)[0].splitlines()
    lines = [line for line in covered if line and not line.startswith(heads)]
    if str(data["digest"]) != _digest(str(data["model"]), "".join(f"{line}\n" for line in lines)):
        raise ModelBudgetError(
            f"line {_line_of(text, 'digest:')}: the digest does not fit the rest: the file was edited by hand or merged"
        )


def _hold_shape(tree: Tree) -> None:
    from pytest_modelbudget.snapshot import schema  # pydantic is for files that differ alone

    problem, line = schema.mistake(tree)
    if problem:
        raise ModelBudgetError(f"{f'line {line}: ' if line else ''}it is damaged: {problem}")


def _verify_totals(text: str, data: Mapping[str, Any], summary: Summary) -> None:
    """Hold the totals against the rows."""
    for name in STORED:
        if data[name] != getattr(summary, name):
            raise ModelBudgetError(
                f"line {_line_of(text, f'{name}:')}: {name} is {data[name]:,}, and the rows have "
                f"{getattr(summary, name):,}: the file was edited by hand or merged"
            )


def _line_of(text: str, start: str) -> int:
    return next((number for number, line in enumerate(text.splitlines(), 1) if line.startswith(start)), 1)


def _summary(data: Mapping[str, Any], most_rows: int) -> Summary:
    return Summary(
        model=data["model"],
        framework=data["framework"],
        layers=tuple(map(_layer, _rows(data["layers"], most_rows))),
        inputs=tuple(map(input_from, data["inputs"])),
        outputs=tuple(map(TensorSpec.parse, data["outputs"])),
        flops=flops_from(data["flops"]),
        file=FileFacts.from_dict(data["file"]) if data.get("file") else None,
        plans=tuple(plan_from(kind, fields) for kind, fields in (data.get("estimates") or {}).items()),
    )


def _rows(data: list[dict[str, Any]], most: int) -> Iterator[Row]:
    """The rows, repeats unfolded.

    Raises:
        ValueError: they stand for too many.
    """
    items = tuple(map(_item, data))
    rows, characters = size(items)
    if rows > most or characters > _MOST_CHARACTERS:
        raise ValueError(f"it stands for {rows:,} rows of {characters:,} characters: at most {most:,} are read here")
    return unfold(items)


def flops_from(fields: Mapping[str, Any]) -> Flops:
    """Read back `stored_flops`."""
    return Flops(fields["value"], tuple(map(_uncounted, fields.get("uncounted", ()))), fields["rules"])


def plan_from(kind: str, fields: Mapping[str, Any]) -> Plan:
    """Read back `stored_plan`."""
    cache = None
    if (size := fields.get("kv_cache_bytes")) is not None:
        cache = ServingCache(size, fields.get("kv_bytes_per_token"))
    times = fields.get("least_picoseconds") or fields.get("least_time") or {}  # as it was first called
    return Plan(
        cast("Kind", kind),
        fields["recipe"],
        fields["peak_bytes"],
        fields.get("reserved_bytes"),
        flops=fields.get("flops"),
        bytes_moved=fields.get("bytes_moved"),
        time_bounds=tuple(TimeBound(device, time) for device, time in times.items()),
        cache=cache,
    )


def _uncounted(text: str) -> tuple[str, int]:
    name, _, calls = text.rpartition(" x")
    if not re.fullmatch("[0-9]{1,18}", calls):
        raise ValueError(f"{text[:100]!r} is no operator with its number of calls")
    return name, int(calls)


def _item(data: Mapping[str, Any]) -> Item:
    if "repeat" in data:
        return Repeat.parse(data["repeat"], tuple(map(_item, data["layers"])))
    return data


def input_from(text: str) -> Input:
    """Read back `str()` of an input."""
    end = text.rindex(" ", 0, text.rindex("["))
    return Input(text[:end], TensorSpec.parse(text[end:]))


def _layer(row: Row) -> Layer:
    layer = Layer(
        path=row["path"],
        type=row["type"],
        outputs=_outputs(row["out"]) if "out" in row else (),
        connected_to=_connected(row.get("from") or []),
        weights=_weights(row["weights"]) if "weights" in row else (),
        calls=row.get("calls", 1),
        container=row.get("container", False),
    )
    if layer.params != (params := row.get("params") or 0):
        raise ValueError(f"{layer.path[:100]!r} has {params:,} params, and its weights {layer.params:,}")
    return layer


@lru_cache(4096)
def _outputs(text: str) -> tuple[tuple[TensorSpec, ...], ...]:
    """The outputs of a row; the same object for all rows that have the same."""
    outputs = tuple(tuple(map(TensorSpec.parse, _SPEC.findall(call))) for call in text.split("; "))
    if Layer("", "", outputs).output_text != text:
        raise ValueError(f"{text[:100]!r} is no list of tensors")
    return outputs


@lru_cache(4096)
def _weights(text: str) -> tuple[Weight, ...]:
    """The weights of a row; see `_outputs`."""
    weights = tuple(map(parse_weight, text.split(" + ")))
    if " + ".join(map(weight_text, weights)) != text:
        raise ValueError(f"{text[:100]!r} is no list of weights")
    return weights


def _connected(calls: list[Any]) -> tuple[tuple[str, ...], ...]:
    if calls and not isinstance(calls[0], list):
        return (tuple(calls),)
    return tuple(map(tuple, calls))
