"""Every private name of torch in use: where, why, since when, and what is done without it.

A test compares `PRIVATE` with the source of the backend, and with the torch that is installed.
"""

from __future__ import annotations

from dataclasses import dataclass

OLDEST = "2.6"
"""The oldest torch that is supported."""

_NEEDED = "nothing: torch models are not counted, and the error names what is missing"
_NO_PLAN = "plans with the `sharding` that needs them fail, and say so"
_NOT_COMPILED = "`compile: inductor` is refused, and the error names what is missing"
_NOT_SCHEDULED = "steps that recompute have the order of a rule, and a larger error"
_SKIPPED = "it is passed over: what is not there cannot be changed"
_WRAPPED = "the wrapper is a row of its own; a test of wrapped models fails"
_UNPACKED = "such layers would seem to have no weights; tests of quantized models fail"


@dataclass(frozen=True, slots=True)
class Private:
    """Private `names` of torch, below their `owner`, that serve one purpose in `rooms` of this backend.

    `without` is what happens where torch lacks them. They are there `since` a version: the first that
    has them of 2.6, 2.14 and 2.15.
    """

    owner: str
    names: str
    rooms: str
    why: str
    without: str = _NEEDED
    since: str = OLDEST

    @property
    def dotted(self) -> tuple[str, ...]:
        """Each name, from torch on."""
        return tuple(f"{self.owner}.{name}" for name in self.names.split())


PRIVATE: tuple[Private, ...] = (
    # Operators, and looks at tensors that nobody else sees.
    Private("torch._C", "DisableTorchFunction _DisableTorchDispatch", "compat", "own looks at tensors go past modes"),
    Private("torch.utils._python_dispatch", "_disable_current_modes", "compat", "a pass has its own modes alone"),
    Private(
        "torch.utils._python_dispatch", "TorchDispatchMode", "compiled trace",
        "operators are seen; torch documents it there",
    ),
    Private("torch", "_foreach_add _foreach_maximum _foreach_sqrt", "training", "updates of lists, as torch does them"),
    Private(
        "torch.distributed.fsdp._fully_shard._fsdp_collectives", "_get_param_all_gather_inputs", "distributed",
        "shards that are on the host are copied before they are gathered", _NO_PLAN,
    ),
    Private("torch.autograd", "_engine_run_backward", "training", "backward passes of a user's own step are seen"),
    Private("torch.utils._pytree", "tree_map_only", "compat", "arguments of operators are mapped as torch nests them"),
    Private(
        "torch._ops", "_higher_order_ops", "compat", "modes see operators that take functions",
        "they see them without it from 2.9 on",
    ),
    Private("torch._ops", "OpOverload", "compat", "plain operators are told from higher-order ones"),
    Private(
        "torch._ops.OpOverload", "_schema _overloadname", "costs meta trace",
        "an operator's name, and what it writes",
    ),
    Private("torch._ops.OpOverload", "_overloadpacket", "costs", "rules are for all overloads of an operator"),
    Private(
        "torch._C", "_dispatch_has_kernel_for_dispatch_key", "compat trace",
        "composite operators are taken apart, and collectives without a kernel for meta get one",
    ),
    Private(
        "torch._C", "_jit_get_all_schemas DispatchKeySet DispatchKey", "compat",
        "collectives run on meta by their kernel for the CPU", _NO_PLAN,
    ),
    Private("torch.library.Library", "_destroy", "compat", "kernels that were registered go again", _NO_PLAN),
    Private(
        "torch", "_softmax _log_softmax", "distributed kernels",
        "half precision is widened inside the kernel, as on a GPU",
    ),
    Private("torch", "_fused_sdp_choice", "kernels", "whether attention runs as one kernel is torch's own decision"),
    Private(
        "torch._C", "_nn", "kernels", "functions of layers are C functions, which are watched where they are called",
    ),
    Private("torch", "_VF", "kernels", "recurrent functions are watched where they are called"),
    # What torch.compile makes of a model, without a kernel.
    Private(
        "torch._subclasses.functional_tensor", "FunctionalTensor", "compat",
        "tensors of a function that is traced are as on the device that is planned for",
    ),
    Private(
        "torch._subclasses.fake_tensor",
        "FakeTensor FakeTensorMode DataDependentOutputException DynamicOutputShapeException", "compiled",
        "a model is traced without memory, and says where it asks for values", _NOT_COMPILED,
    ),
    Private(
        "torch._functorch.aot_autograd", "aot_function", "compiled",
        "forward and backward pass are traced in one; functorch.compile has it, and imports more", _NOT_COMPILED,
    ),
    Private(
        "torch._inductor", "decomposition.select_decomp_table lowering virtualized.V", "compiled",
        "the graph is taken apart as Inductor does it", _NOT_COMPILED,
    ),
    Private(
        "torch._functorch.partitioners", "min_cut_rematerialization_partition", "compiled",
        "a graph is completed between Inductor's passes and its partition", _NOT_COMPILED,
    ),
    Private(
        "torch._inductor.compile_fx", "partition_fn", "compiled", "Inductor decides what is saved", _NOT_COMPILED,
        since="2.14",
    ),
    Private(
        "torch._inductor",
        "compile_fx._recursive_post_grad_passes debug.DebugContext fx_passes.post_grad.view_to_reshape "
        "graph.GraphLowering ir.MultiOutput memory.estimate_peak_memory memory.get_freeable_input_buf "
        "scheduler.Scheduler", "compiled", "what is fused, and in which order kernels run", _NOT_SCHEDULED,
        since="2.14",
    ),
    Private(
        "torch.utils._ordered_set", "OrderedSet", "compiled", "Inductor's scheduler takes such sets", _NOT_SCHEDULED,
        since="2.14",
    ),
    Private(
        "torch._functorch._aot_autograd.graph_compile", "_boxed_call", "compiled",
        "what runs a graph lets go of its inputs", _NOT_COMPILED, since="2.14",
    ),
    Private(
        "torch.utils.checkpoint", "_CachingTorchDispatchMode _checkpoint_without_reentrant_generator_impl", "compiled",
        "regions that are recomputed are tagged as torch.compile tags them", _NOT_COMPILED, since="2.14",
    ),
    Private(
        "torch.utils._pytree", "tree_flatten tree_leaves tree_unflatten", "compat", "arguments are inputs of the graph",
    ),
    Private(
        "torch.fx._lazy_graph_module", "_use_lazy_graph_module", "compiled", "no code is written for graphs",
        _NOT_COMPILED,
    ),
    Private("torch._C", "_DisableAutocast", "compiled", "graphs are run as they were traced", _NOT_COMPILED),
    Private(
        "torch.compiler", "_is_compiling_flag", "compiled", "models that are compiled read no values", _NOT_COMPILED,
    ),
    Private("torch._ops.OpOverload", "_opname", "compiled", "which operators are fused goes by their names"),
    # Tensors and modules.
    Private(
        "torch.nn.MultiheadAttention", "_qkv_same_embed_dim", "kernels", "whether torch's own kernel runs it",
    ),
    Private("torch.Tensor", "_make_subclass", "compat", "parameters stay of their class without memory"),
    Private("torch.Tensor", "_version", "replay", "a block that wrote to its arguments is not replayed"),
    Private("torch.Tensor", "_base", "compiled costs replay training", "a view keeps alive what it is a view of"),
    Private("torch.Tensor", "_is_view", "kernels memory", "a view's gradient is not added to in place"),
    Private(
        "torch.Tensor", "_indices _values", "meta model", "sparse tensors that are not coalesced have no public ones",
    ),
    Private("torch.UntypedStorage", "_cdata", "distributed memory model", "which tensors share memory"),
    Private("torch._C", "TensorBase StorageBase", "model", "what tensors say of their device before it is patched"),
    Private(
        "torch.nn.Module", "_modules _parameters _buffers _forward_hooks _forward_pre_hooks",
        "compiled distributed model replay serving trace training",
        "what a module holds itself, None and ties included, at no cost",
    ),
    Private(
        "torch.nn.modules.module", "_global_parameter_registration_hooks _global_buffer_registration_hooks", "model",
        "what a builder registers goes to meta at once; the public functions change dicts that others read",
    ),
    Private(
        "torch.nn.modules.lazy.LazyModuleMixin", "_infer_parameters", "trace", "lazy layers are built on meta",
        "they are built with memory",
    ),
    Private(
        "torch.nn.modules.batchnorm", "_BatchNorm", "replay", "its count of batches is no difference between blocks",
    ),
    Private("torch.nn.utils.parametrizations", "_is_orthogonal", "model", "weights on meta are in no position to tell"),
    Private(
        "torch.nn.Module", "_load_from_state_dict _load_state_dict_pre_hooks _load_state_dict_post_hooks", "model",
        "whether a model's own code sees the weights that are loaded into it",
    ),
    Private(
        "torch.nn.init", "_no_grad_fill_ _no_grad_zero_", "model", "what fills weights with constants",
        "their public callers are known, too",
    ),
    Private(
        "torch._dynamo.eval_frame.OptimizedModule", "_orig_mod", "model",
        "a compiled module is counted as what it wraps", _WRAPPED,
    ),
    Private(
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "_checkpoint_wrapped_module", "model",
        "a checkpointed module is counted as what it wraps", _WRAPPED,
    ),
    Private(
        "torch.distributed.fsdp.fully_sharded_data_parallel", "_fsdp_wrapped_module", "model",
        "a module of FSDP1 is counted as what it wraps", _WRAPPED,
    ),
    Private(
        "torch.export._unlift", "_guards_fn", "model", "the guards of an exported module are no layer",
        "there are none", since="2.14",
    ),
    Private(
        "torch.ao.nn.quantized.modules.linear", "_packed_params", "model", "packed weights have no parameters",
        _UNPACKED,
    ),
    Private(
        "torch.ao.nn.quantized.dynamic.modules.rnn", "_all_weight_values _packed_weight_ih _packed_weight_hh",
        "model", "packed weights have no parameters", _UNPACKED,
    ),
    Private(
        "torch.jit", "_trace _trace._trace_impl _script _script._script_impl _freeze", "model",
        "a builder that makes a program runs with memory, also where it imported the function", _SKIPPED,
    ),
    Private("torch.export", "_trace _trace._export", "model", "the same for exported programs", _SKIPPED),
    Private(
        "torch", "_dynamo", "meta model trace", "that the compiler is imported is known without importing it",
        "it is imported, which takes a second",
    ),
    # What code can leave changed, and is put back.
    Private(
        "torch._C", "_get_dispatch_stack_at _get_dispatch_mode _unset_dispatch_mode _push_on_torch_dispatch_stack "
        "_pop_torch_dispatch_stack _get_function_stack_at _push_on_torch_function_stack _pop_torch_function_stack",
        "model", "modes that a model leaves behind are taken off",
    ),
    Private(
        "torch._C", "_len_torch_dispatch_stack _len_torch_function_stack", "model replay",
        "modes around a block are a part of what it does",
    ),
    Private("torch._ops", "mode_stack_state_for_pre_dispatch", "model", "modes before dispatch are taken off"),
    Private(
        "torch._ops._ModeStackStateForPreDispatch", "_schema_check_mode", "model", "the third mode before dispatch",
    ),
    Private(
        "torch.utils._python_dispatch.TorchDispatchMode", "_mode_key", "model", "modes of torch have a place apart",
        "they lie on the stack",
    ),
    Private(
        "torch.utils._python_dispatch", "_is_in_any_mode_without_ignore_compile_internals", "model",
        "flags of the modes that are entered, which torch keeps beside their stack", _SKIPPED, since="2.14",
    ),
    Private(
        "torch._C", "_get_torch_function_state _set_torch_function_state _get_tracing_state _set_tracing_state "
        "_set_grad_enabled _is_fwd_grad_enabled _set_fwd_grad_enabled _is_multithreading_enabled "
        "_set_multithreading_enabled _is_view_replay_enabled _set_view_replay_enabled", "model",
        "settings of a thread have no public way to be read, or to be set without a context",
    ),
    Private("torch._C", "_InferenceMode", "model", "inference mode that is left open is closed"),
    Private("torch.autograd.grad_mode", "_inference_mode_context", "model", "the same, for one that Python entered"),
    Private("torch._C", "_functorch", "model", "levels of vmap and grad that are left open are closed", _SKIPPED),
    Private("torch", "_GLOBAL_DEVICE_CONTEXT", "model", "the default device of a thread"),
    Private("torch.utils", "_device", "model", "the default device, as factories look it up"),
    Private("torch.autograd.forward_ad", "_current_level", "model", "levels of forward gradients are closed"),
    Private(
        "torch._C._autograd",
        "_pop_saved_tensors_default_hooks _saved_tensors_hooks_disable _saved_tensors_hooks_enable "
        "_saved_tensors_hooks_get_disabled_error_message", "model",
        "hooks for saved tensors that are left behind are taken off",
    ),
    Private(
        "torch._C._autograd", "_top_saved_tensors_default_hooks", "compat", "which hooks for saved tensors are set",
        "they are not put back, and no block is replayed with gradients", since="2.14",
    ),
    Private("torch._C", "_get_default_device", "model", "the default type of tensors"),
    Private("torch._C", "_set_deterministic_algorithms", "model", "the public function imports the compiler"),
    Private(
        "torch._C", "_get_mkldnn_enabled _set_mkldnn_enabled", "trace", "fused recurrent kernels cannot be counted",
    ),
    Private(
        "torch._C", "_get_math_sdp_enabled _get_flash_sdp_enabled", "replay",
        "kernels around a block are a part of it",
    ),
    Private(
        "torch._C", "_get_fp32_precision_getter _set_fp32_precision_setter", "model",
        "precisions of products, new names", _SKIPPED, since="2.14",
    ),
    Private(
        "torch.backends.mha", "_is_fastpath_enabled", "model trace", "fused encoder layers would hide their parts",
        "they hide them; a test of encoders fails",
    ),
    Private(
        "torch.distributions.Distribution", "_validate_args", "model trace", "ranges of parameters are values",
        "such a model runs on values",
    ),
    Private(
        "torch.__future__", "_overwrite_module_params_on_conversion _swap_module_params_on_conversion", "model",
        "settings without a getter", _SKIPPED,
    ),
    Private("torch.nn.utils.parametrize", "_cache _cache_enabled", "model", "a cache that is left open is closed"),
    Private("torch._dynamo", "eval_frame", "model", "how `torch.compile` goes about it", _SKIPPED),
    Private("torch._dynamo.eval_frame", "_stance", "model", "the same", _SKIPPED),
    # Autograd.
    Private("torch._C", "_current_autograd_node", "compiled memory", "which layer a backward operator is of"),
    Private("torch.autograd", "_get_sequence_nr", "memory", "which layer made a node of autograd"),
    Private("torch._C._FunctionBase", "_sequence_nr", "compiled memory", "which layer made a node of autograd"),
    # Sharded models, and plans of them.
    Private("torch.distributed.tensor.DTensor", "_local_tensor", "model", "the part of one rank", _NO_PLAN),
    Private(
        "torch.distributed.tensor.DTensor", "_op_dispatcher", "distributed",
        "how operators are sharded is remembered by rank, and a plan has ranks of its own", _NO_PLAN,
    ),
    Private(
        "torch.distributed", "_functional_collectives", "distributed meta model", "collectives as operators", _NO_PLAN,
    ),
    Private(
        "torch.distributed", "_tensor", "model", "hooks of tensor parallelism that were set under an older name",
        _SKIPPED,
    ),
    Private(
        "torch.distributed", "_composable.fsdp", "model", "modules of FSDP2 that were sharded under an older name",
        _SKIPPED,
    ),
    Private(
        "torch._C._distributed_c10d", "ProcessGroup _resolve_process_group", "meta", "how many ranks take part",
        _NO_PLAN,
    ),
    Private(
        "torch.distributed", "_composable.replicate_with_fsdp.replicate", "distributed",
        "replicas of what tensor parallelism cuts", _NO_PLAN, since="2.14",
    ),
    Private(
        "torch.distributed.fsdp._fully_shard._fsdp_init",
        "_get_device_handle _get_device_from_mesh _move_states_to_device", "distributed",
        "a mesh on the meta device has the device without memory", _NO_PLAN,
    ),
    Private(
        "torch.distributed.fsdp._fully_shard", "_fsdp_collectives", "distributed",
        "parameters of several dtypes are packed without values", _NO_PLAN,
    ),
    Private(
        "torch.distributed.fsdp._fully_shard._fsdp_param_group.FSDPParamGroup", "_validate_no_meta_params",
        "distributed", "FSDP2 runs on parameters that are on meta", _NO_PLAN,
    ),
    Private(
        "torch.distributed.fsdp._fully_shard", "_fsdp_param.FSDPParam", "distributed",
        "sums of gradients in another dtype are shown as gradients", _NO_PLAN,
    ),
    Private(
        "torch.distributed.fsdp._fully_shard._fully_shard", "_orig_cls_mro_index", "model",
        "the class before sharding", "the one two classes up", since="2.14",
    ),
    Private(
        "torch.distributed.fsdp", "_common_utils._FSDPDeviceHandle _flat_param _init_utils _runtime_utils",
        "distributed", "FSDP1 runs on parameters that are on meta", _NO_PLAN,
    ),
    Private(
        "torch.distributed.fsdp.fully_sharded_data_parallel", "_init_device_handle", "distributed",
        "the same", _NO_PLAN,
    ),
    Private(
        "torch.distributed.fsdp._init_utils", "_need_to_materialize_module _get_compute_device", "distributed",
        "the same", _NO_PLAN,
    ),
    Private(
        "torch.distributed.fsdp._flat_param", "_no_dispatch_record_stream", "distributed", "the same", _SKIPPED,
    ),
    Private("torch.distributed.fsdp._common_utils", "_device_handle", "distributed", "the same", _NO_PLAN),
    Private(
        "torch.distributed.fsdp.fully_sharded_data_parallel", "_sync_gradients", "training",
        "whether the next backward pass exchanges gradients", "passes of `no_sync` fail",
    ),
    Private(
        "torch.distributed.tensor", "_redistribute _collective_utils.MeshTopoInfo", "distributed",
        "what DTensor remembers of a mesh is forgotten with it", _SKIPPED,
    ),
    Private("torch.distributed.tensor._redistribute", "_gen_transform_infos", "distributed", "the same", _SKIPPED),
    Private(
        "torch.distributed.tensor.debug", "_clear_sharding_prop_cache", "distributed", "the same", _SKIPPED,
        since="2.14",
    ),
    Private(
        "torch.distributed.tensor._sharding_prop.ShardingPropagator", "_propagate_tensor_meta", "distributed",
        "runs by which DTensor learns shapes are seen by nobody", _NO_PLAN,
    ),
    Private(
        "torch.distributed.tensor._sharding_prop.ShardingPropagator", "_propagate_tensor_meta_non_cached",
        "distributed", "the same, behind its cache", "the method in front of it is taken",
    ),
    Private(
        "torch.nn.parallel.distributed", "_verify_param_shape_across_processes _sync_module_states", "distributed",
        "replicas compare their parameters by values", _SKIPPED,
    ),
    Private(
        "torch.nn.parallel.DistributedDataParallel", "_comm_hooks", "distributed", "whether a model reduces itself",
    ),
    Private(
        "torch.distributed.tensor.experimental._attention", "_cp_options _RotateMethod", "distributed",
        "ring attention runs with torch's own defaults, and both ways to exchange keys", _NO_PLAN, since="2.14",
    ),
    Private(
        "torch.distributed.tensor.experimental._context_parallel._attention",
        "_templated_ring_attention _templated_ring_attention_backward", "distributed",
        "rings of other layers are repeated", _NO_PLAN, since="2.14",
    ),
    Private(
        "torch.testing._internal.distributed.fake_pg", "FakeStore", "distributed", "a world of ranks in one process",
        _NO_PLAN,
    ),
)  # fmt: skip
"""Every private name of torch in use: where, why, since when, and what is done without it."""
