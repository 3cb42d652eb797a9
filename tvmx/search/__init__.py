"""The search: environment, agents, exact solver, Pareto front.

Importing this package registers ``tvmx/Deploy-v0`` with gymnasium.
"""

from tvmx.search._agent import Agent, Episode
from tvmx.search._baselines import GreedyAgent, RandomAgent
from tvmx.search._border import NETWORK_INPUT, BorderWalk, ChainBorderWalk, ResumableWalk, plan_us
from tvmx.search._budgets import Budgets
from tvmx.search._candidates import Candidate, TopCandidates
from tvmx.search._environment import ENV_ID, DeployEnv, register
from tvmx.search._exact import ExactPlan, pick_memory, solve_exact
from tvmx.search._objective import Objective
from tvmx.search._pareto import OBJECTIVES, dominates, pareto_front
from tvmx.search._qlearning import QLearning, QLearningParameters
from tvmx.search._settle import settle

register()

__all__ = [
    "ENV_ID", "NETWORK_INPUT", "OBJECTIVES", "Agent", "BorderWalk", "Budgets", "Candidate",
    "ChainBorderWalk", "DeployEnv", "Episode", "ExactPlan", "GreedyAgent", "Objective",
    "QLearning", "QLearningParameters", "RandomAgent", "ResumableWalk", "TopCandidates",
    "dominates", "pareto_front", "pick_memory", "plan_us", "settle", "solve_exact",
]  # fmt: skip
