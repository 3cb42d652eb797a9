"""Schedule templates: the contract, helpers to write one, and the registry."""

from tvmx.templates._base import Array, Kernel, ScheduleTemplate
from tvmx.templates._epilogue import apply_epilogue, kernel_arguments
from tvmx.templates._loading import fingerprint_of, load_template, load_templates
from tvmx.templates._packing import (
    pack_conv_weight,
    pack_depthwise_weight,
    pack_matrix,
    pack_vector,
    pad_axis,
)
from tvmx.templates._reference import Operands, make_operands, reference
from tvmx.templates._registry import ENTRY_POINT_GROUP, Registry, TemplateEntry, TemplateRef
from tvmx.templates._tiles import divisors, fits_registers, is_x86, max_accumulators, tile_cycles

__all__ = [
    "ENTRY_POINT_GROUP", "Array", "Kernel", "Operands", "Registry", "ScheduleTemplate",
    "TemplateEntry", "TemplateRef", "apply_epilogue", "divisors", "fingerprint_of",
    "fits_registers", "is_x86", "kernel_arguments", "load_template", "load_templates",
    "make_operands", "max_accumulators", "pack_conv_weight", "pack_depthwise_weight",
    "pack_matrix", "pack_vector", "pad_axis", "reference", "tile_cycles",
]  # fmt: skip
