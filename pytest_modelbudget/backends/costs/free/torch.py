"""The names of torch's operators that cost nothing by rule."""

from __future__ import annotations

_NORMALISATION = """
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _native_batch_norm_legit_functional
    _batch_norm_no_update _batch_norm_with_update _batch_norm_with_update_functional batch_norm_elemt batch_norm_stats
    cudnn_batch_norm quantized_batch_norm native_layer_norm native_group_norm _fused_rms_norm _weight_norm_interface
    native_norm renorm native_dropout _masked_scale dropout batch_norm batch_norm_update_stats batch_norm_gather_stats
    batch_norm_gather_stats_with_counts miopen_batch_norm _fused_dropout _weight_norm
"""
_SOFTMAX_AND_LOSSES = """
    _softmax _log_softmax _safe_softmax _masked_softmax logsumexp _logcumsumexp logcumsumexp log_sigmoid_forward
    nll_loss_forward nll_loss2d_forward mse_loss smooth_l1_loss huber_loss soft_margin_loss multi_margin_loss
    multilabel_margin_loss_forward binary_cross_entropy binary_cross_entropy_with_logits _sparse_softmax
    _sparse_log_softmax _nested_tensor_softmax_with_shape _ctc_loss _cudnn_ctc_loss miopen_ctc_loss
"""
_POOLING_AND_RESAMPLING = """
    max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d max_unpool2d max_unpool3d
    quantized_max_pool1d quantized_max_pool2d quantized_max_pool3d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d
    upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    _upsample_lanczos2d_aa grid_sampler_2d grid_sampler_3d _grid_sampler_2d_cpu_fallback cudnn_grid_sampler
    affine_grid_generator im2col col2im max_pool2d adaptive_avg_pool3d mkldnn_adaptive_avg_pool2d mkldnn_max_pool2d
    mkldnn_max_pool3d cudnn_affine_grid_generator
"""
_LOOK_UPS_AND_MOVES = """
    embedding _embedding_bag _embedding_bag_forward_only embedding_renorm index index_select index_put _index_put_impl
    index_add index_copy index_fill index_reduce _unsafe_index _unsafe_index_put _unsafe_masked_index
    _unsafe_masked_index_put_accumulate gather scatter scatter_add scatter_reduce put take masked_fill masked_scatter
    masked_select where nonzero nonzero_static slice_scatter select_scatter diagonal_scatter as_strided_scatter cat
    _chunk_cat stack _stack block_diag repeat repeat_interleave roll flip rot90 tril triu tril_indices triu_indices
    constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle diag_embed clone copy _to_copy _copy_from lift
    lift_fresh lift_fresh_copy _unsafe_view _reshape_alias _reshape_copy view_copy detach resize set _pin_memory
    unsafe_split unsafe_split_with_sizes split_with_sizes_copy squeeze unsqueeze transpose t swapaxes as_strided
    _pack_padded_sequence complex _lazy_clone _mkldnn_reshape to_padded_tensor _jagged_to_padded_dense_forward
    _padded_dense_to_jagged_forward alias contiguous unfold_copy embedding_dense _embedding_bag_dense
    _embedding_bag_per_sample_weights _transform_bias_rescale_qkv _coalesce _coalesced _convert_indices_from_coo_to_csr
    _convert_indices_from_csr_to_coo _convert_weight_to_int4pack _convert_weight_to_int4pack_for_cpu
    _dyn_quant_pack_4bit_weight _cslt_compress _sparse_semi_structured_apply _sparse_semi_structured_apply_dense
    _sparse_semi_structured_tile _copy_from_and_resize _cudnn_rnn_flatten_weight _indices _values _mkldnn_transpose
    mkldnn_reorder_conv2d_weight mkldnn_reorder_conv3d_weight _nested_from_padded _nested_from_padded_tensor
    _nested_from_padded_and_nested_example _nested_tensor_from_mask _nested_tensor_from_tensor_list _nested_select
    _resize_output resize_as resize_as_sparse copy_sparse_to_sparse sparse_mask _sparse_mask_projection
    _sparse_broadcast_to sparse_resize sparse_resize_and_clear _to_dense _to_sparse _to_sparse_bsc _to_sparse_bsr
    _to_sparse_csc _to_sparse_csr _to_sparse_semi_structured to_mkldnn lu_unpack shallow_copy_data record_stream
"""
_REDUCTIONS_AND_ORDER = """
    sum mean prod var std var_mean std_mean amax amin aminmax _aminmax max min argmax argmin any all norm
    linalg_vector_norm count_nonzero nansum nanmedian median mode kthvalue topk sort argsort _unique _unique2 unique_dim
    unique_consecutive unique_dim_consecutive bincount histc histogram bucketize searchsorted isin cumsum cumprod cummax
    cummin _cummax_helper _cummin_helper trace segment_reduce _is_all_true _is_any_true allclose equal dist linalg_cross
    _spdiags _histogramdd_bin_edges _histogramdd_from_bin_cts _histogramdd_from_bin_tensors _sparse_sum _sparse_csr_sum
    _sparse_csr_prod _nested_sum hash_tensor _foreach_powsum _segment_reduce
"""
_MAKING = """
    empty empty_like empty_strided empty_permuted new_empty new_empty_strided zeros zeros_like new_zeros ones ones_like
    new_ones full full_like new_full arange range linspace logspace eye scalar_tensor rand rand_like randn randn_like
    randint randint_like randperm normal bernoulli multinomial uniform exponential cauchy geometric log_normal random
    poisson binomial _standard_gamma _sample_dirichlet bartlett_window blackman_window hamming_window hann_window
    kaiser_window fft_fftfreq fft_rfftfreq zero fill _efficientzerotensor _empty_affine_quantized
    _empty_per_channel_affine_quantized empty_quantized from_file sparse_coo_tensor sparse_compressed_tensor
    _sparse_coo_tensor_with_dims _sparse_coo_tensor_with_dims_and_tensors _sparse_compressed_tensor_with_dims
    _new_zeros_with_same_feature_meta _cudnn_init_dropout_state _fill_mem_eff_dropout_mask _philox_key_fold_in
    _philox_key_split _philox_normal _philox_randint _philox_uniform
"""
_ELEMENTWISE = """
    hardswish mish xlogy copysign gcd lcm fmod remainder _prelu_kernel glu addr _conj _conj_physical polar rsub
    floor_divide _add_relu threshold heaviside _thnn_fused_lstm_cell _thnn_fused_gru_cell rrelu_with_noise
    quantize_per_tensor quantize_per_channel quantize_per_tensor_dynamic dequantize int_repr
    fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask
    _fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fake_quantize_learnable_per_tensor_affine
    _fake_quantize_learnable_per_channel_affine _make_per_tensor_quantized_tensor _make_per_channel_quantized_tensor
    __irshift__ __ilshift__ _fused_moving_avg_obs_fq_helper fused_moving_avg_obs_fake_quant _choose_qparams_per_tensor
    glu_jvp _dirichlet_grad _standard_gamma_grad _amp_update_scale _amp_foreach_non_finite_check_and_unscale
    _fused_adagrad _fused_adam _fused_adamw _fused_sgd leaky_relu
"""
_QUESTIONS = """
    _local_scalar_dense item is_same_size is_pinned sym_size sym_numel sym_stride sym_storage_offset _assert_async
    _assert_scalar _assert_tensor_metadata _functional_assert_async _functional_assert_scalar _has_same_storage_numel
    is_coalesced _nnz sparse_dim dense_dim q_scale q_zero_point qscheme q_per_channel_scales q_per_channel_zero_points
    q_per_channel_axis sym_constrain_range sym_constrain_range_for_size _use_cudnn_ctc_loss _use_miopen_ctc_loss
    _fused_sdp_choice _dimI _dimV is_set_to _print _make_dep_token _linalg_check_errors
    _validate_compressed_sparse_indices _functional_sym_constrain_range _functional_sym_constrain_range_for_size
    _nested_compute_contiguous_strides_offsets _nested_get_jagged_dummy _nested_get_lengths _nested_get_max_seqlen
    _nested_get_min_seqlen _nested_get_offsets _nested_get_ragged_idx _nested_tensor_from_mask_left_aligned
    _nested_tensor_size _nested_tensor_storage_offsets _nested_tensor_strides
"""

ZERO = frozenset(
    " ".join(
        (
            _NORMALISATION, _SOFTMAX_AND_LOSSES, _POOLING_AND_RESAMPLING, _LOOK_UPS_AND_MOVES, _REDUCTIONS_AND_ORDER,
            _MAKING, _ELEMENTWISE, _QUESTIONS,
        )
    ).split()
)  # fmt: skip
"""Names of the `aten` operators that count zero, beside those torch itself tags as elementwise or as a view."""

_PRIMS = """
    _make_token _sink_tokens bessel_i0 bessel_i0e bessel_i1 bessel_i1e bessel_j0 bessel_j1 cbrt collapse copy_strided
    copy_to device_put erf_inv erfcx iota maximum_value minimum_value ndtri rev shift_left shift_right_arithmetic
    spherical_bessel_j0 xor_sum zeta _low_memory_max_pool_offsets_to_indices _low_memory_max_pool_with_offsets
    inductor_cvt_e8m0_rceil inductor_force_stride_order inductor_lookup_seed inductor_rand_eager_offset
    inductor_rand_eager_offsets inductor_randint inductor_random inductor_seed inductor_seeds prepare_softmax_online
    fma _low_memory_max_pool2d_offsets_to_indices _low_memory_max_pool2d_with_offsets
"""
PRIMS = frozenset(_PRIMS.split())
"""Names of the `prims` operators that count zero, beside those of their names in `aten`."""

_CHANGES = """
    bitsandbytes.int8_vectorwise_quant bitsandbytes.int8_vectorwise_dequant bitsandbytes.int8_double_quant
    bitsandbytes.int8_mm_dequant bitsandbytes.quantize_4bit bitsandbytes.dequantize_4bit
    bitsandbytes.quantize_blockwise bitsandbytes.dequantize_blockwise torchao.choose_qparams_affine
    torchao.choose_scale_float8 torchao.quantize_affine torchao.dequantize_affine
    torchao.quantize_affine_float8_non_decomposed torchao.dequantize_affine_float8_non_decomposed
    quantized_decomposed.choose_qparams quantized_decomposed.choose_qparams_symmetric
    quantized_decomposed.choose_qparams_per_token quantized_decomposed.choose_qparams_per_token_asymmetric
    quantized_decomposed.convert_element_type
"""
_FORMS = ("per_tensor", "per_channel", "per_token", "per_channel_group", "per_block")
_SPARSE = """
    _to_dense to_dense _to_sparse to_sparse _to_sparse_csr _to_sparse_csc _to_sparse_bsr _to_sparse_bsc _coalesce
    _coalesced sparse_mask sparse_resize sparse_resize_and_clear _sparse_mask_projection _indices _values indices values
    crow_indices col_indices ccol_indices row_indices sparse_coo_tensor _sparse_coo_tensor_unsafe
    _sparse_coo_tensor_with_dims _sparse_coo_tensor_with_dims_and_tensors sparse_compressed_tensor
    _sparse_compressed_tensor_unsafe _sparse_compressed_tensor_with_dims sparse_csr_tensor sparse_csc_tensor
    sparse_bsr_tensor sparse_bsc_tensor _validate_sparse_coo_tensor_args _validate_sparse_compressed_tensor_args
    _sparse_sum _sparse_softmax _sparse_log_softmax _sparse_broadcast_to
"""
_QUANTIZED = """
    add add_relu add_scalar add_scalar_relu mul mul_relu mul_scalar mul_scalar_relu cat cat_relu relu6 leaky_relu
    hardswish sigmoid tanh elu celu clamp threshold prelu softmax dropout batch_norm batch_norm_relu batch_norm1d
    batch_norm1d_relu batch_norm2d batch_norm2d_relu batch_norm3d batch_norm3d_relu layer_norm group_norm instance_norm
    max_pool1d max_pool2d embedding_byte embedding_4bit embedding_bag_byte embedding_bag_4bit
"""
_DETECTION = "nms qnms box_iou_rotated roi_align qroi_align roi_pool ps_roi_align ps_roi_pool"
FULL_NAMES = frozenset(
    {*_CHANGES.split()}
    | {f"quantized_decomposed.{kind}quantize_{form}" for kind in ("", "de", "fake_") for form in _FORMS}
    | {f"aten.{name}" for name in _SPARSE.split()}
    | {f"quantized.{name}" for name in _QUANTIZED.split()}
    | {f"torchvision.{name}" for name in _DETECTION.split()}
)
"""Operators that count zero under just these names: what only quantises or undoes it; what makes sparse tensors, brings
them into other forms or asks for their parts; what works on quantised numbers or on boxes."""
