"""The names of the operators of exported torch programs that cost nothing by rule.

Those of `free/torch.py`, and by name what torch's own tags say there: everything elementwise, and views. Exported
programs have operators whole that torch takes apart before it runs them (`aten.layer_norm`), too. In-place operators
have the names of the others, without the underscore at their end.
"""

from __future__ import annotations

from pytest_modelbudget.backends.costs.free import torch

_ELEMENTWISE = """
    __ixor__ __lshift__ __rshift__ __xor__ _fused_moving_avg_obs_fq_helper_functional abs acos acosh add addcdiv
    addcmul angle asin asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor ceil celu clamp clamp_max clamp_min clip conj_physical cos cosh deg2rad digamma
    div elu eq erf erfc erfinv exp exp2 expm1 float_power floor fmax fmin frac frexp ge gelu gt hardshrink
    hardsigmoid hardtanh hypot i0 igamma igammac isfinite isinf isnan isneginf isposinf ldexp le lerp lgamma
    linalg__powsum log log10 log1p log2 log_sigmoid logaddexp logaddexp2 logical_and logical_not logical_or
    logical_xor logit lt maximum minimum mul multilabel_margin_loss mvlgamma nan_to_num ne neg nextafter nll_loss
    nll_loss2d normal_functional polygamma positive pow rad2deg reciprocal relu relu6 round rrelu
    rrelu_with_noise_functional rsqrt selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink sqrt
    square sub tan tanh true_divide trunc
"""
_SPECIAL_FUNCTIONS = """
    special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1
    special_chebyshev_polynomial_t special_chebyshev_polynomial_u special_chebyshev_polynomial_v
    special_chebyshev_polynomial_w special_digamma special_entr special_erf special_erfc special_erfcx
    special_erfinv special_exp2 special_expit special_expm1 special_gammainc special_gammaincc special_gammaln
    special_hermite_polynomial_h special_hermite_polynomial_he special_i0 special_i0e special_i1 special_i1e
    special_laguerre_polynomial_l special_legendre_polynomial_p special_log1p special_log_ndtr special_log_softmax
    special_logit special_logsumexp special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0
    special_modified_bessel_k1 special_multigammaln special_ndtr special_ndtri special_polygamma special_psi
    special_round special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1
    special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u
    special_shifted_chebyshev_polynomial_v special_shifted_chebyshev_polynomial_w special_sinc special_softmax
    special_spherical_bessel_j0 special_xlog1py special_xlogy special_zeta
"""
_VIEWS = """
    _autocast_to_full_precision _autocast_to_reduced_precision _fw_primal _make_dual _neg_view _nested_get_values
    _nested_view_from_buffer _nested_view_from_jagged _sparse_compressed_tensor_unsafe _sparse_coo_tensor_unsafe
    _unpack_dual _validate_sparse_compressed_tensor_args _validate_sparse_coo_tensor_args adjoint align_to broadcast_to
    ccol_indices chunk coalesce col_indices conj crow_indices diagonal dsplit expand expand_as flatten hsplit imag
    indices linalg_diagonal mH mT matrix_H moveaxis movedim narrow numpy_T permute pin_memory ravel real refine_names
    rename reshape reshape_as resolve_conj resolve_neg row_indices select slice slice_inverse sparse_bsc_tensor
    sparse_bsr_tensor sparse_csc_tensor sparse_csr_tensor split split_with_sizes swapdims tensor_split to to_dense
    to_sparse unbind unflatten unfold values view view_as view_as_complex view_as_real vsplit
"""
_WHOLE = """
    __and__ __iand__ __ior__ __or__ _batch_norm_impl_index _cast_Byte _cast_Char _cast_Double _cast_Float _cast_Half
    _cast_Int _cast_Long _cast_Short _dim_arange _pad_circular _pad_enum _pad_packed_sequence _reshape_from_tensor
    _saturate_weight_to_fp16 _shape_as_tensor _to_cpu absolute adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_max_pool1d alpha_dropout arccos arccosh arcsin arcsinh arctan arctan2 arctanh argwhere atleast_1d
    atleast_2d atleast_3d avg_pool1d broadcast_tensors cartesian_prod chalf column_stack combinations concat
    concatenate cosine_embedding_loss cosine_similarity cross cross_entropy_loss ctc_loss cumulative_trapezoid data
    diag diagflat diff divide dstack embedding_bag fake_quantize_per_channel_affine fake_quantize_per_tensor_affine
    feature_alpha_dropout feature_dropout fft_fftshift fft_ifftshift fill_diagonal fix flatten_dense_tensors fliplr
    flipud ger gradient greater greater_equal grid_sampler group_norm hinge_embedding_loss histogramdd hstack
    instance_norm is_complex is_floating_point is_nonzero is_signed isclose isreal kl_div kron l1_loss layer_norm
    less less_equal linalg_vander log_softmax margin_ranking_loss max_pool1d max_pool1d_with_indices max_pool3d
    meshgrid msort multiply nanmean nanquantile native_channel_shuffle negative nested_to_padded_tensor nll_loss_nd
    nonzero_numpy norm_except_dim not_equal one_hot outer pad pad_sequence pairwise_distance poisson_nll_loss prelu
    quantile rms_norm row_stack softmax subtract sum_to_size take_along_dim tile trapezoid trapz triplet_margin_loss
    type_as unflatten_dense_tensors unsafe_chunk vander vstack
"""
_OF_LISTS = """
    _foreach_abs _foreach_acos _foreach_add _foreach_addcdiv _foreach_addcmul _foreach_asin _foreach_atan
    _foreach_ceil _foreach_clamp_max _foreach_clamp_min _foreach_clone _foreach_copy _foreach_cos _foreach_cosh
    _foreach_div _foreach_erf _foreach_erfc _foreach_exp _foreach_expm1 _foreach_floor _foreach_frac _foreach_lerp
    _foreach_lgamma _foreach_log _foreach_log10 _foreach_log1p _foreach_log2 _foreach_max _foreach_maximum
    _foreach_minimum _foreach_mul _foreach_neg _foreach_norm _foreach_pow _foreach_reciprocal _foreach_round
    _foreach_rsqrt _foreach_sigmoid _foreach_sign _foreach_sin _foreach_sinh _foreach_sqrt _foreach_sub _foreach_tan
    _foreach_tanh _foreach_trunc _foreach_zero
"""
_GRADIENTS = """
    _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward _ctc_loss_backward _embedding_bag_backward
    _embedding_bag_dense_backward _embedding_bag_per_sample_weights_backward
    _fake_quantize_learnable_per_channel_affine_backward _fake_quantize_learnable_per_tensor_affine_backward
    _fused_rms_norm_backward _grid_sampler_2d_cpu_fallback_backward _log_softmax_backward_data
    _masked_softmax_backward _nested_select_backward _nested_sum_backward _pack_padded_sequence_backward
    _prelu_kernel_backward _segment_reduce_backward _softmax_backward_data _sparse_log_softmax_backward_data
    _sparse_softmax_backward_data _sparse_sum_backward _thnn_fused_gru_cell_backward _thnn_fused_lstm_cell_backward
    _thnn_fused_lstm_cell_backward_impl _upsample_bicubic2d_aa_backward _upsample_bilinear2d_aa_backward
    _upsample_lanczos2d_aa_backward _upsample_nearest_exact1d_backward _upsample_nearest_exact2d_backward
    _upsample_nearest_exact3d_backward _weight_norm_interface_backward adaptive_avg_pool3d_backward
    adaptive_max_pool2d_backward adaptive_max_pool3d_backward affine_grid_generator_backward avg_pool2d_backward
    avg_pool3d_backward batch_norm_backward batch_norm_backward_elemt batch_norm_backward_reduce
    binary_cross_entropy_backward cudnn_affine_grid_generator_backward cudnn_batch_norm_backward
    cudnn_grid_sampler_backward cumprod_backward diagonal_backward elu_backward embedding_backward
    embedding_dense_backward fake_quantize_per_channel_affine_cachemask_backward
    fake_quantize_per_tensor_affine_cachemask_backward fractional_max_pool2d_backward fractional_max_pool3d_backward
    gather_backward gelu_backward glu_backward glu_backward_jvp grid_sampler_2d_backward grid_sampler_3d_backward
    hardshrink_backward hardsigmoid_backward hardswish_backward hardtanh_backward huber_loss_backward
    index_select_backward leaky_relu_backward log_sigmoid_backward logit_backward masked_scatter_backward
    masked_select_backward max_pool2d_backward max_pool2d_with_indices_backward max_pool3d_with_indices_backward
    miopen_batch_norm_backward mish_backward mkldnn_adaptive_avg_pool2d_backward mkldnn_max_pool2d_backward
    mkldnn_max_pool3d_backward mse_loss_backward multi_margin_loss_backward multilabel_margin_loss_backward
    native_batch_norm_backward native_dropout_backward native_group_norm_backward native_layer_norm_backward
    nll_loss2d_backward nll_loss_backward reflection_pad1d_backward reflection_pad2d_backward
    reflection_pad3d_backward replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward
    rrelu_with_noise_backward select_backward sigmoid_backward silu_backward slice_backward smooth_l1_loss_backward
    soft_margin_loss_backward softplus_backward softshrink_backward tanh_backward threshold_backward
    to_mkldnn_backward trace_backward unfold_backward upsample_bicubic2d_backward upsample_bilinear2d_backward
    upsample_linear1d_backward upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward
    upsample_trilinear3d_backward
"""
_COPIES = """
    _conj_copy _foreach_copy _fw_primal_copy _indices_copy _make_dual_copy _neg_view_copy _nested_get_values_copy
    _nested_view_from_buffer_copy _nested_view_from_jagged_copy _reshape_alias_copy _sparse_broadcast_to_copy
    _values_copy alias_copy as_strided_copy ccol_indices_copy col_indices_copy crow_indices_copy detach_copy
    diagonal_copy expand_copy indices_copy narrow_copy permute_copy row_indices_copy select_copy slice_copy
    split_copy squeeze_copy t_copy transpose_copy unbind_copy unsqueeze_copy values_copy view_as_complex_copy
    view_as_real_copy
"""
_PRIMS = """
    _make_token _sink_tokens abs acos acosh add amax amin as_strided as_strided_scatter asin asinh atan atan2 atanh
    bessel_i0 bessel_i0e bessel_i1 bessel_i1e bessel_j0 bessel_j1 bitwise_and bitwise_not bitwise_or bitwise_xor
    broadcast_in_dim cat cbrt ceil clone collapse collapse_view conj conj_physical convert_element_type copy_strided
    copy_to cos cosh device_put digamma div empty empty_permuted empty_strided eq erf erf_inv erfc erfcx exp exp2
    expm1 fill floor fmax fmin fmod frexp full full_like gcd ge gt hypot igamma igammac imag iota isfinite item le
    lgamma log log10 log1p log2 lt maximum maximum_value minimum minimum_value mul ndtri ne neg nextafter normal pow
    prod real reciprocal remainder reshape resize rev round rsqrt scalar_tensor shift_left shift_right_arithmetic
    sign signbit sin sinh spherical_bessel_j0 split_dim sqrt squeeze sub sum tan tanh transpose trunc uniform var
    view_of view_of_dtype where xor_sum zeta
"""
_SIZES = "sym_size sym_numel sym_stride sym_storage_offset size numel dim stride storage_offset"
_NAMES = " ".join(
    (
        _ELEMENTWISE, _SPECIAL_FUNCTIONS, _VIEWS, _WHOLE, _OF_LISTS, _GRADIENTS, _COPIES, _SIZES,
    )
).split()  # fmt: skip

ZERO: frozenset[str] = (
    torch.FULL_NAMES
    | {f"aten.{name}" for name in (*torch.ZERO, *_NAMES)}
    | {f"prims.{name}" for name in (*torch.PRIMS, *torch.ZERO, *_PRIMS.split())}
)
"""Full names of operators that count zero (`aten.relu`)."""
