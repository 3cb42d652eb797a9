"""Exploring a network, then building and measuring random plans of its cost table."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks._lies_networks import model_of
from benchmarks._records import Record
from benchmarks._stages import say
from tvmx.errors import MeasureError

if TYPE_CHECKING:
    from tvmx.explore._accuracy import Scorer
    from tvmx.explore._context import Context
    from tvmx.ir import CostTable, Plan

_SEED = 1
_DRAWS = 100  # for each plan wanted


@dataclass(frozen=True)
class Network:
    """A network's folder, and what is to be done with it."""

    path: Path
    plans: int
    rounds: int
    budget_s: float

    @property
    def run(self) -> Path:
        """The exploration's run folder."""
        return self.path / "run"

    def library(self, number: int) -> Path:
        """Of a random plan."""
        return self.path / "plans" / f"{number:03}.so"


class PlanSample(Record):
    """A plan that was measured whole; ``terms`` are those of ``tvmx.search.TERMS``.

    ``added_drop`` is the sum of its layers' losses, by simulation on the visible half of the data;
    ``measured_drop`` is what it loses on the device, on the held-out half. Both in points.
    """

    network: str
    number: int
    predicted_us: float
    measured_us: float
    spread_us: float
    terms: dict[str, float]
    layers: dict[str, int]
    added_drop: float
    measured_drop: float


class Measurements(Record):
    """Of one network."""

    rounds: int
    samples: tuple[PlanSample, ...]
    failed: dict[str, str]


def explore_network(network: Network) -> None:
    """Tune and make the cost table, unless the run is finished."""
    from tvmx.explore import ExploreRequest, explore

    if (network.run / "result.json").is_file():
        return
    explore(
        ExploreRequest(
            model=model_of(network.path), target="host", out=network.run,
            data=network.path / "data.npz", budget_s=network.budget_s, max_accuracy_drop=50.0,
            prune_method="magnitude",  # a plan made of the table alone has no other constants
        )
    )  # fmt: skip


def assignments(table: CostTable, count: int) -> list[tuple[int, ...]]:
    """Random plans: of some kind mainly, or of all kinds alike; the tuned baseline comes first.

    Plans drawn layer by layer alone would all be alike in how many conversions they have. Raises
    MeasureError where the table has not so many different plans.
    """
    rng = random.Random(_SEED)
    found = [tuple(table.baseline)]
    for _ in range(_DRAWS * count):
        if len(found) == count:
            return found
        liked = _kind(rng.choice(rng.choice(table.layers).implementations))
        loyalty = rng.choice((0.0, 0.5, 0.8, 0.95))
        plan = []
        for costs in table.layers:
            like = [i for i in costs.legal if _kind(costs.implementations[i]) == liked]
            plan.append(rng.choice(like if like and rng.random() < loyalty else costs.legal))
        if tuple(plan) not in found:
            found.append(tuple(plan))
    raise MeasureError(
        f"the cost table has only {len(found)} different plans: too little was measured",
        hint="a longer --budget, in another --out",
    )


def _kind(implementation: object) -> tuple[object, ...]:
    return tuple(getattr(implementation, n) for n in ("precision", "sparsity", "layout"))


def build_plans(network: Network) -> None:
    """Compile every plan that has no library yet."""
    from tvmx.errors import BuildError, TemplateError
    from tvmx.explore._whole import build_plan

    context = _context(network)
    folder = network.path / "plans"
    folder.mkdir(exist_ok=True)
    for number, (_, plan) in enumerate(_plans(network)):
        library = network.library(number)
        if library.is_file() or library.with_suffix(".failed").is_file():
            continue
        parts = (context.network, context.registry, context.target)
        try:
            build_plan("building", plan, *parts, folder).build.path.rename(library)
        except (BuildError, TemplateError) as err:
            library.with_suffix(".failed").write_text(err.message)
            say(f"plan {number}: {err.message}")


def measure_plans(network: Network) -> tuple[PlanSample, ...]:
    """All plans in turns, unless that was done with as many rounds; outputs are checked."""
    from tvmx.accuracy import drop
    from tvmx.explore._golden import load_golden
    from tvmx.explore._terms import table_terms
    from tvmx.explore._whole import as_reference, rtol_of
    from tvmx.ir import CostTable
    from tvmx.measure import LocalFarm, NetworkJob, TimingPolicy
    from tvmx.passes import Simulator
    from tvmx.search import plan_us, walk_of
    from tvmx.store import Run
    from tvmx.targets import load_target

    path = network.path / "measured.json"
    known = Measurements.load(path)
    if known is not None and known.rounds >= network.rounds and len(known.samples) > 3:
        return known.samples
    context, table = _context(network), CostTable.load(network.run / "work" / "cost_table.json")
    golden, graph = load_golden(Run.load(network.run)), context.network.graph
    simulator = Simulator(context.network, load_target("host"))
    ordered = [golden.inputs[spec.name] for spec in context.model.inputs]
    jobs, kept = [], []
    for number, (assignment, plan) in enumerate(_plans(network)):
        if not network.library(number).is_file():
            continue
        exact = as_reference(plan, graph)
        expected = golden.outputs if exact else simulator.expected(plan, ordered)
        rtol = 1e-3 if exact else rtol_of(plan, graph)
        jobs.append(
            NetworkJob(
                library=network.library(number), inputs=golden.inputs, expected=expected,
                rtol=rtol, label=str(number),
            )
        )  # fmt: skip
        kept.append((number, assignment, plan))
    policy = TimingPolicy.careful()
    with LocalFarm() as farm, farm.runner() as runner:
        measured = runner.compare(jobs, network.rounds, policy)
        scorer = _scorer(network, context)
        drops = [
            drop(scorer.reference, scorer(runner, job)) if found.ok else 0.0
            for job, found in zip(jobs, measured, strict=True)
        ]
    samples, failed = [], {}
    for (number, assignment, plan), found, lost in zip(kept, measured, drops, strict=True):
        if found.median_us is None or found.spread_us is None:
            failed[str(number)] = f"{found.status}: {found.message}"
            continue
        predicted = plan_us(table, walk_of(table), assignment)
        terms = table_terms(table, context.target, 1, assignment)
        samples.append(
            PlanSample(
                network=network.path.name, number=number, predicted_us=predicted,
                measured_us=found.median_us, spread_us=found.spread_us, terms=terms,
                layers=_layers(plan), added_drop=table.accuracy_drop(assignment),
                measured_drop=lost,
            )
        )  # fmt: skip
    Measurements(rounds=network.rounds, samples=tuple(samples), failed=failed).save(path)
    return tuple(samples)


def _plans(network: Network) -> list[tuple[tuple[int, ...], Plan]]:
    from tvmx.explore._choices import FILE, Choices
    from tvmx.ir import CostTable

    table = CostTable.load(network.run / "work" / "cost_table.json")
    choices = Choices.load(network.run / "work" / FILE)
    return [(a, choices.plan(a)) for a in assignments(table, network.plans)]


def _context(network: Network) -> Context:
    from tvmx.explore._context import Context

    return Context.open(model_of(network.path), {}, "host", (), exact=False)


def _scorer(network: Network, context: Context) -> Scorer:
    from tvmx.accuracy import load_data
    from tvmx.explore._accuracy import Scorer
    from tvmx.explore._reference import Reference

    data = load_data(network.path / "data.npz", context.model.inputs, 0)
    return Scorer(context.model, data.held_out, Reference(context.model))


def _layers(plan: Plan) -> dict[str, int]:
    from tvmx.explore._outcome import kinds

    return kinds(plan)
