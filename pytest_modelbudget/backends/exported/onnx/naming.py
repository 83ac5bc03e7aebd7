"""What operators are called: those of the standard by their name, others after their domain."""

from __future__ import annotations

from pytest_modelbudget.backends.exported.onnx.model import Node


def type_name(node: Node) -> str:
    """`Conv`, `com.microsoft.FusedConv`."""
    return f"{node.domain}.{node.type}" if node.domain else node.type
