"""Operators on the meta device: which operands keep values, what was answered before, and which values were read.

`dispatch` decides for each operator where it runs, `cache` remembers what operators made of operands without values,
`shape_rules` answers the commonest ones without asking torch; `readings` notes which values that nobody gave were read.
"""
