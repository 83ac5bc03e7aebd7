"""The pictures of the documentation, made from a real run: `python .github/docs/pictures.py`.

A layer of one of the examples is widened, and the run that fails by it is shown as a terminal and as its HTML report.
Needs the extras `test` and a Chromium or Chrome; the pictures in docs/pictures are replaced.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

REPOSITORY: Final = Path(__file__).resolve().parents[2]
PICTURES: Final = REPOSITORY / "docs" / "pictures"
COLUMNS: Final = 110
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")
_HTML: Final = """<style>{stylesheet} body {{margin: 0}}
pre {{margin: 0; padding: 16px; font: 14px/1.35 monospace; color: #ddd; background: #1b1b1b; white-space: pre-wrap}}
</style><pre>{code}</pre>"""


def main() -> None:
    """Make both pictures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "nets"
        _widened_examples(root)
        text = _failing_run(root)
        PICTURES.mkdir(exist_ok=True)
        with sync_playwright() as tools:
            found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
            browser = tools.chromium.launch(executable_path=found, args=["--no-sandbox"])
            _picture_of_terminal(browser, text, root)
            _picture_of_page(browser, root / "report.html")
        for picture in PICTURES.glob("*.png"):
            _made_small(picture)


def _widened_examples(root: Path) -> None:
    """A repository with the examples, in which one layer is wider than was committed."""
    shutil.copytree(REPOSITORY / "examples", root / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    who = ["-c", "user.name=A Reader", "-c", "user.email=reader@example.org"]
    for words in (["init", "-qb", "main"], ["add", "--all"], [*who, "commit", "-qm", "Models"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    file = root / "examples/classics.py"
    file.write_text(file.read_text(encoding="utf-8").replace("Dense(128,", "Dense(160,"), encoding="utf-8")


def _failing_run(root: Path) -> str:
    environment = {"COLUMNS": str(COLUMNS), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(REPOSITORY)}
    words = ["--model-budget", "--model-budget-report=html:report.html", "--color=yes", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "examples/modelbudget.yaml::digits-cnn"],
        cwd=root, env={**os.environ, **environment}, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def _picture_of_terminal(browser: Browser, text: str, root: Path) -> None:
    """What was printed from the first failure to the advice, in its colours."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if "OVER BUDGET" in line)
    end = next(number for number, line in enumerate(lines) if "Model: digits-cnn" in line)
    shown = ["$ pytest --model-budget examples", "...", *lines[start:end]]
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi("\n".join(shown).rstrip()))
    page = root / "terminal.html"
    page.write_text(console.export_html(code_format=_HTML, theme=MONOKAI), encoding="utf-8")
    view = browser.new_page(viewport={"width": 1000, "height": 100})
    view.goto(page.as_uri())
    view.locator("pre").screenshot(path=PICTURES / "terminal.png")


def _picture_of_page(browser: Browser, report: Path) -> None:
    """The top of the HTML report."""
    view = browser.new_page(viewport={"width": 1000, "height": 760}, color_scheme="light")
    view.goto(report.as_uri())
    view.screenshot(path=PICTURES / "page.png")


def _made_small(picture: Path) -> None:
    """Few colours are enough for text and boxes."""
    with Image.open(picture) as opened:
        opened.convert("RGB").quantize(64).save(picture, optimize=True)


if __name__ == "__main__":
    main()
