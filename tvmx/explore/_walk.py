"""The conversions plans may need and the arena of a plan, from the layout walk of lowering."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from tvmx.ir import (
    PLAIN,
    Conversion,
    Implementation,
    LayoutWalk,
    NetworkGraph,
    Node,
    is_int8,
    layout_of,
    plain_or_blocked,
    stored_as,
    value_bytes,
)

ConversionKey = tuple[tuple[int, ...], str, str]


def possible_conversions(
    graph: NetworkGraph, options: Mapping[int, Sequence[Implementation]]
) -> list[Conversion]:
    """One conversion per distinct (shape, source, destination) that some plan may need.

    ``options`` maps layer index to the implementations it may get; layers that are missing
    run in the plain layout. The formats each value may be made in are propagated through the
    network by the rules of :class:`tvmx.ir.LayoutWalk`.
    """
    made: dict[int, set[str]] = {v: {PLAIN} for v in graph.inputs}
    wanted: dict[int, set[str]] = {v: {PLAIN} for v in graph.outputs}
    for node in graph.nodes:
        reads, writes = _possible(graph, node, [made[v] for v in node.inputs], options)
        for value, forms in zip(node.inputs, reads, strict=True):
            wanted.setdefault(value, set()).update(forms)
        made[node.output] = writes
    found: dict[ConversionKey, Conversion] = {}
    for value in sorted(wanted):
        for source in sorted(made[value]):
            for destination in sorted(wanted[value] - {source}):
                conversion = Conversion(value, graph.shapes[value], source, destination)
                found.setdefault(conversion.key, conversion)
    return list(found.values())


def _possible(
    graph: NetworkGraph, node: Node, homes: list[set[str]],
    options: Mapping[int, Sequence[Implementation]],
) -> tuple[list[set[str]], set[str]]:  # fmt: skip
    """The formats a node may read each input in, and may write."""
    chosen = options.get(node.layer, ()) if node.layer is not None else ()
    if chosen:
        writes = {plain_or_blocked(i.writes) for i in chosen}
        first = {plain_or_blocked(i.reads) for i in chosen}
        return [first, *[writes] * (len(homes) - 1)], writes
    if node.kind == "quantise":
        # What is made in int8 stays so; where nothing is computed, readers convert.
        source = {stored_as(layout_of(form), "float32") for form in homes[0]}
        return [source], {stored_as(layout_of(f), "int8") for f in source} if node.int8 else source
    types = ["float32"] if any(not _all_int8(h) for h in homes) or not homes else []
    if node.int8 and homes and all(any(map(is_int8, h)) for h in homes):
        types.append("int8")
    if node.output in graph.stated_values:
        types = ["int8"]

    def typed(layouts: set[str]) -> set[str]:
        return {stored_as(layout, dtype) for layout in layouts for dtype in types or ["float32"]}

    four_d = all(len(graph.shapes[v]) == 4 for v in node.inputs)
    layouts = {layout_of(form) for home in homes for form in home}
    if node.kind in ("follow", "concat") and four_d:
        either = typed(layouts | ({PLAIN} if node.kind == "concat" else set()))
        return [either] * len(homes), either
    if node.kind == "flatten":
        return [typed(layouts | {PLAIN})], typed({PLAIN})
    return [typed({PLAIN})] * len(homes), typed({PLAIN})


def _all_int8(forms: set[str]) -> bool:
    return all(map(is_int8, forms))


def estimate_arena(graph: NetworkGraph, chosen: Mapping[int, Implementation]) -> int:
    """Bytes of activations alive together at the worst moment, values in their layouts.

    For ranking plans; what is reported for a candidate is the planned figure of its own build.
    Concatenations are taken to be computed part by part in place, and residuals to be added up
    where they are if that is their last use. ``chosen`` maps layer index to implementation.
    """
    kernels = list(_kernels(graph, chosen))
    last_read = {block: i for i, kernel in enumerate(kernels) for block in kernel.reads}
    last_read |= dict.fromkeys(((v, PLAIN) for v in graph.outputs), len(kernels))
    live: dict[_Block, int] = {}
    peak = 0
    for index, kernel in enumerate(kernels):
        for block in kernel.shares:
            if kernel.joins or (last_read[block] <= index and kernel.reads.count(block) == 1):
                live.pop(block, None)
        value, layout = kernel.made
        live[kernel.made] = value_bytes(graph.shapes[value], layout)
        peak = max(peak, sum(live.values()))
        for block in (kernel.made, *kernel.reads):
            if last_read.get(block, index) <= index:
                live.pop(block, None)  # the network's inputs are the caller's
    return peak


_Block = tuple[int, str]
"""A value in one of its layouts: one piece of memory."""


class _Kernel(NamedTuple):
    """What a kernel writes and reads; ``shares`` of that may be in the memory it writes."""

    made: _Block
    reads: list[_Block]
    shares: Sequence[_Block] = ()
    joins: bool = False


def _kernels(graph: NetworkGraph, chosen: Mapping[int, Implementation]) -> Iterator[_Kernel]:
    """The kernels in order, layout conversions among them."""
    walk = LayoutWalk(graph)

    def convert(conversions: Sequence[Conversion]) -> Iterator[_Kernel]:
        for c in conversions:
            yield _Kernel((c.value, c.destination), [(c.value, c.source)])

    for node in graph.nodes:
        placed = walk.step(node, None if node.layer is None else chosen.get(node.layer))
        yield from convert(placed.conversions)
        reads = list(zip(node.inputs, placed.reads, strict=True))
        joins = node.kind == "concat" and graph.shapes[node.output][0] == 1
        shares = reads if joins else reads[1:] if node.layer is not None else []
        if node.kind == "quantise" and not node.int8:  # the same memory under another number
            shares, joins = reads, True
        shares = [block for block in shares if block[1] == placed.writes]
        yield _Kernel((node.output, placed.writes), reads, shares, joins)
    yield from convert(walk.finish())
