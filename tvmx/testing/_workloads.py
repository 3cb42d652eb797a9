"""Workloads chosen to catch mistakes: odd sizes, ragged tiles, uneven padding, all epilogues."""

from __future__ import annotations

from typing import Any

from tvmx.ir import Conv2dWorkload, DenseWorkload, Epilogue

AnyWorkload = Conv2dWorkload | DenseWorkload

PLAIN_SUM = Epilogue()
BIAS = Epilogue(bias=True)
BIAS_RELU = Epilogue(bias=True, clip_min=0.0)
EVERYTHING = Epilogue(bias=True, residual=True, clip_min=0.0, clip_max=6.0)
RESIDUAL = Epilogue(residual=True)


def conv(
    in_channels: int, out_channels: int, size: int, kernel: int = 3, epilogue: Epilogue = BIAS_RELU,
    **fields: Any,
) -> Conv2dWorkload:  # fmt: skip
    """A conv2d workload on a ``size`` x ``size`` image, batch 1, same-padded unless told."""
    defaults = {"batch": 1, "width": size, "padding": (kernel // 2,) * 4}
    return Conv2dWorkload(
        in_channels=in_channels, height=size, out_channels=out_channels, kernel=(kernel, kernel),
        epilogue=epilogue, **{**defaults, **fields},
    )  # fmt: skip


def odd_workloads(op: str) -> list[AnyWorkload]:
    """The conformance workloads of an operator (``conv2d`` or ``dense``)."""
    if op == "dense":
        return [
            _dense(1, 1, 1, PLAIN_SUM), _dense(1, 7, 3, BIAS), _dense(1, 64, 10, BIAS_RELU),
            _dense(1, 200, 1000, EVERYTHING), _dense(7, 33, 17, RESIDUAL), _dense(31, 24, 50, BIAS),
            _dense(16, 64, 64, BIAS_RELU),
        ]  # fmt: skip
    return [
        conv(3, 20, 13, epilogue=EVERYTHING, strides=(2, 2), padding=(0, 1, 1, 0)),
        conv(20, 17, 9, 1),
        conv(33, 70, 7, epilogue=RESIDUAL, padding=(1, 0, 2, 1)),
        conv(16, 16, 11, 5, dilation=(2, 2), padding=(2, 2, 2, 2), epilogue=PLAIN_SUM),
        conv(40, 24, 1, 1, epilogue=BIAS),
        conv(24, 40, 5, 1, strides=(2, 2)),
        conv(18, 50, 1),
        conv(17, 16, 13, strides=(3, 2), batch=3, width=6, padding=(0, 0, 0, 1)),
        conv(5, 7, 4, width=31, epilogue=RESIDUAL),
        conv(64, 32, 6, groups=2, batch=2, epilogue=EVERYTHING),
        conv(12, 20, 9, groups=4, epilogue=EVERYTHING),
        conv(24, 48, 7, groups=24, strides=(2, 2), padding=(0, 1, 1, 0)),
        conv(20, 20, 9, groups=20, strides=(2, 2), padding=(0, 1, 1, 0), epilogue=EVERYTHING),
        conv(33, 33, 7, 5, groups=33, batch=2),
        conv(16, 16, 17, groups=16, epilogue=RESIDUAL),
        conv(32, 32, 16, 1),
    ]  # fmt: skip


def timed_workloads(op: str) -> list[AnyWorkload]:
    """Representative layers for the figures of ``tvmx schedules check``."""
    if op == "dense":
        return [_dense(1, 1024, 1000, BIAS), _dense(16, 512, 512, BIAS_RELU)]
    return [
        conv(64, 64, 28), conv(256, 64, 28, 1), conv(3, 32, 64, strides=(2, 2)),
        conv(128, 128, 28, groups=128),
    ]  # fmt: skip


def _dense(batch: int, k: int, n: int, epilogue: Epilogue) -> DenseWorkload:
    return DenseWorkload(batch=batch, in_features=k, out_features=n, epilogue=epilogue)
