"""Text of others that acts nowhere."""

from __future__ import annotations

from pytest_modelbudget.system.escape import harmless


def test_harmless_shows_what_it_replaced() -> None:
    """Control and direction characters become visible escapes."""
    assert harmless("a\x1b[2J\u202eb\nc") == "a\\x1b[2J\\u202eb\\nc"
    assert len(harmless("x" * 10_000)) == 400
