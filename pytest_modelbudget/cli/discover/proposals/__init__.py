"""What is proposed: which names of an imported module build a model, and what to call them with.

`builders` finds them, by reading functions and never calling one; `proposal` puts together what each is called with:
as it is, as somebody wrote it, or one value for each argument it needs, from `configs` (a configuration with its
defaults), `names` (a table of names) and `sizes` (what an argument of that name usually is). `offline` sets the
arguments that would have weights fetched.
"""
