"""The names of jax's primitives that cost nothing by rule."""

from __future__ import annotations

_ZERO = """
    abs acos acosh add add_any after_all and approx_top_k argmax argmin asin asinh atan atan2 atanh axis_index
    bessel_i0e bessel_i1e bitcast_convert_type broadcast_in_dim broadcast_to cbrt ceil clamp clz complex concatenate
    conj convert_element_type copy cos cosh create_token cumlogsumexp cummax cummin cumprod cumsum debug_callback
    debug_print device_put digamma dimension_size div dynamic_slice dynamic_update_slice empty empty2 eq eq_to erf
    erf_inv erfc exp exp2 expm1 floor from_edtype gather ge gt igamma igammac imag integer_pow iota iota_2x32_shape
    is_finite layout_constraint le le_to lgamma log log1p logistic lt lt_to lu_pivots_to_permutation max min mul mulhi
    name ne neg nextafter not optimization_barrier or pad philox2x32 philox4x32 pin platform_index polygamma
    population_count pow pvary random_bits random_clone random_fold_in random_gamma random_seed random_split
    random_unwrap random_wrap real reduce reduce_and reduce_max reduce_min reduce_or reduce_precision reduce_prod
    reduce_sum reduce_window reduce_window_max reduce_window_min reduce_window_sum reduce_xor
    regularized_incomplete_beta rem reshape reshard rev rng_bit_generator rng_uniform round rsqrt scatter scatter-add
    scatter-max scatter-min scatter-mul scatter-sub scatter_add scatter_max scatter_min scatter_mul scatter_sub
    select_and_gather_add select_and_scatter select_and_scatter_add select_n shape_assertion sharding_constraint
    shift_left shift_right_arithmetic shift_right_logical sign sin sinh slice sort split sqrt square squeeze stack
    stop_gradient sub tan tanh threefry2x32 threefry4x32 tie tile to_edtype top_k transpose unpin unstack xor zeros_like
    zeta accum_grad_in_ref addupdate all_gather all_gather_invariant all_to_all bitcast dim_as_value empty_ref free_ref
    freeze get igamma_grad_a new_ref pbroadcast pmax pmin ppermute psum psum_invariant ragged_all_to_all reciprocal
    reduce_scatter roll stochastic_round swap xla_metadata_value
"""
ZERO = frozenset(_ZERO.split())
"""Primitives that cost nothing by rule: elementwise work, reductions, views, look-ups, order, randomness."""
