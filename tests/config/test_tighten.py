"""Limits with a ratchet: what is lowered in the user's text, and what is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import dedent

import pytest

from pytest_modelbudget.config import Tightening, read, tighten
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.summary import Flops, Layer, Summary, Weight


def net(params: int) -> Summary:
    """Two layers, `body` with all params but one, and `head` with one; 4 bytes and 2 FLOPs each."""
    layers = (
        Layer("body", "Dense", weights=(Weight("kernel", (params - 1,)),)),
        Layer("head", "Dense", weights=(Weight("kernel", (1,)),)),
    )
    return Summary("net", "fake", layers, flops=Flops(2 * params), samples=7)


def results(text: str, file: str = "modelbudget.yaml", **params: int) -> list[Result]:
    """What a run over the manifest's models comes to, with that many params each."""
    entries = {entry.id: entry for entry in read(text, file=file).entries}
    return [
        Result(
            id=name, state=State.OK, summary=net(count), limits=entries[name].parsed_budgets, tags=entries[name].tags
        )
        for name, count in params.items()
    ]


def tightened(text: str, found: Sequence[Result], file: str = "modelbudget.yaml") -> Tightening:
    """`tighten` of a manifest without sources."""
    return tighten(text, file=file, results=found, ids=[entry.id for entry in read(text, file=file).entries])


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param("params: {max: 1k, ratchet: true}", "params: {max: 500, ratchet: true}", id="count"),
        pytest.param("params: {max: 2M, ratchet: {slack: 3%}}", "params: {max: 515, ratchet: {slack: 3%}}", id="slack"),
        pytest.param("params: {max: 2M, ratchet: {slack: 0.1%}}", "params: {max: 501, ratchet: {slack: 0.1%}}", id="slack, rounded up"),
        pytest.param("params: {max: '2_000', ratchet: true}", "params: {max: '500', ratchet: true}", id="single quotes"),
        pytest.param('params: {ratchet: true, max:   "2k"  }', 'params: {ratchet: true, max:   "500"  }', id="double quotes"),
        pytest.param("weight_bytes: {max: 24 MiB, ratchet: true}", "weight_bytes: {max: 2_000 B, ratchet: true}", id="bytes"),
        pytest.param("flops: {max: 1 MMACs, ratchet: true}", "flops: {max: 1_000 FLOPs, ratchet: true}", id="flops"),
        pytest.param("largest_layer_share: {max: 100%, ratchet: true}", "largest_layer_share: {max: 99.8%, ratchet: true}", id="share"),
        pytest.param("params_per_sample: {max: 80, ratchet: true}", "params_per_sample: {max: 71.4286, ratchet: true}", id="ratio, rounded up"),
        pytest.param("layers: {'b*': {params: {max: 1k, ratchet: true}}}", "layers: {'b*': {params: {max: 499, ratchet: true}}}", id="a layer"),
        pytest.param("layers: {'*': {params: {max: 1k, ratchet: true}}}", "layers: {'*': {params: {max: 499, ratchet: true}}}", id="the largest of several layers"),
        pytest.param("params: {max: 500, ratchet: true}", None, id="tight already"),
        pytest.param("params: {max: 499, ratchet: true}", None, id="never loosened"),
        pytest.param("params: {max: 510, ratchet: {slack: 5%}}", None, id="within the slack"),
        pytest.param("params: {max: 1k, ratchet: false}", None, id="no ratchet"),
        pytest.param("params: {ratchet: true}", None, id="no max"),
    ],
)  # fmt: skip
def test_one_limit(written: str, expected: str | None) -> None:
    """The value alone is replaced, and is exact; what is read back is what the model needs."""
    text = f"models:\n  # é: the net\n  net: {{build: 'a:b', budgets: {{{written}}}}}   # a comment\n"
    done = tightened(text, results(text, net=500))
    assert done.text == (text.replace(written, expected) if expected else text)
    assert bool(done.lowered) == bool(expected)
    again = tightened(done.text, results(done.text, net=500))
    assert (again.text, again.lowered) == (done.text, ())


FULL = """\
    # what our nets may cost
    version: 1
    defaults:
      budgets:
        params: {max: 9k, ratchet: true}     # for all
    tags:
      edge: {budgets: {params: 5k}}
    models:
      a:
        build: "m:a"
      b: {build: "m:b", tags: [edge]}
      c: {build: "m:c", tags: [edge]}

      d:
        build: 'm:d'
        budgets:
          params: 3k   # short
"""


def test_limits_that_models_share() -> None:
    """Each follows the largest of the models it holds for, wherever the ratchet is written; nothing else moves."""
    text = dedent(FULL)
    done = tightened(text, results(text, a=100, b=200, c=300, d=400))
    expected = (
        text.replace("max: 9k", "max: 100").replace("params: 5k", "params: 300").replace("params: 3k", "params: 400")
    )
    assert done.text == expected
    assert [str(one) for one in done.lowered] == [
        "a: params max 9k -> 100  [modelbudget.yaml:5]",
        "b, c: params max 5k -> 300  [modelbudget.yaml:7]",
        "d: params max 3k -> 400  [modelbudget.yaml:17]",
    ]


def test_a_shared_limit_waits_for_all_models() -> None:
    """A run over some of them lowers only what is theirs alone."""
    text = dedent(FULL)
    done = tightened(text, results(text, b=200, d=400))
    assert done.text == text.replace("params: 3k", "params: 400")
    assert done.kept == ("b: params: not all models that may share this limit were checked",)


def test_models_that_failed_have_nothing_to_follow() -> None:
    """What is not committed or not counted is not a number to hold on to."""
    text = dedent(FULL)
    a, b, c, d = results(text, a=100, b=200, c=300, d=400)
    failed = [
        a,
        Result(**{**fields(b), "state": State.CHANGED}),
        c,
        Result(**{**fields(d), "summary": None, "state": State.BUILD_ERROR}),
    ]
    done = tightened(text, failed)
    assert done.text == text.replace("max: 9k", "max: 100")
    assert done.kept == ("b, c: params: b is CHANGED", "d: params: d is BUILD ERROR")


def fields(result: Result) -> dict[str, object]:
    """A result's fields by name."""
    return {name: getattr(result, name) for name in Result.__slots__}


def test_a_number_that_is_not_known_is_not_followed() -> None:
    """Unknown is not 0."""
    text = "models:\n  net: {build: 'a:b', budgets: {activation_bytes: {max: 1 GB, ratchet: true}}}\n"
    done = tightened(text, results(text, net=500))
    assert (done.text, done.kept) == (text, ("net: activation_bytes: the number of net is not known",))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [pytest.param(100, 200, "200", id="the larger"), pytest.param(100, 1000, None, id="one needs all of it")],
)
def test_models_that_share_by_an_anchor(a: int, b: int, expected: str | None) -> None:
    """One scalar, several models: it follows the largest."""
    text = "models:\n  a: &a {build: 'm:a', budgets: {params: {max: 1k, ratchet: true}}}\n  b:\n    <<: *a\n    build: 'm:b'\n"
    done = tightened(text, results(text, a=a, b=b))
    assert done.text == (text.replace("1k", expected) if expected else text)
    assert tightened(text, results(text, a=a)).text == text


def test_line_ends_and_other_alphabets_stay() -> None:
    """CRLF, tabs in comments, characters of any width."""
    text = "# 模型 \U0001f600\tx\r\nmodels:\r\n  net: # ☃\r\n    build: 'a:b'\r\n    budgets: {params: {max: 1k, ratchet: true}}\r\n"
    assert tightened(text, results(text, net=500)).text == text.replace("1k", "500")


TOML = """\
    # the project
    [tool.modelbudget.models.net]   # a net
    build =   "a:b"

    [tool.modelbudget.models.net.budgets]
    params   =  {{ratchet = true,max = {params} }}   # why
    "weight_bytes" = {{ max = {weight_bytes}, ratchet = true }}
    flops.max={flops}
    flops.ratchet = true

    [tool.other]
    max = "1k"

    [tool.modelbudget.defaults.budgets]
    layers."b*".params = {{ max = {layer}, ratchet = true }}   # é
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_toml(end: str) -> None:
    """The values alone are replaced, in tables of any form and in the quotes they had; numbers that cannot be bare get them."""
    text = dedent(TOML).replace("\n", end)
    loose = text.format(params='"1k"', weight_bytes="'24 MiB'", flops='"""1 MFLOPs"""', layer="9_000")
    tight = text.format(params='"500"', weight_bytes="'2_000 B'", flops='"""1_000 FLOPs"""', layer="499")
    done = tightened(loose, results(loose, "pyproject.toml", net=500), "pyproject.toml")
    assert done.text == tight
    assert "net: params max 1k -> 500  [pyproject.toml:6]" in map(str, done.lowered)
    assert tightened(tight, results(tight, "pyproject.toml", net=500), "pyproject.toml").text == tight


def test_toml_that_takes_too_long_is_not_rewritten() -> None:
    """The values to write are shown."""
    many = "".join(f"other.x{number} = 1\n" for number in range(1_001))
    text = (
        f"[tool.modelbudget.models.net]\nbuild = 'a:b'\nbudgets.params = {{max = '1k', ratchet = true}}\n[tool]\n{many}"
    )
    with pytest.raises(ModelBudgetError) as caught:
        tightened(text, results(text, "pyproject.toml", net=500), "pyproject.toml")
    assert str(caught.value) == (
        "pyproject.toml: it cannot be rewritten; write these limits there yourself:\n"
        "  tool.modelbudget.models.net.budgets.params.max = 500"
    )


def test_a_limit_of_code_is_left_alone() -> None:
    """What a source's own code says, or a manifest that changed since the run."""
    text = "models:\n  net: {build: 'a:b', budgets: {params: {max: 1k, ratchet: true}}}\n"
    done = tightened(text.replace("1k", "2k"), results(text, net=500))
    assert done.lowered == ()
    assert done.kept == ("net: params: its max is not written as a plain value in modelbudget.yaml",)


def test_a_manifest_that_cannot_be_read() -> None:
    """It is said, with the line."""
    with pytest.raises(ModelBudgetError, match=r"modelbudget\.yaml:2: not YAML"):
        tighten("models: [", file="modelbudget.yaml", results=[], ids=[])
