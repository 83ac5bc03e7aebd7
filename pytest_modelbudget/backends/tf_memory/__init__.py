"""Memory of a TensorFlow graph as its executor runs it, read from the graph and never run.

`kernels` says which kernels make new memory and which write over an input, `nodes` makes one list of operators of a
graph and what it calls, `loops` says what a loop piles up, `liveness` makes the memory trace.
"""
