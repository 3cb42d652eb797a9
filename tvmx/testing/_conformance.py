"""The ScheduleTemplate contract as checks: each one returns normally or raises AssertionError."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from tvmx.errors import IllegalConfigError
from tvmx.ir import MATRIX, PLAIN, Config, block_of
from tvmx.targets import Target
from tvmx.templates import ScheduleTemplate
from tvmx.templates._registry import variants
from tvmx.testing._evaluate import AnyWorkload, evaluate_template
from tvmx.testing._workloads import odd_workloads

MAX_POINTS = 5_000
TOLERANCE = 1e-3
"""Largest error against PyTorch, relative to the range of the expected output (int8: none)."""

Check = Callable[[ScheduleTemplate, Sequence[AnyWorkload], Target], str]


def supported(
    template: ScheduleTemplate, target: Target, workloads: Sequence[AnyWorkload] | None = None
) -> list[AnyWorkload]:
    """The supported ones of ``workloads``; None: the template's examples and the odd ones.

    Two of them with a float output as well, where the template says that it knows such.
    """
    every = [*template.examples, *odd_workloads(template.op)] if workloads is None else workloads
    mine = [v for w in every if w.op == template.op for v in variants(template, w, target)]
    mine = [w for w in mine if template.supports(w, target) is None]
    if not template.float_epilogue:
        return mine
    ends = [w.variant("int8", float_out=True) for w in mine]
    kinds = [[w for w in ends if w.epilogue.residual is residual] for residual in (False, True)]
    return mine + [w for kind in kinds for w in kind[-1:] if template.supports(w, target) is None]


def check_supports(
    template: ScheduleTemplate, workloads: Sequence[AnyWorkload], target: Target
) -> str:
    """It supports some workload, and gives a reason for every other one."""
    assert workloads, (
        f"{template.name} supports none of the conformance workloads of {template.op!r}: "
        "list some it does support in its class attribute `examples`"
    )
    foreign = odd_workloads("dense" if template.op == "conv2d" else "conv2d")
    for workload in [*foreign, *odd_workloads(template.op)]:
        reason = template.supports(workload, target)
        assert reason is None or (isinstance(reason, str) and reason), (
            f"supports({workload.describe()}) returned {reason!r}, not None or a reason"
        )
        assert workload.op == template.op or reason is not None, (
            f"supports() accepts {workload.op} but the template's op is {template.op!r}"
        )
    return f"{len(workloads)} workloads supported"


def check_layouts(
    template: ScheduleTemplate, workloads: Sequence[AnyWorkload], target: Target
) -> str:
    """Layouts are ones tvmx knows, blocked ones with the target's lane count."""
    seen = set()
    for workload in workloads:
        for layout in template.layouts(workload, target):
            plain = MATRIX if workload.op == "dense" else PLAIN
            lanes = block_of(layout) if workload.op == "conv2d" else None
            assert layout == plain or lanes == target.lanes("float32"), (
                f"{workload.describe()}: layout {layout!r} is neither {plain} nor "
                f"NCHW{target.lanes('float32')}c"
            )
            seen.add(layout)
    return ", ".join(sorted(seen))


def check_space(
    template: ScheduleTemplate, workloads: Sequence[AnyWorkload], target: Target
) -> str:
    """Spaces are bounded, ordered the same at each call, and hold their default."""
    largest = 0
    for workload in workloads:
        space = template.space(workload, target)
        product = math.prod(len(values) for values in space.knobs.values())
        assert product <= 50 * MAX_POINTS, f"{workload.describe()}: {product} combinations of knobs"
        points = space.points()
        assert len(points) <= MAX_POINTS, f"{workload.describe()}: {len(points)} points"
        assert space.default in points, f"{workload.describe()}: the default is not in the space"
        again = template.space(workload, target)
        assert again.points() == points and again.default == space.default, (
            f"{workload.describe()}: two calls of space() differ"
        )
        largest = max(largest, len(points))
    return f"at most {largest} points"


def check_illegal_config(
    template: ScheduleTemplate, workloads: Sequence[AnyWorkload], target: Target
) -> str:
    """A config outside the space raises IllegalConfigError and nothing else."""
    for workload in workloads:
        default = template.space(workload, target).default
        wrong = [Config({}), Config({**default, "no_such_knob": 1})]
        wrong += [Config({**default, name: 10**6}) for name in default]
        for config in wrong:
            if config == default:
                continue
            try:
                template.build(workload, config, target)
            except IllegalConfigError:
                continue
            except Exception as err:
                raise AssertionError(
                    f"{workload.describe()}: {config!r} raised {type(err).__name__}: {err}"
                ) from err
            raise AssertionError(f"{workload.describe()}: illegal {config!r} was built")
    return "refused"


def check_purity(
    template: ScheduleTemplate, workloads: Sequence[AnyWorkload], target: Target
) -> str:
    """Two builds of the same inputs, by two instances, give structurally equal functions."""
    import tvm_ffi

    for workload in workloads:
        config = template.space(workload, target).default
        first = template.build(workload, config, target).func
        second = type(template)().build(workload, config, target).func
        assert tvm_ffi.structural_equal(first, second), (
            f"{workload.describe()}: two builds of the default config differ"
        )
        assert first.attrs and first.attrs.get("tirx.is_scheduled"), (
            f"{workload.describe()}: the function lacks the attribute tirx.is_scheduled"
        )
    return "equal"


def check_correctness(
    template: ScheduleTemplate,
    workloads: Sequence[AnyWorkload],
    target: Target,
    random_configs: int = 2,
) -> str:
    """The default and some seeded random configs agree with PyTorch."""
    worst, count = 0.0, 0
    for workload in workloads:
        space = template.space(workload, target)
        points = space.points()
        rng = random.Random(workload.digest)
        for config in [space.default, *rng.sample(points, min(random_configs, len(points)))]:
            where = f"{workload.describe()} with {config!r}"
            result = _evaluate(template, workload, target, config, where)
            allowed = 0.0 if workload.dtype == "int8" else TOLERANCE
            assert result.relative <= allowed, (
                f"{where}: off by {result.absolute:.3g} ({result.relative:.3g} of the range)"
            )
            worst, count = max(worst, result.relative), count + 1
    return f"{count} kernels, worst error {worst:.1e} of the range"


def check_in_place(
    template: ScheduleTemplate, workloads: Sequence[AnyWorkload], target: Target
) -> str:
    """A kernel that may work in place computes the same when it does."""
    count = 0
    for workload in (w for w in workloads if w.epilogue.residual):
        space = template.space(workload, target)
        for config in dict.fromkeys([space.default, space.points()[0]]):
            if not template.build(workload, config, target).in_place:
                continue
            where = f"{workload.describe()} with {config!r}, in place"
            apart = _evaluate(template, workload, target, config, where)
            result = _evaluate(template, workload, target, config, where, in_place=True)
            allowed = 0.0 if workload.dtype == "int8" else TOLERANCE
            assert result.relative <= apart.relative + allowed, (
                f"{where}: off by {result.absolute:.3g}, by {apart.absolute:.3g} elsewhere"
            )
            count += 1
    return f"{count} kernels may add to the residual in place"


def check_description(
    template: ScheduleTemplate, workloads: Sequence[AnyWorkload], target: Target
) -> str:
    """Tells whether the tuner can rank configs by their loop nests, and passes where not.

    What cannot be described is still built, measured and chosen, but in no order that is learnt.
    """
    from tvmx.build import nest_features

    undescribed: dict[str, str] = {}
    for workload in workloads:
        config = template.space(workload, target).default
        func = template.build(workload, config, target).func
        try:
            nest_features(func, workload.macs, workload.dtype, target)
        except Exception as err:  # whatever stands in the loop nest that is not understood
            undescribed[workload.describe()] = f"{type(err).__name__}: {err}".splitlines()[0]
    if not undescribed:
        return f"{len(workloads)} loop nests described: the tuner ranks configs by them"
    where, why = next(iter(undescribed.items()))
    return (
        f"{len(undescribed)} of {len(workloads)} loop nests cannot be described, so the tuner does "
        f"not rank their configs: {where}: {why[:200]}"
    )


def _evaluate(
    template: ScheduleTemplate, workload: AnyWorkload, target: Target, config: Config, where: str,
    in_place: bool = False,
) -> Any:  # fmt: skip
    try:
        return evaluate_template(template, workload, target, config, in_place=in_place)
    except Exception as err:
        lines = [line for line in str(err).splitlines() if line.strip()]
        text = " ".join(lines[-3:])[:400]
        raise AssertionError(f"{where}: {type(err).__name__}: {text}") from err


CHECKS: dict[str, Check] = {
    "supports": check_supports,
    "layouts": check_layouts,
    "space": check_space,
    "illegal config": check_illegal_config,
    "purity": check_purity,
    "correctness": check_correctness,
    "in place": check_in_place,
    "description": check_description,
}
