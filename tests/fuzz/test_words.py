"""Words of the command line: reports with their paths, and base refs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import strategies as st

from pytest_modelbudget.base import find_base
from pytest_modelbudget.reports import REPORTS
from pytest_modelbudget.session.report_files import targets
from tests.fuzz.strategies import attempted, fuzzed, names
from tests.gitrepo import ENVIRONMENT, Repository, repository

_PATHS = st.one_of(
    st.text(max_size=12), names, st.sampled_from(["a.json", "/dev/stdout", "C:\\a.md", "../x", ".", "~/x", "a:b"])
)


@fuzzed(
    st.one_of(
        _PATHS,
        st.builds(
            "{}{}{}".format, st.sampled_from([*REPORTS, "JSON", "xml", ""]), st.sampled_from([":", "=", ""]), _PATHS
        ),
    )
)
def test_a_report_is_a_kind_and_a_path_or_an_error(text: str) -> None:
    """Nothing of the path is lost, and an error names the kinds, or why nothing is written there."""
    folder = Path("/project")
    files, mistake = attempted(targets, [text], folder)
    if mistake:
        assert "KIND:PATH" in mistake or mistake.endswith(": name another file")
        return
    [file] = files
    assert file.kind in REPORTS
    assert file.path == folder / text[len(file.kind) + 1 :]


HISTORY: dict[str, Repository] = {}
"""The repository of this module's tests, made once."""


@pytest.fixture(scope="module", autouse=True)
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Three commits, two branches, tags, and refs with names that look like something else."""
    made = repository(tmp_path_factory.mktemp("base") / "repo")
    made.commit("one", **{"HEAD~1": "a file that is named like a ref"})
    made.git("tag", "v1")
    made.git("branch", "auto")
    made.git("update-ref", "refs/heads/-d", "HEAD")
    made.commit("two: caf\u00e9")
    made.git("tag", "--annotate", "--message", "of a blob", "blob", "HEAD:HEAD~1")
    HISTORY["made"] = made
    yield
    HISTORY.clear()


refs = st.lists(
    st.sampled_from(["HEAD", "main", "v1", "blob", "auto", "refs/heads/", "-d", "~1", "^", "^{tree}", "^{/one}", "@{u}", "@{-1}", "@",
                     "..", "...", ":/two", ":HEAD~1", "~99999", "0" * 40, "--all", "--output=x", " ", "\n", "\0", "\udcff", "é", "*", "$(x)", "'"]),
    min_size=1, max_size=3,
).map("".join)  # fmt: skip


@fuzzed(refs, share=0.3)
def test_a_base_is_the_commit_that_git_means_or_an_error(text: str) -> None:
    """No option reaches git, nothing is written, and what is no commit is told with the cure."""
    made = HISTORY["made"]
    where, mistake = attempted(partial(find_base, ci=False), made.path, text, {})
    if mistake:
        assert "the base" in mistake
        assert not _commit(made, text)
        return
    if text in ("auto", "off"):
        return
    assert where.commit == _commit(made, text)
    assert where.name.endswith(where.commit[:7])
    assert sorted(path.name for path in made.path.iterdir()) == [".git", "HEAD~1"]


def _commit(made: Repository, text: str) -> str:
    """What git itself makes of it, empty for nothing."""
    if "\0" in text or text.startswith("-"):
        return ""
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}"]
    done = subprocess.run(command, cwd=made.path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
