"""Training a policy on many tables: imitation of the optimum, then REINFORCE."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tvmx.errors import UsageError
from tvmx.ir._cost_table import CostTable
from tvmx.search._border import ResumableWalk
from tvmx.search._budgets import Budgets
from tvmx.search._environment import DeployEnv
from tvmx.search._exact import solve_exact
from tvmx.search._policy_net import ImplementationPolicy
from tvmx.search._policy_rollout import Rollouts, Stage, sample


@dataclass(frozen=True)
class TrainingParameters:
    """``imitate`` updates towards the optimum, then ``reinforce`` by the policy's own episodes.

    Each is made on ``episodes`` of one table, all tables in turn. Imitated episodes take the
    optimum's action but for a share of ``astray`` random ones, after which the policy has to
    know its way too.

    ``discount`` is far below 1: what a choice costs shows at its layer and at the borders behind
    it, and the noise of all later choices would drown it. Where accuracy or weights are limited
    a choice also costs what later layers can no longer have, hence ``limited_discount``.
    """

    imitate: int = 1500
    reinforce: int = 500
    episodes: int = 8
    learning_rate: float = 2e-3
    astray: float = 0.1
    discount: float = 0.5
    limited_discount: float = 0.97
    entropy: float = 0.02

    def __post_init__(self) -> None:
        if self.imitate + self.reinforce < 1 or self.episodes < 2:
            raise UsageError(f"training needs an update and two episodes at the least: {self}")


def training_envs(tables: Sequence[CostTable], max_accuracy_drop: float = 1.0) -> list[DeployEnv]:
    """Each table as it is, and where layers lose accuracy also within a budget (points).

    Raises StoreError for a table that cannot be walked.
    """
    envs = [DeployEnv(table) for table in tables]
    limits = Budgets(max_accuracy_drop=max_accuracy_drop)
    lossy = [table for table in tables if any(any(costs.drops) for costs in table.layers)]
    return [*envs, *(DeployEnv(table, budgets=limits) for table in lossy)]


OnUpdate = Callable[[int, int], object]
"""Told how many updates of how many are done."""


def train_policy(
    envs: Sequence[DeployEnv], parameters: TrainingParameters | None = None, *, seed: int = 0,
    on_update: OnUpdate = lambda done, total: None,
) -> ImplementationPolicy:  # fmt: skip
    """A policy trained on environments of any tables and budgets, with objective latency.

    Equal seeds give equal policies on one machine. Raises UsageError without an environment.
    """
    if not envs:
        raise UsageError("a policy needs cost tables to be trained on")
    how = parameters or TrainingParameters()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network only loses by more
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _Trainer(envs, how, random.Random(seed), on_update).run()
    finally:
        torch.set_num_threads(threads)


class _Trainer:
    def __init__(
        self, envs: Sequence[DeployEnv], how: TrainingParameters, rng: random.Random,
        on_update: OnUpdate,
    ) -> None:  # fmt: skip
        self._how, self._rng, self._on_update = how, rng, on_update
        self._stages = [Stage(env, how.episodes) for env in envs]
        self.policy = ImplementationPolicy()
        self._optimiser = torch.optim.Adam(self.policy.parameters(), lr=how.learning_rate)
        self._order: list[int] = []
        self._done = 0

    def run(self) -> ImplementationPolicy:
        how = self._how
        lessons = [self._lesson(stage) for stage in self._stages] if how.imitate else []
        for number in range(how.imitate):
            rollouts, wanted = lessons[self._next()]
            self._update(self._imitation(rollouts, wanted), 1 - 0.9 * number / how.imitate)
        for number in range(how.reinforce):
            left = 1 - number / how.reinforce
            stage = self._stages[self._next()]
            rollouts = stage.play(self.policy, sample)
            limited = stage.envs[0].budgets.additive
            discount = how.limited_discount if limited else how.discount
            self._update(self._reinforcement(rollouts, discount, how.entropy * left), 0.2 * left)
        return self.policy

    def _next(self) -> int:
        if not self._order:
            self._order = self._rng.sample(range(len(self._stages)), len(self._stages))
        return self._order.pop()

    def _lesson(self, stage: Stage) -> tuple[Rollouts, torch.Tensor]:
        """Episodes along the optimum, some of them astray, and the optimum's actions (layers,)."""
        env = stage.envs[0]
        assert isinstance(env.walk, ResumableWalk)
        best = solve_exact(env.table, env.walk, env.budgets).actions
        taught = iter(best)

        def pick(log_odds: torch.Tensor) -> torch.Tensor:
            wanted = next(taught)
            legal = log_odds.isfinite()
            drawn = torch.multinomial(legal.float(), 1)[:, 0]
            stray = torch.rand(len(legal)) < self._how.astray
            stray[0] = False
            return torch.where(stray | ~legal[:, wanted], drawn, torch.tensor(wanted))

        return stage.play(self.policy, pick), torch.tensor(best)

    def _imitation(self, rollouts: Rollouts, wanted: torch.Tensor) -> torch.Tensor:
        log_odds = self._log_odds(rollouts)
        taught = wanted[:, None].expand_as(rollouts.chosen).flatten()[:, None]
        legal = rollouts.mask.flatten(0, 1).gather(1, taught)[:, 0]
        loss: torch.Tensor = -log_odds.gather(1, taught)[:, 0][legal].mean()
        return loss

    def _reinforcement(self, rollouts: Rollouts, discount: float, entropy: float) -> torch.Tensor:
        log_odds = self._log_odds(rollouts)
        taken = log_odds.gather(1, rollouts.chosen.flatten()[:, None])[:, 0]
        advantages = _advantages(rollouts.rewards, discount).flatten()
        known = log_odds.masked_fill(~rollouts.mask.flatten(0, 1), 0.0)
        spread = -(log_odds.exp() * known).sum(dim=1)
        loss: torch.Tensor = -(taken * advantages).mean() - entropy * spread.mean()
        return loss

    def _log_odds(self, rollouts: Rollouts) -> torch.Tensor:
        flat = (rollouts.context, rollouts.actions, rollouts.mask)
        log_odds: torch.Tensor = self.policy(*(t.flatten(0, 1) for t in flat))
        return log_odds

    def _update(self, loss: torch.Tensor, rate: float) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = self._how.learning_rate * rate
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self._optimiser.step()
        self._done += 1
        self._on_update(self._done, self._how.imitate + self._how.reinforce)


def _advantages(rewards: torch.Tensor, discount: float) -> torch.Tensor:
    """Discounted returns (layers, n), against the others' at the layer, in units of the table's.

    Whatever a layer's share of the time, its differences count for what they are worth.
    """
    returns = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[0])
    for layer in range(len(rewards) - 1, -1, -1):
        later = returns[layer] = rewards[layer] + discount * later
    apart = returns - returns.mean(dim=1, keepdim=True)
    return apart / (apart.std() + 1e-6)
