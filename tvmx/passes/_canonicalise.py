"""Bring an imported network into the one form layer extraction and lowering know.

The result is one dataflow block, one operator per binding, dead code gone:

* convolutions are ``relax.nn.conv2d`` NCHW/OIHW with constant weights and ``padding`` (top,
  left, bottom, right); dense layers are ``relax.matmul(x, constant (K, N))``; their bias is
  ``relax.add`` of a constant (1, C, 1, 1) or (N,);
* inference batch norms and per-channel scales and shifts are folded into the weights before
  them; elsewhere a batch norm is one multiply and one add;
* ``relax.nn.relu`` or ``relax.clip`` for every kind of clipping; ``relax.reshape`` for flatten
  and squeeze; ``relax.mean`` over [2, 3] for global average pooling;
* weights of a quantised model are ``relax.dequantize`` of an integer constant;
* dropout, identities and calls of constants are gone.

Operators stay high-level Relax. A variable that replaces another keeps its name, so that a
layer can be traced to its node in the source file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmx.passes._dataflow import Dataflow, Rule, Walk
from tvmx.passes._fold_affine import fold_input_scale, fold_scale, fold_shift, split_batch_norm
from tvmx.passes._fold_constants import fold_constants, fold_remaining
from tvmx.passes._fold_padding import drop_empty_padding, fold_padding
from tvmx.passes._fold_quantised import fold_dequantised, move_transpose, round_constant
from tvmx.passes._simplify import (
    CommonSubexpressions,
    constants_right,
    drop_identity,
    one_clip,
    one_global_pool,
    one_matmul,
    one_reshape,
)

_SIMPLIFY: tuple[Rule, ...] = (
    fold_constants, round_constant, move_transpose, drop_identity, drop_empty_padding,
    constants_right, split_batch_norm, one_matmul, one_reshape, one_global_pool,
)  # fmt: skip
# Clips are read by padding (what is never negative), affine folds need batch norms split.
_FOLD: tuple[Rule, ...] = (one_clip, fold_padding, fold_scale, fold_input_scale, fold_shift)
_MOST_ROUNDS = 20


def canonicalise(mod: Any) -> Any:
    """The IRModule in canonical form; the argument is not changed.

    Raises:
        ModelError: ``main`` is more than one dataflow block.
    """
    # Infinities and NaNs in the weights are the model's own; folding keeps them as they are.
    with np.errstate(all="ignore"):
        flow = _settle(Dataflow.from_module(mod).without_dead(), _SIMPLIFY)
        flow = fold_remaining(fold_dequantised(flow))
        flow = _settle(flow, (*_SIMPLIFY, *_FOLD))
        # A constant that was folded may have been quantised again: that is one more to judge.
        while (folded := fold_dequantised(flow)) is not flow:
            flow = _settle(fold_remaining(folded), (*_SIMPLIFY, *_FOLD))
        flow = Walk(flow, (CommonSubexpressions(),)).run()
    return flow.to_module()


def _settle(flow: Dataflow, rules: tuple[Rule, ...]) -> Dataflow:
    """Walk until no rule finds anything; each rule only ever removes or normalises."""
    for _ in range(_MOST_ROUNDS):
        walk = Walk(flow, rules)
        flow = walk.run()
        if not walk.changed:
            break
    return flow
