"""LiteRT files (`.tflite`): `content` is what stands in one, `model` the exported model of it, `arena` its plan.

`schema` and `options` are facts of the published format, `kernels` those of the runtime. A file is mapped, and of a
weight only its place is read; no library is needed. What is not counted: the scales and zero points of quantised
tensors, which the format has in its tensors and not as constants (`file_bytes` hold them), and other graphs of a file
than the first and those it runs.
"""

from __future__ import annotations

from pathlib import Path

from pytest_modelbudget.backends.exported.graph import ExportedModel
from pytest_modelbudget.backends.exported.litert.content import read_content
from pytest_modelbudget.backends.exported.litert.model import exported_model

__all__ = ["read"]


def read(path: Path) -> ExportedModel:
    """The model in the LiteRT file at `path`.

    Raises:
        DamagedFile: it is none, or one with an offset, index or size that does not fit.
    """
    return exported_model(read_content(path))
