"""Memory planning by itself: programs of kernels are run on the planned bytes, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tvmx.build._arena import ALIGNMENT, Box, least_bytes, pack
from tvmx.build._lifetimes import NEVER, Join, Lifetimes, Tensor, Update
from tvmx.build._sharing import Sharing, share

UNIT = ALIGNMENT


@dataclass(frozen=True)
class Op:
    """A kernel: ``reads`` and ``makes`` are tensors; the result joins them, or may replace one."""

    makes: int
    reads: tuple[int, ...]
    joins: bool = False
    over: int | None = None


@dataclass(frozen=True)
class Program:
    sizes: tuple[int, ...]
    ops: tuple[Op, ...]
    results: frozenset[int]


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Kernels, concatenations (of the same tensor twice, too) and sums, each of earlier tensors."""
    sizes, ops = [draw(st.integers(1, 4)) * UNIT], [Op(0, ())]
    for index in range(1, draw(st.integers(2, 12))):
        earlier = st.lists(st.integers(0, index - 1), min_size=1, max_size=3)
        reads = tuple(draw(earlier))
        kind = draw(st.sampled_from(("kernel", "join", "sum")))
        if kind == "join":
            ops.append(Op(index, reads, joins=True))
            sizes.append(sum(sizes[i] for i in reads))
        elif kind == "sum":
            ops.append(Op(index, reads, over=reads[-1]))
            sizes.append(sizes[reads[-1]])
        else:
            ops.append(Op(index, reads))
            # A part that ends off the alignment puts what follows it off, too.
            sizes.append(draw(st.integers(1, 6)) * UNIT - draw(st.sampled_from((0, 0, 0, 4))))
    results = draw(st.sets(st.integers(0, len(sizes) - 1), max_size=2))
    return Program(tuple(sizes), tuple(ops), frozenset({len(sizes) - 1, *results}))


def lifetimes_of(program: Program) -> Lifetimes:
    tensors: dict[Any, Tensor] = {i: Tensor(i, size) for i, size in enumerate(program.sizes)}
    joins, updates = [], []
    for step, op in enumerate(program.ops):
        for tensor in (op.makes, *op.reads):
            tensors[tensor].use(step)
        if op.joins:
            starts = [sum(program.sizes[i] for i in op.reads[:k]) for k in range(len(op.reads))]
            joins.append(Join(step, op.makes, op.reads, tuple(starts)))
        if op.over is not None and op.reads.count(op.over) == 1:
            updates.append(Update(step, op.over, op.makes))
    for result in program.results:
        tensors[result].use(NEVER - 1)
    return Lifetimes(tensors, joins, updates)


def run(program: Program, lives: Lifetimes, sharing: Sharing) -> None:
    """Every kernel finds what its inputs were made to hold; results hold it at the end."""
    inside = [b for b in sharing.bodies if not b.escapes]
    starts, size = pack([b.boxes for b in inside])
    arena: list[Any] = [None] * size
    place: dict[int, tuple[list[Any], int]] = {}
    for body, start in zip(inside, starts, strict=True):
        place |= {t: (arena, start + at) for t, at in body.offsets.items()}
    for body in sharing.bodies:
        if body.escapes:
            own: list[Any] = [None] * body.bytes
            place |= {t: (own, at) for t, at in body.offsets.items()}
    right: dict[int, list[Any]] = {}

    def held(tensor: int) -> list[Any]:
        memory, at = place[tensor]
        return memory[at : at + program.sizes[tensor]]

    join_at = {join.step: join for join in lives.joins}
    for step, op in enumerate(program.ops):
        for tensor in op.reads:
            assert held(tensor) == right[tensor], f"step {step} finds {tensor} overwritten"
        memory, at = place[op.makes]
        assert at % UNIT == 0
        if op.joins:
            right[op.makes] = [byte for tensor in op.reads for byte in right[tensor]]
            for index, start in enumerate(join_at[step].offsets):
                if index not in sharing.in_place[step]:
                    part = right[op.reads[index]]
                    memory[at + start : at + start + len(part)] = part
        else:
            # A kernel writes as it reads, so all its inputs but a sum's must be elsewhere.
            right[op.makes] = [(op.makes, k) for k in range(program.sizes[op.makes])]
            memory[at : at + len(right[op.makes])] = right[op.makes]
            for tensor in op.reads:
                if tensor != op.over or step not in sharing.updated:
                    assert held(tensor) == right[tensor], f"step {step} writes over {tensor}"
        assert held(op.makes) == right[op.makes], f"step {step} is not in place"
    for tensor in program.results:
        assert held(tensor) == right[tensor], f"result {tensor} is overwritten"


@settings(max_examples=400, deadline=None)
@given(programs())
def test_any_program_runs_in_its_plan(program: Program) -> None:
    lives = lifetimes_of(program)
    run(program, lives, share(lives))


boxes = st.builds(
    lambda start, steps, low, size: Box(start, start + steps, low * UNIT, low * UNIT + size),
    st.integers(0, 8), st.integers(1, 4), st.integers(0, 3), st.integers(1, 300),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(boxes, min_size=1, max_size=3), max_size=7))
def test_packed_boxes_keep_apart_and_are_no_less_than_the_bound(bodies: list[list[Box]]) -> None:
    offsets, size = pack(bodies)
    taken: dict[tuple[int, int], int] = {}
    for index, (body, offset) in enumerate(zip(bodies, offsets, strict=True)):
        assert offset % ALIGNMENT == 0
        for box in body:
            assert 0 <= box.low + offset < box.high + offset <= size
            for step in range(box.start, box.end):
                for byte in range(box.low + offset, box.high + offset):
                    assert taken.setdefault((step, byte), index) == index
    if all(len(body) == 1 for body in bodies):  # several boxes of one body may overlap here
        assert size >= least_bytes(bodies)


def test_a_chain_needs_its_two_largest_neighbours() -> None:
    sizes = [5, 1, 4, 2, 3]
    chain = [[Box(i, i + 2, 0, size * UNIT)] for i, size in enumerate(sizes)]
    assert pack(chain)[1] == least_bytes(chain) == 6 * UNIT
    assert pack([]) == ([], 0)


def plan(*ops: Op, sizes: tuple[int, ...], results: frozenset[int]) -> tuple[Sharing, int]:
    """The sharing of a program given in units, and its units, results included."""
    program = Program(tuple(size * UNIT for size in sizes), ops, results)
    lives = lifetimes_of(program)
    sharing = share(lives)
    run(program, lives, sharing)
    arena = pack([b.boxes for b in sharing.bodies if not b.escapes])[1]
    own = sum(b.bytes for b in sharing.bodies if b.escapes)
    return sharing, (arena + own) // UNIT


def test_parts_are_made_where_they_are_joined() -> None:
    ops = (Op(0, ()), Op(1, (0,)), Op(2, (0,)), Op(3, (1, 2), joins=True), Op(4, (3,)))
    sharing, units = plan(*ops, sizes=(1, 2, 3, 5, 1), results=frozenset({4}))
    assert sharing.in_place == {3: frozenset({0, 1})}
    assert units == 6 + 1  # the parts and what they are made of; the result


def test_a_result_is_no_part_and_a_tensor_is_one_part_only() -> None:
    ops = (Op(0, ()), Op(1, (0,)), Op(2, (0, 0, 1), joins=True), Op(3, (2,)))
    sharing, _ = plan(*ops, sizes=(1, 1, 3, 1), results=frozenset({1, 3}))
    assert sharing.in_place == {2: frozenset()}


def test_features_that_grow_part_by_part_are_one_piece() -> None:
    """As in DenseNet: each concatenation is the last one and something new."""
    ops = [Op(0, ())]
    whole, sizes = 0, [2]
    for _ in range(3):
        new = len(ops)
        ops += [Op(new, (whole,)), Op(new + 1, (whole, new), joins=True)]
        sizes += [1, sizes[whole] + 1]
        whole = new + 1
    ops.append(Op(len(ops), (whole,)))
    sharing, units = plan(*ops, sizes=(*sizes, 1), results=frozenset({len(sizes)}))
    assert all(indices == {0, 1} for indices in sharing.in_place.values())
    assert units == 5 + 1


def test_a_sum_replaces_its_summand_only_at_its_last_use() -> None:
    ops = [Op(0, ()), Op(1, (0,)), Op(2, (1, 0), over=0), Op(3, (2,))]
    sharing, units = plan(*ops, sizes=(4, 1, 4, 1), results=frozenset({3}))
    assert sharing.updated == {2}
    assert units == 5 + 1
    ops[3] = Op(3, (2, 0))  # read again
    assert plan(*ops, sizes=(4, 1, 4, 1), results=frozenset({3}))[0].updated == frozenset()
    ops[2:] = [Op(2, (0, 0), over=0), Op(3, (2,))]  # read elsewhere by the same kernel
    assert plan(*ops, sizes=(4, 1, 4, 1), results=frozenset({3}))[0].updated == frozenset()
