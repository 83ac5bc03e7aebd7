"""The names of ONNX operators that cost nothing by rule."""

ZERO = frozenset()
