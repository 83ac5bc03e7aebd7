"""Manifests that somebody made to hurt: one mistake with its line. `tests/benchmarks/hostile_files.py` measures them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_modelbudget.config import holds_manifest, load
from tests.hostile_files import DEAR, TOML, YAML

CASES = [
    pytest.param(file, *case, id=f"{file[-4:]}: {name}", marks=[pytest.mark.slow] if name in DEAR else [])
    for file, cases in (("modelbudget.yaml", YAML), ("pyproject.toml", TOML))
    for name, case in cases.items()
]


@pytest.mark.parametrize(("name", "text", "words"), CASES)
def test_it_is_refused_with_its_place(tmp_path: Path, name: str, text: str, words: str) -> None:
    """Whatever it would become, and in a message that can be read."""
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert path.stat().st_size < 10**6
    assert holds_manifest(path)
    loaded = load(path, file=name)
    message = str(loaded.mistakes[0])
    assert words in message
    assert message.startswith(f"{name}:")
    assert max(len(str(mistake)) for mistake in loaded.mistakes) < 3_000
    assert len(loaded.mistakes) <= 101 or loaded.mistakes[200].model is not None


@pytest.mark.parametrize(
    ("data", "line"),
    [
        pytest.param("version: 1\n".encode("utf-16"), 1, id="UTF-16"),
        pytest.param(b"version: 1\nmodels: {a: \xff}\n", 2, id="junk"),
    ],
)
def test_another_encoding_is_told_with_the_line(tmp_path: Path, data: bytes, line: int) -> None:
    """It was read with marks in the place of characters."""
    (tmp_path / "modelbudget.yaml").write_bytes(data)
    loaded = load(tmp_path / "modelbudget.yaml", file="modelbudget.yaml")
    assert [str(mistake) for mistake in loaded.mistakes] == [
        f"modelbudget.yaml:{line}: not UTF-8 text (binary junk, or another encoding such as UTF-16): save it as UTF-8"
    ]


def test_a_large_manifest_is_refused_by_its_size(tmp_path: Path) -> None:
    """Before it is read."""
    path = tmp_path / "modelbudget.yaml"
    with path.open("wb") as file:
        file.truncate(10**11)
    loaded = load(path, file="modelbudget.yaml")
    assert "modelbudget.yaml: is too large: it has more than 4,000,000 bytes" in str(loaded.mistakes[0])


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_manifests_as_editors_write_them(tmp_path: Path, mark: str, ends: str) -> None:
    """With a mark before the text and any line ends, YAML and TOML are the same manifest."""
    texts = {
        "modelbudget.yaml": "models:\n  a: b:c\n",
        "pyproject.toml": '[tool.modelbudget.models]\na = "b:c"\n',
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.write_bytes((mark + text.replace("\n", ends)).encode())
        assert holds_manifest(path)
        loaded = load(path, file=name)
        assert (loaded.mistakes, [(one.id, one.build, one.place and one.place.line) for one in loaded.entries]) == (
            (),
            [("a", "b:c", 2)],
        )


def test_anchors_aliases_and_merges_of_people_are_read(tmp_path: Path) -> None:
    """What a merge says gives way to what stands beside it, and the first of several to the later ones in nothing."""
    path = tmp_path / "modelbudget.yaml"
    path.write_text(
        "models:\n"
        "  a: &a {build: b:c, batch: 1, samples: 5}\n"
        "  b: {<<: *a, batch: 2}\n"
        "  c: {<<: [{build: d:e}, *a], tags: [!!str 7]}\n"
    )
    loaded = load(path, file="modelbudget.yaml")
    found = [(one.id, one.build, one.batch, one.samples, one.tags) for one in loaded.entries]
    assert (loaded.mistakes, found) == (
        (),
        [("a", "b:c", 1, 5, ()), ("b", "b:c", 2, 5, ()), ("c", "d:e", 1, 5, ("7",))],
    )


def test_a_manifest_of_thousands_of_models_is_read(tmp_path: Path) -> None:
    """The bounds are far above what people register."""
    models = "".join(
        f"  m{number}: {{build: zoo:net, kwargs: {{width: {number}, depth: 3}}, inputs: 'float32[B, 3, 32, 32]', "
        "tags: [edge, cnn], budgets: {params: 1M, flops: 1 GFLOPs}}\n"
        for number in range(1000)
    )
    tags = "tags: {edge: {budgets: {weight_bytes: 4 MB}}, cnn: {budgets: {layers: 100}}}\n"
    path = tmp_path / "modelbudget.yaml"
    path.write_text(f"version: 1\n{tags}models:\n{models}")
    loaded = load(path, file="modelbudget.yaml")
    assert loaded.mistakes == ()
    assert len(loaded.entries) == 1000
