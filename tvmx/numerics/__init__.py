"""The exact arithmetic that kernels must reproduce: int8 affine numbers, block pruning."""

from tvmx.numerics._constants import LayerConstants, Requantise
from tvmx.numerics._dynamic import dynamic_constants, dynamic_params, dynamic_quantise
from tvmx.numerics._fixed_point import (
    FIXED_BITS,
    LONGEST_SHIFT,
    fixed_point,
    fixed_points,
    multiply_fixed,
)
from tvmx.numerics._fma import fma
from tvmx.numerics._layer import LayerParams, StatedWeight, clip_to, corrected, layer_constants
from tvmx.numerics._operators import (
    ROOT_GUESS,
    ROOT_LIMIT,
    ROOT_STEPS,
    ChannelWindow,
    Pool2d,
    add_int8,
    avg_pool_int8,
    avg_pool_whole,
    clip_int8,
    concat_int8,
    inverse_power,
    lookup_int8,
    lrn_int8,
    max_pool_int8,
    mean_int8,
    multiply_int8,
    product_factor,
)
from tvmx.numerics._prune import BlockRows, block_rows, matrix_shape, prune
from tvmx.numerics._quantise import (
    QMAX,
    QMIN,
    WEIGHT_MAX,
    QuantParams,
    dequantise,
    fits_int8,
    quantise,
    quantise_weight,
    rescale,
    rescale_add,
    rescale_factor,
    sum_factors,
)
from tvmx.numerics._reconstruct import (
    Moments,
    Reconstructed,
    compensate,
    reconstruct,
    segment_starts,
)
from tvmx.numerics._requantise import requantise
from tvmx.numerics._zero_blocks import ZeroPattern, own_level, zero_pattern

__all__ = [
    "FIXED_BITS", "LONGEST_SHIFT", "QMAX", "QMIN", "ROOT_GUESS", "ROOT_LIMIT", "ROOT_STEPS",
    "WEIGHT_MAX", "BlockRows", "ChannelWindow", "LayerConstants", "LayerParams", "Moments",
    "Pool2d", "QuantParams", "Reconstructed", "Requantise", "StatedWeight", "ZeroPattern",
    "add_int8", "avg_pool_int8", "avg_pool_whole", "block_rows", "clip_int8", "clip_to",
    "compensate", "concat_int8", "corrected", "dequantise", "dynamic_constants", "dynamic_params",
    "dynamic_quantise", "fits_int8", "fixed_point", "fixed_points", "fma", "inverse_power",
    "layer_constants", "lookup_int8", "lrn_int8", "matrix_shape", "max_pool_int8", "mean_int8",
    "multiply_fixed", "multiply_int8", "own_level", "product_factor", "prune", "quantise",
    "quantise_weight", "reconstruct", "requantise", "rescale", "rescale_add", "rescale_factor",
    "segment_starts", "sum_factors", "zero_pattern",
]  # fmt: skip
