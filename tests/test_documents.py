"""The documentation does what it says: each code block is run, read, or marked as output; links lead somewhere."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest

from pytest_modelbudget.config import load
from tests.documents import PAGES, REPOSITORY, blocks, follow, text_of

DOCUMENTS = [*PAGES, "CHANGELOG.md", ".github/CONTRIBUTING.md", ".github/SECURITY.md"]
FOLLOWED = [page for page in PAGES if any(block.kind in ("console", "script") for block in blocks(page))]
FOLLOWED += ["docs/how-to/serving.md"]
CI_RUNS = "README.md"
"""The page whose shell blocks `.ci/run` takes as commands."""


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_marked(page: str) -> None:
    """No block is left that nobody tries and no reason excuses; Python is Python."""
    unmarked = [f"{page}:{block.line}" for block in blocks(page) if not block.kind]
    assert [place for place in unmarked if page != CI_RUNS] == []
    assert len(unmarked) == (2 if page == CI_RUNS else 0)
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text)


def test_manifests_have_no_mistakes(tmp_path: Path) -> None:
    """Each loads and registers models with budgets; keys of what a page leaves to its text are keys."""
    manifests = [
        (page, block)
        for page in PAGES
        for block in blocks(page)
        if block.language == "yaml" and re.search(r"^version: 1$", block.text, re.MULTILINE)
    ]
    assert len(manifests) >= 10
    for page, block in manifests:
        (tmp_path / "modelbudget.yaml").write_text(block.text, encoding="utf-8")
        loaded = load(tmp_path / "modelbudget.yaml", file="modelbudget.yaml")
        assert loaded.mistakes == (), f"{page}:{block.line}"
        assert loaded.entries or loaded.sources, f"{page}:{block.line}"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize("page", FOLLOWED)
def test_a_reader_who_follows_a_page_sees_what_it_shows(page: str, tmp_path: Path) -> None:
    """Its files, scripts and commands, from top to bottom, print every line that is shown, in that order."""
    for module in ("torch", "keras", "tensorflow", "mlflow", "pandas"):
        pytest.importorskip(module)
    of_release = metadata.version("torch").startswith("2.14.")
    for step in follow(page, tmp_path):
        printed = "\n".join(step.printed)
        assert (step.is_output and not of_release) or step.missing == [], (
            f"{page}:{step.line}: {step.command}\n{printed}"
        )
        assert step.status in (0, 1), f"{page}:{step.line}: {step.command}\n{printed}"
        assert step.status == 0 or step.command != "a script", f"{page}:{step.line}\n{printed}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    """Every relative link names a file that is there, every anchor a heading of its page."""
    home = REPOSITORY / document
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(document))):
        file, _, anchor = link.partition("#")
        target = home.parent / file if file else home
        assert file.startswith("https://") or target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def without_code(text: str) -> str:
    """Markdown without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The headings of a page as links write them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^a-z0-9_ -]", "", line.lower()).strip().replace(" ", "-") for line in headings}


@pytest.mark.slow
def test_the_site_is_whole_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """It builds strictly, has every page, and no page fetches a script, font, style or picture."""
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-q",
        "-f",
        ".github/docs/mkdocs.yml",
        "-d",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert len(pages) > len(PAGES)
    loads = r"""<(?:script|img|iframe|source)[^>]*?\ssrc=["']?(?:https?:)?//|<link[^>]*?\shref=["']?(?:https?:)?//(?![^>]*canonical)"""
    assert {path: hits for path, text in pages.items() if (hits := re.findall(loads, text))} == {}
    assert not any("<!-- generated:" in text for text in pages.values())
    dead = {
        f"{path}: {link}"
        for path, text in pages.items()
        for link in links(text)
        if not leads(tmp_path, path, link, pages)
    }
    assert dead == set()


def links(page: str) -> list[str]:
    """The relative links of a page of the site."""
    return [link for link in re.findall(r"""<a [^>]*?href=["']?([^"'\s>]+)""", page) if not re.match(r"\w+:|/", link)]


def leads(site: Path, page: Path, link: str, pages: Mapping[Path, str]) -> bool:
    """Whether a relative link of a page names a file of the site, and a part of it that is there."""
    file, _, anchor = link.partition("#")
    target = Path(os.path.normpath(page.parent / file)) if file else page
    target = target / "index.html" if (site / target).is_dir() else target
    ids = re.findall(r"""id=["']?([^"'\s>]+)""", pages.get(target, ""))
    return (site / target).is_file() and (not anchor or anchor in ids)
