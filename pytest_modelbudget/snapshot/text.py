"""A summary as YAML text, one fact a line, and back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast, get_args

import yaml

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.snapshot.fold import Item, Repeat, Row, fold, unfold
from pytest_modelbudget.summary import Flops, Input, Kind, Layer, Plan, Summary, TensorSpec, parse_weight

FORMAT = 1
"""Version of the file's shape; a reader that meets a higher one says so."""

_HEAD = "# snapshot of pytest-modelbudget; accept a change with: pytest --model-budget-update\n"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./*+=()-]*(?: [A-Za-z0-9_./*+=()%-]+)*")
_PORT = re.compile(r"(?:[A-Za-z0-9_.]+ )?[A-Za-z][A-Za-z0-9_]*\[[A-Za-z0-9_+*/ ,?()-]*\]")
_WORDS = frozenset(("true", "false", "yes", "no", "on", "off", "y", "n", "null"))
_SPEC = re.compile(r"[A-Za-z0-9_]*\[[^\]]*\]")
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
        fields: dict[str, Any] = {"recipe": plan.recipe, "peak_bytes": plan.peak_bytes}
        if plan.reserved_bytes is not None:
            fields["reserved_bytes"] = plan.reserved_bytes
        yield f"  {plan.kind}: {_flow(fields)}"


def _digest(model: str, body: str) -> str:
    return hashlib.sha256(f"{model}\n{body}".encode()).hexdigest()[:12]


def _body(summary: Summary) -> Iterator[str]:
    """The lines that the digest covers."""
    yield f"framework: {_scalar(summary.framework)}"
    yield from _list("inputs", map(str, summary.inputs))
    yield from _list("outputs", map(str, summary.outputs))
    yield f"params: {summary.params}"
    yield f"trainable_params: {summary.trainable_params}"
    yield f"non_trainable_params: {summary.non_trainable_params}"
    yield f"buffers: {summary.buffers}"
    yield f"weight_bytes: {summary.weight_bytes}"
    yield f"flops: {_flow(_flops(summary.flops))}"
    if not summary.layers:
        yield "layers: []"
        return
    yield "layers:"
    yield from _items(fold(tuple(map(_row, summary.layers))), "")


def _list(name: str, values: Iterable[str]) -> Iterator[str]:
    lines = [f"- {_scalar(value, block=True)}" for value in values]
    yield f"{name}:" if lines else f"{name}: []"
    yield from lines


def _flops(flops: Flops) -> dict[str, Any]:
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
            yield f"{indent}- {_flow(item)}"


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


def _flow(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case Mapping():
            return f"{{{', '.join(f'{_scalar(key)}: {_flow(item)}' for key, item in value.items())}}}"
        case list():
            return f"[{', '.join(map(_flow, value))}]"
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


def read(text: str) -> Summary:
    """Read a snapshot back.

    Raises:
        NewerFormat: it was written by a newer version.
        ModelBudgetError: conflict markers, no YAML, a field missing or of the wrong kind, or a digest that
            does not fit: the message begins with the line where there is one.
    """
    if marker := _MARKER.search(text):
        line = text.count("\n", 0, marker.start()) + 1
        raise ModelBudgetError(f"line {line} has a git conflict marker: both sides changed this model")
    body, mark, below = text.partition(_ESTIMATES)  # below it nothing says again what the digest covers
    data = _load(body)
    data["estimates"] = _load("\n" * body.count("\n") + mark + below)["estimates"] if mark else None
    if not isinstance(data.get("format"), int):
        raise ModelBudgetError("there is no 'format' line: the file is cut off or not a snapshot")
    if data["format"] > FORMAT:
        raise NewerFormat(
            f"it has format {data['format']}, written by a newer pytest-modelbudget (this one reads up to {FORMAT}): "
            "upgrade pytest-modelbudget"
        )
    try:
        summary = _summary(data)
    except (KeyError, TypeError, ValueError, AttributeError, ModelBudgetError) as error:
        raise ModelBudgetError(f"it is cut off or damaged: {_reason(error)}") from None
    _verify(text, data, summary)
    return summary


class NewerFormat(ModelBudgetError):
    """A snapshot of a format that this version does not know; it is never overwritten."""


def _reason(error: Exception) -> str:
    return f"the field {error} is missing" if isinstance(error, KeyError) else str(error)


def _load(text: str) -> dict[str, Any]:
    try:
        data = yaml.load(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ModelBudgetError(f"{line}not YAML ({error.problem}): the file is cut off or damaged") from None
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError):  # PyYAML on a tag that does not fit its value
        raise ModelBudgetError("not YAML: the file is damaged") from None
    if not isinstance(data, dict):
        raise ModelBudgetError("not a snapshot: the file is empty, cut off or damaged")
    return data


def _verify(text: str, data: dict[str, Any], summary: Summary) -> None:
    """Hold the digest against the lines it covers, and the totals against the rows."""
    heads = ("#", "format:", "model:", "declared:", "digest:")
    lines = [line for line in text.partition(_ESTIMATES)[0].splitlines() if not line.startswith(heads)]
    wanted = _digest(summary.model, "".join(f"{line}\n" for line in lines))
    if data.get("digest") != wanted and str(data.get("digest")) != wanted:
        raise ModelBudgetError(
            f"line {_line_of(text, 'digest:')}: the digest does not fit the rest: the file was edited by hand or merged"
        )


def _line_of(text: str, start: str) -> int:
    return next((number for number, line in enumerate(text.splitlines(), 1) if line.startswith(start)), 1)


def _summary(data: dict[str, Any]) -> Summary:
    flops = data["flops"]
    return Summary(
        model=str(data["model"]),
        framework=data["framework"],
        layers=tuple(map(_layer, unfold(tuple(map(_item, data["layers"]))))),
        inputs=tuple(map(_input, data["inputs"])),
        outputs=tuple(map(TensorSpec.parse, data["outputs"])),
        flops=Flops(flops["value"], tuple(map(_uncounted, flops.get("uncounted", ()))), flops["rules"]),
        plans=tuple(_plan(kind, fields) for kind, fields in (data.get("estimates") or {}).items()),
    )


def _plan(kind: str, fields: dict[str, Any]) -> Plan:
    if kind not in get_args(Kind):
        raise ValueError(f"there are no estimates of {kind}")
    peak, reserved = fields["peak_bytes"], fields.get("reserved_bytes")
    if not all(value is None or type(value) is int for value in (peak, reserved)):
        raise ValueError(f"the estimates of {kind} are no numbers")
    return Plan(cast("Kind", kind), str(fields["recipe"]), peak, reserved)


def _uncounted(text: str) -> tuple[str, int]:
    name, _, calls = text.rpartition(" x")
    return name, int(calls)


def _item(data: dict[str, Any]) -> Item:
    if "repeat" in data:
        return Repeat.parse(data["repeat"], tuple(map(_item, data["layers"])))
    return data


def _input(text: str) -> Input:
    end = text.rindex(" ", 0, text.rindex("["))
    return Input(text[:end], TensorSpec.parse(text[end:]))


def _layer(row: Row) -> Layer:
    return Layer(
        path=row["path"],
        type=row["type"],
        outputs=tuple(tuple(map(TensorSpec.parse, _SPEC.findall(call))) for call in row.get("out", "").split("; "))
        if "out" in row
        else (),
        connected_to=_connected(row.get("from") or []),
        weights=tuple(map(parse_weight, row["weights"].split(" + "))) if "weights" in row else (),
        calls=row.get("calls", 1),
        container=row.get("container", False),
    )


def _connected(calls: list[Any]) -> tuple[tuple[str, ...], ...]:
    if calls and not isinstance(calls[0], list):
        return (tuple(calls),)
    return tuple(map(tuple, calls))
