"""The model as it stands: its modules, weights and attributes, and copies of it without memory, or with.

`build` makes models without memory (`factories` of tensors, `unknown_values` in them, their `appearance` to a model's
own code), `meta_copy` copies a user's model without its weights, `real_copy` makes one with memory. `global_state`
puts back what either sets (`settings`). `modules`, `weights` and `attributes` read the structure: `packed_layers`,
`stored_tensors` (quantised, sparse, nested), `dtensors` (sharded), `programs` (exported, scripted), `keras_layers`.
"""
