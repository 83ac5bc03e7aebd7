"""One forward pass, watched: which module was called, what it gave, what fed it, what it cost.

`forward` runs it with `arguments` that fit the inputs, under the `tracer` (`calls` of modules, `joins` between them,
blocks that were `replayed`); `hints` say what to do when it fails. `steering` runs a model that read unknown values
again with others, `perturb` a real run with other choices.
"""
