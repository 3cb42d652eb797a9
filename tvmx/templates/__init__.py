"""Schedule templates: the contract, helpers to write one, and the registry."""

from tvmx.templates._base import Array, Constant, Kernel, ScheduleTemplate
from tvmx.templates._block_sparse import (
    Accumulators,
    SparseBuffers,
    Views,
    bind,
    block_sparse_kernel,
    emit_kernel,
    flat,
    for_kept_blocks,
    index_dtype,
    load,
    refuse_pointwise,
    refuse_sparsity,
    sparsity_levels,
    spread,
    store,
    sum_pixels,
)
from tvmx.templates._epilogue import apply_epilogue, kernel_arguments
from tvmx.templates._int8 import (
    PARAMS,
    data_zero_point,
    epilogue_constants,
    int8_arguments,
    requantised,
    requantised_int32,
    rounded_even,
)
from tvmx.templates._int8_image import Int8Geometry, WordImage, Words, runs
from tvmx.templates._intrinsics import (
    DotForm,
    concat,
    dot_form,
    pack_dot_weight,
    repeat,
    spread_lane,
)
from tvmx.templates._loading import fingerprint_of, load_template, load_templates
from tvmx.templates._packing import (
    pack_conv_weight,
    pack_depthwise_weight,
    pack_matrix,
    pack_vector,
    pad_axis,
)
from tvmx.templates._reference import Operands, linear, make_operands, reference
from tvmx.templates._registry import ENTRY_POINT_GROUP, Registry, TemplateEntry, TemplateRef
from tvmx.templates._tiles import divisors, fits_registers, is_x86, max_accumulators, tile_cycles

__all__ = [
    "ENTRY_POINT_GROUP", "PARAMS", "Accumulators", "Array", "Constant", "DotForm", "Int8Geometry",
    "Kernel", "Operands", "Registry", "ScheduleTemplate", "SparseBuffers", "TemplateEntry",
    "TemplateRef", "Views", "WordImage", "Words", "apply_epilogue", "bind", "block_sparse_kernel",
    "concat", "data_zero_point", "divisors", "dot_form", "emit_kernel", "epilogue_constants",
    "fingerprint_of", "fits_registers", "flat", "for_kept_blocks", "index_dtype", "int8_arguments",
    "is_x86", "kernel_arguments", "linear", "load", "load_template", "load_templates",
    "make_operands", "max_accumulators", "pack_conv_weight", "pack_depthwise_weight",
    "pack_dot_weight", "pack_matrix", "pack_vector", "pad_axis", "reference", "refuse_pointwise",
    "refuse_sparsity", "repeat", "requantised", "requantised_int32", "rounded_even", "runs",
    "sparsity_levels", "spread", "spread_lane", "store", "sum_pixels", "tile_cycles",
]  # fmt: skip
