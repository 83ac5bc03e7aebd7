"""Memory of a TensorFlow graph as its executor runs it, read from the graph and never run.

`optimized` is the graph as TensorFlow's optimizer leaves it, with the names of `function_names`, `nodes` makes one list
of its operators and of what it calls, `order` says in which order they run, `kernels` which of them make new memory and
which write over an input (`parts`: where that depends on what is asked for), `scratch` and `packing` what they take
besides (`contraction`: one product), which `facts` asks once for each operator, `rounds` opens loops round by round,
`executor` runs them in thought with `storages` as what is in memory; `liveness` makes the memory trace.
"""
