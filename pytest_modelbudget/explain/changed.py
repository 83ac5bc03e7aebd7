"""Why the params of a layer moved: the same formula with other numbers, or its weights before and after."""

from __future__ import annotations

from pytest_modelbudget.summary import Layer
from pytest_modelbudget.summary.formulas import formula, why


def why_changed(before: Layer, after: Layer) -> str:
    """The arithmetic of both counts; empty when it is the same.

    >>> from pytest_modelbudget.summary import Weight
    >>> wide, wider = (Layer("fc", "Linear", weights=(Weight("weight", (255, ins)),)) for ins in (128, 640))
    >>> why_changed(wide, wider)
    'in*out: 128*255 = 32,640 -> 640*255 = 163,200'
    """
    old, new = formula(before), formula(after)
    if old is not None and new is not None and old.words == new.words:
        text = f"{old.numbers} = {old.value:,} -> {new.numbers} = {new.value:,}"
        return f"{old.words}: {text}" if old.numbers != new.numbers else ""
    before_text, after_text = why(before), why(after)
    return "" if before_text == after_text else f"{before_text or 'no params'} -> {after_text or 'no params'}"
