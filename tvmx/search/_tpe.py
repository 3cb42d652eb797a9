"""TPE: a tree-structured Parzen estimator over whole plans, by Optuna."""

from __future__ import annotations

from types import ModuleType

from tvmx.errors import MissingExtraError
from tvmx.search._agent import Agent, Env, OnEpisode
from tvmx.search._budgets import Budgets
from tvmx.search._plans import Plans


class TpeAgent(Agent):
    """Optuna's TPE sampler, one categorical parameter a layer. Needs the extra ``tpe``.

    After J. Bergstra, R. Bardenet, Y. Bengio, B. Kegl, "Algorithms for hyper-parameter
    optimization", NeurIPS 2011. It thinks the longer the more it has played: a thousand episodes
    on a deep network are minutes.
    """

    affordable = 200

    def check(self, objective: str, budgets: Budgets) -> None:
        """Raise MissingExtraError without Optuna."""
        _optuna()

    def train(
        self, env: Env, episodes: int, seed: int = 0, on_episode: OnEpisode | None = None
    ) -> list[int]:
        """See :meth:`Agent.train`. Raises MissingExtraError without Optuna."""
        optuna = _optuna()
        plans = Plans(env, episodes, seed, on_episode)
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(
                direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed)
            )
            space = {
                f"layer{layer}": optuna.distributions.CategoricalDistribution(plans.options[layer])
                for layer in plans.open
            }
            while not plans.over:
                trial = study.ask(space)
                plan = list(plans.baseline.actions)
                for layer in plans.open:
                    plan[layer] = trial.params[f"layer{layer}"]
                study.tell(trial, plans.play(plan).total)
        finally:
            optuna.logging.set_verbosity(verbosity)
        return list(plans.best.actions)


def _optuna() -> ModuleType:
    try:
        import optuna
    except ModuleNotFoundError as err:
        raise MissingExtraError(
            "the agent tpe needs Optuna, which is not installed",
            hint="pip install 'tvmx[tpe]', or another --agent",
        ) from err
    found: ModuleType = optuna
    return found
