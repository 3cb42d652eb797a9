"""Playing a policy: several episodes of one table at once, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tvmx.search._environment import DeployEnv
from tvmx.search._features import TableFeatures
from tvmx.search._policy_net import ImplementationPolicy

Pick = Callable[[torch.Tensor], torch.Tensor]
"""Log-probabilities (n, width) to one action for each row."""


@dataclass
class Rollouts:
    """What n episodes saw and did; the first axis of everything is the layer, the second n.

    ``rewards`` are the environment's, ``log_odds`` what the policy gave each action.
    """

    context: torch.Tensor
    actions: torch.Tensor
    mask: torch.Tensor
    chosen: torch.Tensor
    rewards: torch.Tensor
    log_odds: torch.Tensor


class Stage:
    """A table set up to be played ``n`` times at once."""

    def __init__(self, env: DeployEnv, n: int) -> None:
        self.envs = [env, *(env.fork() for _ in range(n - 1))]
        self.features = TableFeatures(env.table, len(env.action_masks()), env.budgets)

    def play(self, policy: ImplementationPolicy, pick: Pick) -> Rollouts:
        """One episode in each environment."""
        steps: list[tuple[torch.Tensor, ...]] = []
        seen = [env.reset() for env in self.envs]
        paths: list[list[int]] = [[] for _ in self.envs]
        for layer in range(len(self.envs[0].table.layers)):
            inputs = self.inputs(layer, seen, paths)
            with torch.no_grad():
                log_odds = policy(*inputs)
            chosen = pick(log_odds)
            rewards = []
            for n, env in enumerate(self.envs):
                action = int(chosen[n])
                observation, reward, _, _, info = env.step(action)
                seen[n] = (observation, info)
                paths[n].append(action)
                rewards.append(reward)
            steps.append((*inputs, chosen, torch.tensor(rewards, dtype=torch.float32), log_odds))
        return Rollouts(*(torch.stack(column) for column in zip(*steps, strict=True)))

    def inputs(
        self, layer: int, seen: Sequence[tuple[Any, dict[str, Any]]], paths: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the policy is given at a layer: context, actions, mask."""
        features, alike = self.features, {}
        rows = np.repeat(features.actions[layer][None], len(paths), axis=0)
        for n, path in enumerate(paths):
            key = features.sources(layer, path)
            if key not in alike:
                alike[key] = features.matches(layer, path)
            rows[n, :, -alike[key].shape[1] :] = alike[key]
        context = np.stack([features.observed(o, layer) for o, _ in seen])
        mask = np.stack([info["action_mask"] for _, info in seen]).astype(np.bool_)
        return torch.from_numpy(context), torch.from_numpy(rows), torch.from_numpy(mask)


def sample(log_odds: torch.Tensor) -> torch.Tensor:
    """Draw by the probabilities, with torch's generator."""
    return torch.multinomial(log_odds.exp(), 1)[:, 0]


def likeliest(log_odds: torch.Tensor) -> torch.Tensor:
    """The action of most probability."""
    return log_odds.argmax(dim=1)
