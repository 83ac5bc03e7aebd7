"""One summary and one plan as people see them: layer tables, plans in words and as a curve, and both in notebooks.

It knows what a summary holds and nothing of limits, changes or results; `reports` builds on it.
"""
