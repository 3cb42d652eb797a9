"""Pictures of 24 classes, made from a seed: eight shapes, each plain, striped or chequered.

Shape and pattern are drawn in random colours, sizes, places and directions on a background of
another colour gradient, with blots of clutter over it and noise, so that a good network errs on a
few per cent. Nothing is downloaded; equal seeds give equal pictures.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIZE = 32
SHAPES = ("disc", "triangle", "square", "pentagon", "star", "cross", "ring", "crescent")
PATTERNS = ("plain", "striped", "chequered")
CLASSES = tuple(f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS)

_CHUNK = 1000
_BLOTS = 3
_NOISE = 0.10

Floats = npt.NDArray[np.float32]


def make_images(count: int, seed: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """``count`` pictures (count, 3, 32, 32) in [0, 1], eight bits deep, and their labels.

    All classes are equally frequent, up to one.
    """
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % len(CLASSES)).astype(np.int64)
    parts = [_draw(labels[start : start + _CHUNK], generator) for start in range(0, count, _CHUNK)]
    return np.concatenate(parts), labels


def _draw(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> Floats:
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Floats:
        return generator.uniform(low, high, (count, *shape)).astype(np.float32)

    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    scale, angle = uniform(0.42, 0.75, 1, 1), uniform(0, 2 * np.pi, 1, 1)
    room = 1 - scale
    u, v = _turn(
        (x - uniform(-1, 1, 1, 1) * room) / scale, (y - uniform(-1, 1, 1, 1) * room) / scale, angle
    )
    inside = _soft(_depth(labels // len(PATTERNS), u, v), 0.12)
    marks = _marks(labels % len(PATTERNS), u, v, uniform(0, 2 * np.pi, 1, 1), uniform(4, 6, 1, 1))

    def colour() -> Floats:
        return uniform(0, 1, 3, 1, 1)

    first = colour()
    second = _apart(first, colour())
    ink = marks[:, None] * first + (1 - marks[:, None]) * second
    ground = colour() + (x * uniform(-0.3, 0.3, 1, 1) + y * uniform(-0.3, 0.3, 1, 1))[:, None]
    picture = inside[:, None] * ink + (1 - inside[:, None]) * ground
    for _ in range(_BLOTS):
        size = uniform(0.08, 0.22, 1, 1)
        away = np.hypot(x - uniform(-1, 1, 1, 1), y - uniform(-1, 1, 1, 1))
        blot = _soft(1 - away / size, 0.3)[:, None]
        picture = blot * colour() + (1 - blot) * picture
    picture += generator.normal(0, _NOISE, picture.shape).astype(np.float32)
    eight_bits: Floats = np.rint(np.clip(picture, 0, 1) * 255).astype(np.float32) / np.float32(255)
    return eight_bits


def _turn(u: Floats, v: Floats, angle: Floats) -> tuple[Floats, Floats]:
    cos, sin = np.cos(angle), np.sin(angle)
    return u * cos - v * sin, u * sin + v * cos


def _soft(depth: Floats, width: float) -> Floats:
    """From 0 outside to 1 inside, over an edge of that width."""
    return np.clip(depth / width + 0.5, 0, 1)


def _depth(shape: npt.NDArray[np.int64], u: Floats, v: Floats) -> Floats:
    """How far each point is inside its shape of unit radius, about; negative outside."""
    radius, direction = np.hypot(u, v), np.arctan2(v, u)

    def polygon(corners: int) -> Floats:
        slice_ = 2 * np.pi / corners
        edge = np.cos(np.pi / corners) / np.cos(direction % slice_ - np.pi / corners)
        return edge - radius

    along = np.abs((direction % (2 * np.pi / 5)) / (np.pi / 5) - 1)  # 1 at the tips of a star
    arms = np.minimum(0.34 - np.abs(u), 1 - np.abs(v)), np.minimum(0.34 - np.abs(v), 1 - np.abs(u))
    depths = (
        0.9 - radius,
        polygon(3),
        polygon(4),
        polygon(5),
        0.42 + 0.58 * along**1.5 - radius,
        np.maximum(*arms),
        0.28 - np.abs(radius - 0.68),
        np.minimum(0.92 - radius, np.hypot(u - 0.45, v) - 0.62),
    )
    found: Floats = np.choose(shape[:, None, None], depths)
    return found


def _marks(
    pattern: npt.NDArray[np.int64], u: Floats, v: Floats, angle: Floats, pitch: Floats
) -> Floats:
    """1 where the first colour is, 0 where the second."""
    a, b = _turn(u, v, angle)
    across, down = np.sin(a * pitch * np.pi / 2), np.sin(b * pitch * np.pi / 2)
    found: Floats = np.choose(
        pattern[:, None, None],
        (np.ones_like(across), _soft(across, 0.5), _soft(across * down, 0.4)),
    )
    return found


def _apart(first: Floats, second: Floats) -> Floats:
    """The second colour, moved away where the two are hard to tell apart."""
    near = np.abs(first - second).max(axis=1, keepdims=True) < 0.35
    return np.where(near, (first + 0.5) % 1, second)
