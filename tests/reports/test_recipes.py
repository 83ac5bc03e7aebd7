"""The ready workflows: the comment's cannot be misused by a pull request, and posts what it should."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_modelbudget.reports import REPORTS

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMENT = yaml.safe_load((EXAMPLES / "github-comment.yml").read_text(encoding="utf-8"))
CHECK = yaml.safe_load((EXAMPLES / "github-workflow.yml").read_text(encoding="utf-8"))
ACTION = yaml.safe_load((EXAMPLES.parent / ".github/actions/model-budget/action.yml").read_text(encoding="utf-8"))
[JOB] = COMMENT["jobs"].values()
[STEP] = JOB["steps"]


def test_the_comment_follows_the_check() -> None:
    """It is started by the workflow of that name, and only for pull requests."""
    assert COMMENT[True] == {
        "workflow_run": {"workflows": [CHECK["name"]], "types": ["completed"]}
    }  # `on` is true in YAML
    assert JOB["if"] == "github.event.workflow_run.event == 'pull_request'"


def test_the_check_has_no_rights() -> None:
    """The job that runs the code of a pull request may read and has no secrets."""
    assert CHECK["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in CHECK["jobs"].values())
    assert "secrets" not in json.dumps(CHECK)


def test_the_comment_has_two_rights_and_runs_no_code_of_the_request() -> None:
    """It reads artifacts and comments; no checkout, no action, no secret but its own token."""
    assert COMMENT["permissions"] == {}
    assert JOB["permissions"] == {"actions": "read", "pull-requests": "write"}
    assert set(STEP) == {"env", "shell", "run"}
    assert "secrets" not in json.dumps(COMMENT)


def test_no_text_of_the_request_is_part_of_the_script() -> None:
    """Expressions stand in the environment alone."""
    assert "${{" not in STEP["run"]
    assert "${{" not in STEP["shell"]


def test_the_two_workflows_speak_of_the_same_file() -> None:
    """The artifact's name, the file in it, and the key in its marker."""
    [upload] = [step for step in ACTION["runs"]["steps"] if "upload-artifact" in step.get("uses", "")]
    assert STEP["env"]["ARTIFACT"] == ACTION["inputs"]["artifact"]["default"]
    assert f"comment:{upload['with']['path']}/{STEP['env']['KEY']}.md" in json.dumps(ACTION)


GH = """#!{python}
import json, os, shutil, sys
words, state = sys.argv[1:], json.load(open(os.environ["STATE"]))
given = sys.stdin.read() if "--input" in words else None
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([words, given and json.loads(given)["body"]]) + "\\n")
if words[0] == "run":
    if not state["artifact"]:
        sys.exit("no artifact of that name")
    shutil.copytree(state["artifact"], words[words.index("--dir") + 1], symlinks=True)
elif "/pulls?" in words[1]:
    print(json.dumps(state["pulls"]))
elif "--paginate" in words:
    print("\\n".join(json.dumps(one, ensure_ascii=False) for one in state["comments"]))
"""
OURS = {"id": 9, "body": "<!-- modelbudget:comment -->\nold", "by": "github-actions[bot]"}
LIKE_OURS = [
    {"id": 1, "body": "hello\u2028there", "by": "github-actions[bot]"},
    {"id": 2, "body": "<!-- modelbudget:comment -->\nmine", "by": "a-stranger"},
    {"id": 3, "body": "<!-- modelbudget:comment-windows -->\nof another job", "by": "github-actions[bot]"},
]


@dataclass(frozen=True, slots=True)
class Posted:
    """What the script came to: its exit status, and every call that changes something as (method, path, body)."""

    status: int
    changes: list[tuple[str, str, str]]
    calls: list[list[Any]]


@dataclass(frozen=True, slots=True)
class Service:
    """A stand-in for GitHub's command line tool, in a folder of its own."""

    folder: Path

    def post(
        self,
        text: str | None,
        comments: list[dict[str, Any]],
        *,
        sha: str = "abc",
        link: bool = False,
        branch: str = "b",
    ) -> Posted:
        """Run the script of the recipe on an artifact with this text; None: there is no artifact."""
        artifact, bin_, calls = self.folder / "artifact", self.folder / "bin", self.folder / "calls"
        artifact.mkdir()
        bin_.mkdir()
        (bin_ / "gh").write_text(GH.format(python=sys.executable), encoding="utf-8")
        (bin_ / "gh").chmod(0o755)
        if text is not None:
            (artifact / "comment.md").write_text(text, encoding="utf-8")
        if link:
            (artifact / "comment.md").unlink()
            (artifact / "comment.md").symlink_to("/etc/passwd")
        pulls = [{"number": 7, "head": {"sha": "abc"}}, {"number": 8, "head": {"sha": "older"}}]
        state = {"artifact": str(artifact) if text is not None else "", "pulls": pulls, "comments": comments}
        (self.folder / "state").write_text(json.dumps(state), encoding="utf-8")
        environment = {
            "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}", "STATE": str(self.folder / "state"), "CALLS": str(calls),
            "REPOSITORY": "o/r", "RUN": "5", "HEAD_SHA": sha, "HEAD_OWNER": "fork", "HEAD_BRANCH": branch,
            "ARTIFACT": "model-budget", "KEY": "comment", "FOLDER": str(self.folder / "got"), "GH_TOKEN": "t",
        }  # fmt: skip
        assert set(environment) >= set(STEP["env"])
        script = self.folder / "script.py"
        script.write_text(STEP["run"], encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-I", script], env=environment, capture_output=True, encoding="utf-8", timeout=60
        )
        assert "Traceback" not in done.stderr, done.stderr
        made = [json.loads(line) for line in calls.read_text(encoding="utf-8").splitlines()]
        changes = [(words[2], words[3], body) for words, body in made if "--method" in words]
        return Posted(done.returncode, changes, made)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    """A fresh one."""
    if sys.platform == "win32":
        pytest.skip("the recipe runs on Linux")
    return Service(tmp_path)


NEWS = "<!-- modelbudget:comment -->\n### Model budget: 1 changed\n"
QUIET = "<!-- modelbudget:comment quiet -->\n### Model budget: 1 ok\n"
POST = "repos/o/r/issues/7/comments"
PATCH = "repos/o/r/issues/comments/9"


@pytest.mark.parametrize(
    ("text", "comments", "expected"),
    [
        pytest.param(NEWS, LIKE_OURS, [("POST", POST, NEWS)], id="the first comment"),
        pytest.param(NEWS, [*LIKE_OURS, OURS], [("PATCH", PATCH, NEWS)], id="the same comment again"),
        pytest.param(QUIET, LIKE_OURS, [], id="nothing to say"),
        pytest.param(QUIET, [OURS], [("PATCH", PATCH, QUIET.replace(" quiet", ""))], id="nothing any more"),
        pytest.param(None, [OURS], [], id="no artifact"),
    ],
)
def test_what_is_posted(
    service: Service, text: str | None, comments: list[dict[str, Any]], expected: list[tuple[str, str, str]]
) -> None:
    """One comment for each pull request and key, at the request whose newest commit was checked."""
    posted = service.post(text, comments)
    assert posted.changes == expected
    assert posted.status == 0


def test_an_older_commit_says_nothing(service: Service) -> None:
    """A newer run will."""
    assert service.post(NEWS, [], sha="gone").changes == []


def test_a_branch_is_only_a_name(service: Service) -> None:
    """It is quoted in the address, whatever it is called."""
    posted = service.post(NEWS, [], branch="a&head=other:main#$(touch x)")
    [(words, _)] = [call for call in posted.calls if "/pulls?" in call[0][1]]
    assert words[1].endswith("&head=fork%3Aa%26head%3Dother%3Amain%23%24%28touch%20x%29")


@pytest.mark.parametrize("kind", ["too long", "link"])
def test_a_file_that_is_no_comment_is_refused(service: Service, kind: str) -> None:
    """An artifact is what a stranger made of it."""
    posted = service.post("x" * 200_000 if kind == "too long" else NEWS, [], link=kind == "link")
    assert posted.changes == []
    assert posted.status == 1


def test_a_strangers_text_calls_nobody_and_leads_nowhere(service: Service) -> None:
    """No mention, reference, link, picture or other tag is left; what reports are made of is."""
    hostile = (
        f"{NEWS}@everyone &#64;team &commat;x &#x40;y o/r#1 &#35;2 https://evil.example www.evil.example\n"
        "GH-12 gh-3 8e8c483 o/r@8e8c483 8E8C483DB84B4BEE98B60C0593521ED34D9990E8 mailto:a@evil.example xmpp:a&#64;evil.x\n"
        "![x](//evil.example/a.png) [y] [z]\n\n[z]: //evil.example\n<img src=x> <a href=x> <code class=x>\n"
        "<details><summary><code>net&#95;1</code>: CHANGED</summary>\n</details>\n<!-- modelbudget:other -->"
    )
    [(_, _, body)] = service.post(hostile, []).changes
    left = body.removeprefix("<!-- modelbudget:comment -->")
    assert not re.search(r"@\w|(?<!&)#\w|&(#64|#x40|commat|#35);\w|https?://|www\.|\]\s*[(\[:]|<(img|a |!|code )", left)
    assert not re.search(r"(?i)\bgh-\d|\b[0-9a-f]{7,40}\b|(mailto|xmpp):", left)
    assert "<details><summary><code>net&#95;1</code>: CHANGED</summary>" in left


def test_the_recipe_for_gitlab_asks_for_reports_there_are() -> None:
    """Each report is written where the service is told to look, on the default branch too."""
    data = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text(encoding="utf-8"))["model-budget"]
    written = dict(re.findall(r"--model-budget-report=(\w+):(\S+)", " ".join(data["script"])))
    assert set(written) <= set(REPORTS)
    wanted = data["artifacts"]["reports"]
    assert (wanted["codequality"], wanted["metrics"]) == (written["codequality"], written["openmetrics"])
    assert f"--junit-xml={wanted['junit']}" in " ".join(data["script"])
    assert data["artifacts"]["when"] == "always", "a failing job is the one whose reports are wanted"
    assert any("CI_DEFAULT_BRANCH" in rule["if"] for rule in data["rules"])
