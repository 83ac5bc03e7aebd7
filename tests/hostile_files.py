"""Files that somebody made to hurt: each is below 1 MB, and would take hours, gigabytes or a program of its own."""

from __future__ import annotations

import re

from pytest_modelbudget import snapshot
from pytest_modelbudget.snapshot.text import _digest
from tests.builders import towers

_LONG = 900_000
"""Characters; with its head a file stays below 1 MB."""

_MODEL = "version: 1\nmodels:\n  m:\n    build: a:b\n"


def _many(line: str, size: int = _LONG) -> str:
    """Lines with the numbers from 0 on in the place of `#`, up to so many characters."""
    lines: list[str] = []
    while size > 0:
        lines.append(line.replace("#", str(len(lines))))
        size -= len(lines[-1])
    return "".join(lines)


def _levels(first: str, level: str, count: int = 12) -> str:
    """A first line, and lines that each repeat the one before: `@` is its anchor, `#` their number."""
    lines = [f"a0: &a0 {first}\n"]
    lines += [f"a{n}: &a{n} {level.replace('@', f'*a{n - 1}')}\n" for n in range(1, count)]
    return "".join(lines)


_MODELS = "models:\n" + _many("  m#: a:b\n", 300_000)
_GLOBS = _many("'*m#',", 300_000)
_TWICE = "a: 1\n" * 70_000

YAML = {
    "aliases that multiply": (_levels("[x, x]", f"[{', '.join('@' * 10)}]"), "too much: more than"),
    "merges that multiply": (_levels("{x: 1}", f"{{<<: [{', '.join('@' * 10)}]}}"), "too much: more than"),
    "a chain of merges": (_levels("{x: 1}", "{<<: @}", 20_000), "50: nested too deeply"),
    "a chain of aliases": (_levels("[x]", "[@]", 20_000), "50: nested too deeply"),
    "one long list again and again": (f"a: &a [{'x,' * 5000}]\nb: [{'*a,' * 200}]\n", "2: too much"),
    "one long text again and again": (f"a: &a {'x' * 500_000}\nb: [{'*a,' * 100}]\n", "2: too much"),
    "an alias inside of itself": ("a: &a [*a]\n", "1: nested too deeply: *a stands inside of &a"),
    "a merge of itself": ("a: &a\n  <<: *a\n", "2: nested too deeply: *a stands inside of &a"),
    "two in each other": ("a: &a [&b [*a]]\n", "1: nested too deeply"),
    "a merged number": ("a: {<<: 3}\n", "1: << takes a mapping"),
    "brackets": ("[" * _LONG, "nested too deeply"),
    "closed brackets": (f"{'[' * 400_000}{']' * 400_000}", "nested too deeply"),
    "braces": ("{" * _LONG, "nested too deeply"),
    "dashes": ("- " * 400_000, "nested too deeply"),
    "columns": ("".join(f"{' ' * level}a:\n" for level in range(1200)), "51: nested too deeply"),
    "empty lists": (f"a: [{'[],' * 300_000}]", "too much"),
    "words": (f"a: [{'a,' * 440_000}]", "too much"),
    "a long number": (f"version: {'1' * 10_000}\n", "1: a number of 10,000 characters"),
    "a long decimal": (f"version: 1.{'1' * 10_000}\n", "1: a number of 10,002 characters"),
    "underscores": (f"version: 1{'_' * _LONG}\n", "1: a number of 900,001 characters"),
    "hexadecimal": (f"version: 0x{'f' * _LONG}\n", "1: version '0xff"),
    "base 60": (f"defaults: {{batch: 1{':59' * 300_000}}}\n", "1: defaults.batch: input should be a valid integer"),
    "a quoted number": (f"{_MODEL}    budgets: {{params: '{'9' * _LONG}'}}\n", "5: budgets.params: a quantity of more than"),
    "blanks in a quantity": (f"{_MODEL}    budgets: {{params: '1{' ' * _LONG}!'}}\n", "5: budgets.params: a quantity of"),
    "blanks in a growth": (f"{_MODEL}    budgets: {{params: {{growth: '+{' ' * _LONG}!'}}}}\n", "5: budgets.params.growth"),
    "a device": (f"{_MODEL}    budgets: {{fits: ['{' ' * _LONG}!']}}\n", "5: budgets.fits: no device named"),
    "a tensor": (f"{_MODEL}    inputs: '{' ' * _LONG}!'\n", "5: inputs: "),
    "a value": (f"{_MODEL}    inputs: 'int64[B] = a{' ' * _LONG}b'\n", "5: inputs: "),
    "a size": (f"{_MODEL}    inputs: 'float32[B, {'9' * 5000}]'\n", "a size has at most 18 digits, this one 5,000"),
    "a long key": (f"? {'x' * _LONG}\n: 1\n", "1: a key of 900,000 characters"),
    "a long name with mistakes": (
        f"models:\n  ? {'x' * 19_000}\n  : {{build: 'a:b', dims: {{{_many('d#: x,', 600_000)}}}}}\n",
        "3: models.xxx",
    ),
    "unknown keys": (_many("k#: 1\n", 600_000), "1: unknown key 'k0'"),
    "unknown recipes": (f"{_MODEL}    training: {{{_many('k#: 1,', 600_000)}}}\n", "5: training: unknown key 'k0'"),
    "models and tags": (
        _MODELS + "tags:\n" + _many("  t#: {budgets: {params: 1}}\n", 300_000),
        "1: 22,223 models with ",
    ),
    "a model and its tags": (
        f"{_MODEL}    tags: [{_many('t#,', 400_000)}]\ntags:\n" + _many("  t#: {}\n", 400_000),
        "2: 1 models with ",
    ),
    "models and globs": (
        f"{_MODELS}groups: {{g: {{models: [{_GLOBS}]}}}}\n",
        "models with",
    ),
    "models and sizes": (
        f"{_MODELS}defaults: {{dims: {{{_many('d#: 2,', 300_000)}}}}}\n",
        "1: 22,223 models with ",
    ),
    "a tag of Python": ("models: !!python/object/apply:os.system [x]\n", "1: a tag (!tag:yaml.org,2002:python/object/"),
    "a name of Python": ("models: {m: !!python/name:os.system x}\n", "1: a tag (!"),
    "a binary": ("models: {m: !!binary aGFsbG8=}\n", "1: a tag (!"),
    "a set": ("models: !!set {a, b}\n", "1: a tag (!"),
    "a list as a key": ("models:\n  ? [a]\n  : b:c\n", "2: a key has to be a word"),
    "a key twice": (f"version: 1\nmodels: {{}}\n{_TWICE}", "4: the key 'a' is used twice (first in line 3)"),
    "several documents": ("version: 1\n---\nversion: 1\n", "2: not YAML: a second document begins here: remove"),
    "a NUL": ("version: 1\n\0", "2: not YAML: the character '\\x00' has no place"),
    "tabs": ("\t" * _LONG, "1: not YAML"),
    "colons": (":" * _LONG, "1: not YAML"),
}  # fmt: skip
"""The text of a manifest, and the beginning of what is said of it, with its line."""

_TABLE = "[tool.modelbudget]\n"

TOML = {
    "arrays": (f"{_TABLE}a = {'[' * _LONG}", "2: nested too deeply"),
    "closed arrays": (f"{_TABLE}a = {'[' * 400_000}{']' * 400_000}\n", "2: nested too deeply"),
    "inline tables": (f"{_TABLE}a = {'{a = ' * 180_000}", "2: nested too deeply"),
    "a dotted key": (f"{_TABLE}{'a.' * 450_000}a = 1\n", "2: nested too deeply"),
    "a quoted dotted key": (_TABLE + '"a".' * 200_000 + "a = 1\n", "2: nested too deeply"),
    "a dotted key in a table": (f"{_TABLE}a = {{{'a.' * 450_000}a = 1}}\n", "2: nested too deeply"),
    "a dotted header": (f"[tool.modelbudget.{'a.' * 450_000}a]\n", "1: nested too deeply"),
    "a dotted header in a text": (f'{_TABLE}a = """\n[{"a." * 450_000}a]\n"""\n', "2: unknown key 'a'"),
    "a long text": (f'{_TABLE}a = "{"x" * _LONG}"\n', "2: unknown key 'a'"),
    "a long number": (f"{_TABLE}a = {'1' * _LONG}\n", "2: a number of 1,000 digits or more"),
    "a number of 100 digits": (f"{_TABLE}a = {'1' * 100}\n", "2: a number of more than 40 digits"),
    "hexadecimal": (f"{_TABLE}a = 0x{'f' * _LONG}\n", "2: a number of 1,000 digits or more"),
    "infinite": (f"{_TABLE}a = 1e999\n", "2: a number of more than 40 digits, or none"),
    "values": (f"{_TABLE}a = [{'1,' * 440_000}]\n", "too much"),
    "newlines before the table": ("\n" * _LONG + "[tool.modelbudget]\na = 1\n", "900002: unknown key 'a'"),
    "quotes": (f"{_TABLE}a = {chr(34) * _LONG}", "2: not TOML"),
    "letters": (f"{_TABLE}{'a' * _LONG}\n", "2: not TOML"),
}  # fmt: skip
"""The same for a `pyproject.toml`."""

SNAPSHOT = snapshot.render(towers(), declared="modelbudget.yaml")


def signed(text: str, model: str = "two-towers") -> str:
    """A snapshot with the digest that fits what it says."""
    heads = ("#", "format:", "model:", "declared:", "digest:")
    lines = [line for line in text.split("\nestimates:")[0].splitlines() if line and not line.startswith(heads)]
    digest = _digest(model, "".join(f"{line}\n" for line in lines))
    return re.sub(r"^digest: .*$", f'digest: "{digest}"', text, count=1, flags=re.MULTILINE)


def of_rows(rows: str) -> str:
    """A snapshot of a model without weights with these rows, which has the right digest and totals."""
    head = re.sub(r"^(params|trainable_params|weight_bytes): .*$", r"\1: 0", SNAPSHOT, flags=re.MULTILINE)
    return signed(f"{head.partition('layers:')[0]}layers:\n{rows}")


def edited(before: str, after: str) -> str:
    """The snapshot with one thing written otherwise, and the digest that fits."""
    assert before in SNAPSHOT
    return signed(SNAPSHOT.replace(before, after, 1))


def _repeat(title: str, row: str) -> str:
    return f"- repeat: '{title}'\n  layers:\n  - {row}\n"


def _nested(levels: int) -> str:
    rows = "- {path: y, type: T}\n"
    for _ in range(levels):
        rows = "- repeat: a.0-9 x10\n  layers:\n" + "".join(f"  {line}\n" for line in rows.splitlines())
    return rows


SNAPSHOTS = {
    "x1000000000": (of_rows(_repeat("a.0-999999999 x1000000000", "{path: a.*, type: T}")), "it stands for 1,000,000,000 rows"),
    "x1000000000 and no digest": (
        SNAPSHOT.partition("layers:")[0] + f"layers:\n{_repeat('a.0-999999999 x1000000000', '{path: a.*, type: T}')}",
        ":17: the digest does not fit",
    ),
    "repeats in repeats": (of_rows(_nested(20)), "it stands for 100,000,000,000,000,000,000 rows"),
    "repeats too deep": (of_rows(_nested(60)), "nested too deeply"),
    "a long path x9000": (of_rows(_repeat("a.0-8999 x9000", f"{{path: a.*.{'x' * 300_000}, type: T}}")), "characters"),
    "x0": (of_rows(_repeat("a.1-0 x0", "{path: a.*, type: T}")), "1 to 0 is 0 times"),
    "a title of digits": (of_rows(_repeat("1" * _LONG, "{path: a.*, type: T}")), "is not a repeat"),
    "rows": (of_rows(_many("- {path: a#, type: T}\n")), "rows or more"),
    "the same path": (of_rows("- {path: a, type: T}\n" * 9000), "two layers have the same path"),
    "letters as tensors": (of_rows(f"- {{path: a, type: T, out: {'a' * _LONG}}}\n"), "is no list of tensors"),
    "brackets as tensors": (of_rows(f"- {{path: a, type: T, out: '{'[' * _LONG}'}}\n"), "is no list of tensors"),
    "letters as weights": (of_rows(f"- {{path: a, type: T, weights: {'a' * _LONG}}}\n"), "is not a weight"),
    "a huge weight": (of_rows(f"- {{path: a, type: T, weights: w {'9' * 5000}}}\n"), "is not a weight"),
    "a weight of many dimensions": (of_rows(f"- {{path: a, type: T, weights: w {'9x' * 99}9}}\n"), "is not a weight"),
    "totals": (edited("\nparams: 6201", "\nparams: 1"), ":11: params is 1, and the rows have 6,201"),
    "bytes": (edited("weight_bytes: 24804", "weight_bytes: 4"), ":15: weight_bytes is 4, and the rows have 24,804"),
    "params of a row": (edited("params: 5050", "params: 5051"), "'dense' has 5,051 params, and its weights 5,050"),
    "words around a tensor": (edited('out: "[B, 50]"', 'out: "x [B, 50]"'), "is no list of tensors"),
    "a long number": (edited("\nparams: 6201", f"\nparams: {'1' * 10_000}"), ":11: a number of 10,000 characters"),
    "a negative number": (edited("buffers: 0", "buffers: -1"), ":14: it is damaged: buffers"),
    "a decimal": (edited("buffers: 0", "buffers: 0.5"), ":14: it is damaged: buffers"),
    "true for a number": (edited("buffers: 0", "buffers: true"), ":14: it is damaged: buffers"),
    "FLOPs as a word": (edited("value: 12200", "value: lots"), ":16: it is damaged: flops.value"),
    "FLOPs as a list": (edited("flops: {rules: 2, value: 12200}", "flops: [2]"), ":16: it is damaged: flops"),
    "calls as a list": (edited("type: Dense,", "type: Dense, calls: [1],"), ":21: it is damaged: layers.2.calls"),
    "an unknown field": (edited("type: Dense,", "type: Dense, color: red,"), ":21: it is damaged: layers.2.color"),
    "a path as a list": (edited("{path: user", "{path: [user]"), ":19: it is damaged: layers.0.path"),
    "a path as a number": (edited("{path: user", "{path: 7"), ":19: it is damaged: layers.0.path"),
    "sources as a word": (edited("from: [user]", "from: user"), ":21: it is damaged: layers.2.from"),
    "sources as numbers": (edited("from: [user]", "from: [1]"), ":21: it is damaged: layers.2.from"),
    "layers as a word": (signed(SNAPSHOT.partition("layers:")[0] + "layers: abc\n"), ":18: it is damaged: layers"),
    "layers as nothing": (signed(SNAPSHOT.partition("layers:")[0] + "layers:\n"), ":18: it is damaged: layers"),
    "layers as words": (signed(SNAPSHOT.partition("layers:")[0] + "layers: [a]\n"), ":18: it is damaged: layers.0"),
    "inputs as a word": (signed(re.sub("inputs:\n- .*\n- .*\n", "inputs: x\n", SNAPSHOT)), ":6: it is damaged: inputs"),
    "layers twice": (SNAPSHOT + "layers: []\n", ":25: 'layers' is there twice (first in line 18)"),
    "calls of an operator": (edited("value: 12200", f"value: 12200, uncounted: [a x{'9' * 99}]"), "number of calls"),
    "aliases that multiply": (SNAPSHOT + _levels("[x, x]", f"[{', '.join('@' * 10)}]"), "too much"),
    "merges that multiply": (SNAPSHOT + _levels("{x: 1}", f"{{<<: [{', '.join('@' * 10)}]}}"), "too much"),
    "a tag of Python": (SNAPSHOT + "x: !!python/object/apply:os.system [x]\n", ":25: a tag (!"),
    "brackets": ("[" * _LONG, "nested too deeply"),
}  # fmt: skip
"""The text of a snapshot of the two towers, and a part of what is said of it, with its line."""

DEAR = frozenset((
    "a model and its tags",
    "empty lists", "words", "a long name with mistakes", "unknown keys", "unknown recipes", "models and tags",
    "models and globs", "models and sizes", "a key twice", "one long list again and again", "a dotted header in a text",
    "a long text", "values", "newlines before the table", "rows", "the same path", "letters as tensors", "colons",
))  # fmt: skip
"""Those that take a tenth of a second or more to refuse."""
