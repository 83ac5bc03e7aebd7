"""Blocks that repeat are not run again: `fingerprint` tells which are alike, `cache` replays one with its `results`."""
