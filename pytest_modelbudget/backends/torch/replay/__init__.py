"""Blocks that repeat are not run again: `fingerprint` tells which are alike, and `cache` replays one.

`relative` has the events of a call in words that fit any block like it, `results` what it returned, and `graph` what
stands for it in autograd's graph.
"""
