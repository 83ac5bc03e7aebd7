"""One forward pass, watched: which module was called, what it gave, what fed it, what it cost.

`observer` is the base of all that watch a pass, and notes events from which blocks that repeat are replayed; the
`tracer` is one (`calls` of modules, `joins` between them). `forward` runs a model with `arguments` that fit its inputs;
`hints` say what to do when it fails. `steering` runs a model that read unknown values again with others, `perturb` a
real run with other choices.
"""
