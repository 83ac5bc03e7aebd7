"""Limits of a manifest: numbers, distance and line when one is broken, and which of several limits holds."""

from __future__ import annotations

import pytest

from tests.project import Project

NETS = """
    from fakenet import Model

    def two_layers():
        return Model(body=(32, 64), head=(64, 10))

    def lower_bound():
        return Model(dense=(32, 64), uncounted={"aten.magic": 3})

    def no_flops():
        return Model(dense=(32, 64), flops=False)
"""
HEAD = """
models:
  net:
    build: nets:{build}
    inputs: "float32[B, 32]"
    budgets:
"""


def judged(project: Project, budgets: str, *, build: str = "two_layers", more: str = "") -> pytest.RunResult:
    """An update run over one model with `budgets` (written from line 6 on); two_layers has 2,048 + 640 params."""
    lines = "".join(f"      {line}\n" for line in budgets.splitlines())
    project.write("nets.py", NETS)
    project.manifest(HEAD.format(build=build) + lines + more)
    return project.update()


@pytest.mark.parametrize(
    ("budgets", "words"),
    [
        pytest.param("params: 2_687", "params: 2,688 > 2,687 (+1, +<0.1%)  [[]modelbudget.yaml:6]", id="max, by one"),
        pytest.param("params: {max: 1k}", "params: 2,688 > 1,000 (+1,688, +168.8%)  [[]modelbudget.yaml:6]", id="max"),
        pytest.param("params: {min: 3k}", "params: 2,688 < 3,000 (-312, -10.4%)  [[]modelbudget.yaml:6]", id="min"),
        pytest.param("weight_bytes: 10 KiB", "weight_bytes: 10,752 bytes > 10,240 bytes (+512, +5.0%)*", id="bytes"),
        pytest.param("flops: 5 kFLOPs", "flops: 5,376 FLOPs > 5,000 FLOPs (+376, +7.5%)*", id="flops"),
        pytest.param("flops: 2 kMACs", "flops: 5,376 FLOPs > 4,000 FLOPs (+1,376, +34.4%)*", id="macs count 2"),
        pytest.param("layers: 1", "layers: 2 > 1 (+1, +100.0%)*", id="number of layers"),
        pytest.param("largest_layer_share: 76%", "largest_layer_share: 76.1905% > 76% (+0.1905 points)*", id="share"),
        pytest.param("layers: {head: {params: 639}}", "head params: 640 > 639 (+1, +0.2%)*", id="one layer"),
        pytest.param(
            'layers:\n  "*": {params: 640}\n  head: {min: 1}',
            "*there is no metric 'min'*known are params*",
            id="layer without a metric",
        ),
        pytest.param(
            'layers: {"h*": {share: 20%}}', "head share: 23.8095% > 20% (+3.81 points)*", id="share of a layer"
        ),
        pytest.param(
            "layers: {hed: {params: 1k}}",
            "hed params: no layer matches 'hed'; the nearest is 'head'*",
            id="no such layer",
        ),
        pytest.param(
            "params_per_sample: 1",
            "params_per_sample: unknown: give the size of the training set as samples*",
            id="no samples",
        ),
    ],
)
def test_a_broken_limit_names_numbers_distance_and_line(project: Project, budgets: str, words: str) -> None:
    """Exact numbers also where rounding would hide the difference."""
    result = judged(project, budgets)
    assert result.ret == 1
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{words}"])


@pytest.mark.parametrize(
    "budgets",
    [
        pytest.param("params: 2_688", id="just at the max"),
        pytest.param("params: {min: 2_688}", id="just at the min"),
        pytest.param("layers: {body: {params: 2_048}, head: {params: 640}}", id="layers"),
        pytest.param("largest_layer_share: 76.2%", id="share"),
        pytest.param("trainable_params: 2.688k", id="a decimal"),
    ],
)
def test_a_limit_that_holds_passes(project: Project, budgets: str) -> None:
    """A limit is the last good value."""
    assert judged(project, budgets).ret == 0


def test_params_per_sample(project: Project) -> None:
    """With the size of the training set the ratio is judged."""
    result = judged(project, "params_per_sample: 2.6", more="    samples: 1000\n")
    result.stdout.fnmatch_lines(["*params_per_sample: 2.688 > 2.6 (+0.088, +3.4%)*"])


def test_every_violation_is_told_at_once(project: Project) -> None:
    """One item, all broken limits each with its line, and a count in the short summary."""
    result = judged(project, "params: 1k\nflops: 1 kFLOPs\nlayers:\n  head: {params: 1}\n  body: {params: 1}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "  params: 2,688 > 1,000 (+1,688, +168.8%)  [[]modelbudget.yaml:6]",
            "  flops: 5,376 FLOPs > 1,000 FLOPs*[[]modelbudget.yaml:7]",
            "  head params: 640 > 1 *[[]modelbudget.yaml:9]",
            "  body params: 2,048 > 1 *[[]modelbudget.yaml:10]",
            "  largest layers: body 2,048 (76.2%), head 640 (23.8%)",
            "OVER BUDGET modelbudget.yaml::net - params: 2,688 > 1,000*",
        ]
    )


def test_the_warn_zone_passes_with_a_line(project: Project) -> None:
    """Near the max: exit 0, `warn` in the table, and a line with the numbers."""
    result = judged(project, "params: {max: 2_700, warn: 95%}")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["net *params 99.6%  warn*", "*net*params: 2,688 is over 95.0% of the limit; max 2,700*"]
    )
    judged(project, "params: {max: 3_000, warn: 95%}").stdout.no_fnmatch_line("*is over*")


@pytest.mark.parametrize(
    ("build", "limit", "words"),
    [
        pytest.param(
            "lower_bound",
            "4 kFLOPs",
            "flops: 4,096 FLOPs > 4,000 FLOPs (+96, +2.4%); a lower bound*",
            id="bound is over",
        ),
        pytest.param(
            "lower_bound",
            "5 kFLOPs",
            "flops: unknown (at least 4,096, no formula for aten.magic x3)*",
            id="bound is under",
        ),
        pytest.param(
            "lower_bound",
            "{min: 5 kFLOPs}",
            "flops: unknown (at least 4,096, no formula for aten.magic x3)*",
            id="bound is under a min",
        ),
        pytest.param("no_flops", "5 kFLOPs", "flops: unknown, so the limit cannot be checked*", id="unknown"),
        pytest.param(
            "no_flops", "{min: 0 FLOPs}", "flops: unknown, so the limit cannot be checked*", id="unknown, any min"
        ),
    ],
)
def test_a_limit_on_what_is_not_known_fails(project: Project, build: str, limit: str, words: str) -> None:
    """An unknown number never passes a limit, and is not shown as 0."""
    result = judged(project, f"flops: {limit}", build=build)
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"  {words}"])


def test_unknown_numbers_are_shown_as_such(project: Project) -> None:
    """`?` for no number, `>=` for a lower bound, in the table and below it."""
    judged(project, "params: 3k", build="no_flops").stdout.fnmatch_lines(["net *2,048 *2,048 *[?] *8.000 KiB*"])
    result = judged(project, "params: 1k", build="lower_bound")
    result.stdout.fnmatch_lines(
        ["FLOPs, forward at B=1: >= 4.096 kFLOPs*", "Not counted: aten.magic x3", "net *>=4.096 k *"]
    )


LEVELS = """
    defaults:
      budgets: {params: 100, weight_bytes: 1 GB}
    tags:
      edge: {budgets: {params: 200}}
    groups:
      vision: {models: "v/*", budgets: {params: 300}}
    models:
      plain: {build: zoo:small, inputs: "float32[B, 32]"}
      tagged: {build: zoo:small, inputs: "float32[B, 32]", tags: [edge]}
      v/group: {build: zoo:small, inputs: "float32[B, 32]", tags: [edge]}
      v/own: {build: zoo:small, inputs: "float32[B, 32]", tags: [edge], budgets: {params: 400}}
      v/lifted: {build: zoo:small, inputs: "float32[B, 32]", tags: [edge], budgets: {params: null}}
"""


def test_the_nearest_limit_holds(project: Project) -> None:
    """Model over groups and tags (in the order of the file) over defaults; null lifts; each says its own line."""
    project.manifest(LEVELS)
    result = project.update()
    result.assert_outcomes(passed=1, failed=4)
    result.stdout.fnmatch_lines(
        [
            "  params: 2,048 > 100 *[[]modelbudget.yaml:2]",
            "  params: 2,048 > 200 *[[]modelbudget.yaml:4]",
            "  params: 2,048 > 300 *[[]modelbudget.yaml:6]",
            "  params: 2,048 > 400 *[[]modelbudget.yaml:11]",
        ]
    )


def test_a_pyproject_limit_says_its_line(project: Project) -> None:
    """The place is the line of the key in TOML too."""
    project.write(
        "pyproject.toml",
        """
        [tool.modelbudget.models.net]
        build = "zoo:small"
        inputs = "float32[B, 32]"

        [tool.modelbudget.models.net.budgets]
        params = "1k"
        """,
    )
    project.update().stdout.fnmatch_lines(["  params: 2,048 > 1,000 *[[]pyproject.toml:6]"])
