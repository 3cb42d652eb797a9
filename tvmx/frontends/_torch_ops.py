"""Which ATen operators may stand in an exported program.

A list of its own, so that a model can be refused without loading torch or TVM, and so that no
other function of torch is ever looked up by a name from a file. Each is either in TVM's
converter table or decomposed by torch into operators that are; a test imports every one.
"""

from __future__ import annotations

from collections.abc import Iterable

NORMS = ("batch_norm.default", "_native_batch_norm_legit.default", "instance_norm.default",
         "native_batch_norm.default")  # fmt: skip
DROPOUTS = ("dropout.default", "dropout_.default", "feature_dropout.default",
            "feature_dropout_.default", "alpha_dropout.default", "alpha_dropout_.default",
            "feature_alpha_dropout.default", "native_dropout.default")  # fmt: skip

SUPPORTED = frozenset(
    """
    _adaptive_avg_pool2d.default _assert_tensor_metadata.default _log_softmax.default
    _native_batch_norm_legit_no_training.default _softmax.default _to_copy.default
    _unsafe_view.default abs.default adaptive_avg_pool1d.default adaptive_avg_pool2d.default
    adaptive_max_pool2d.default add.Scalar add.Tensor add_.Scalar add_.Tensor addmm.default
    alias.default alpha_dropout.default alpha_dropout_.default amax.default argmax.default
    avg_pool1d.default avg_pool2d.default baddbmm.default batch_norm.default bmm.default
    cat.default ceil.default celu.default celu_.default channel_shuffle.default chunk.default
    clamp.default clamp_.default clamp_max.default clamp_max_.default clamp_min.default
    clamp_min_.default clone.default concat.default constant_pad_nd.default contiguous.default
    conv1d.default conv1d.padding conv2d.default conv2d.padding conv_transpose2d.input
    convolution.default cos.default detach.default detach_.default div.Scalar div.Tensor
    div_.Scalar div_.Tensor dropout.default dropout_.default einsum.default elu.default
    elu_.default eq.Scalar eq.Tensor erf.default exp.default exp_.default expand.default
    expand_as.default feature_alpha_dropout.default feature_dropout.default
    feature_dropout_.default flatten.using_ints flip.default floor.default full.default
    full_like.default ge.Scalar ge.Tensor gelu.default gelu_.default glu.default
    group_norm.default gt.Scalar gt.Tensor hardsigmoid.default hardsigmoid_.default
    hardswish.default hardswish_.default hardtanh.default hardtanh_.default index_select.default
    instance_norm.default layer_norm.default le.Scalar le.Tensor leaky_relu.default
    leaky_relu_.default lift_fresh_copy.default linear.default log.default log1p.default
    log_sigmoid.default log_softmax.int lt.Scalar lt.Tensor matmul.default max_pool1d.default
    max_pool2d.default max_pool2d_with_indices.default maximum.default mean.default mean.dim
    minimum.default mish.default mish_.default mm.default mul.Scalar mul.Tensor mul_.Scalar
    mul_.Tensor narrow.default native_dropout.default native_group_norm.default
    native_layer_norm.default ne.Scalar ne.Tensor neg.default neg_.default ones.default
    ones_like.default pad.default permute.default pixel_shuffle.default pixel_unshuffle.default
    pow.Tensor_Scalar prelu.default reciprocal.default relu.default relu6.default relu6_.default
    relu_.default repeat.default reshape.default rsqrt.default rsub.Scalar rsub.Tensor
    scalar_tensor.default select.int selu.default selu_.default sigmoid.default sigmoid_.default
    sign.default silu.default silu_.default sin.default slice.Tensor softmax.int
    softplus.default split.Tensor split.sizes split_with_sizes.default sqrt.default
    sqrt_.default square.default squeeze.default squeeze.dim squeeze.dims stack.default
    std.correction std.dim sub.Scalar sub.Tensor sub_.Scalar sub_.Tensor sum.default
    sum.dim_IntList t.default tanh.default tanh_.default tile.default to.device to.dtype
    to.dtype_layout transpose.int type_as.default unbind.int unflatten.int unsqueeze.default
    upsample_bilinear2d.vec upsample_nearest2d.vec var.correction var.dim view.default
    view_as.default where.self zeros.default zeros_like.default
    """.split()  # noqa: SIM905
)

SHAPE_OPS = ("sym_size.int", "sym_stride.int", "sym_numel.default", "_assert_scalar.default",
             "sym_constrain_range.default", "sym_constrain_range_for_size.default")  # fmt: skip
"""Bookkeeping of dynamic shapes, without meaning once every size is known."""

QUANTISE = frozenset(
    f"quantized_decomposed.quantize_{kind}"
    for kind in ("per_tensor.default", "per_tensor.tensor", "per_channel.default")
)
DEQUANTISE = frozenset(name.replace(".quantize_", ".dequantize_") for name in QUANTISE)
"""What torch's PT2E flow says values are quantised by; anything dynamic is not among them."""

_DYNAMIC = ("choose_qparams", "per_token")
_QUANTISED = ("quantized_decomposed", "quantized", "torchao")
_CONTROL = ("torch.cond", "torch.ops.higher_order")


def refusal(ops: Iterable[str]) -> str:
    """What to do about unsupported operators."""
    names = list(ops)
    if any(part in name for name in names for part in _DYNAMIC):
        return (
            "dynamic quantisation: calibrate for static scales (is_dynamic=False in the "
            "quantiser's configuration), or give the float model"
        )
    if any(name.startswith(_QUANTISED) for name in names):
        return "quantised models: give the float model, tvmx quantises layer by layer itself"
    if any(name.startswith(_CONTROL) for name in names):
        return "control flow: export a module whose forward takes one path for a fixed input"
    if any("." not in name or not name.split(".")[0].islower() for name in names):
        return "export a module built from torch's own operators"
    return "build the module from other operators, or cut it before these nodes"
