"""The search: environment, agents, exact solver, Pareto front.

Importing this package registers ``tvmx/Deploy-v0`` with gymnasium.
"""

from tvmx.search._agent import Agent, Episode
from tvmx.search._annealing import AnnealingAgent
from tvmx.search._baselines import GreedyAgent, RandomAgent
from tvmx.search._border import NETWORK_INPUT, BorderWalk, ChainBorderWalk, ResumableWalk, plan_us
from tvmx.search._budgets import Budgets
from tvmx.search._candidates import Candidate, TopCandidates
from tvmx.search._coordinate import CoordinateAgent
from tvmx.search._correction import TERMS, Correction, Sample, conversion_terms, held_out
from tvmx.search._environment import ENV_ID, DeployEnv, register
from tvmx.search._evolution import EvolutionAgent
from tvmx.search._exact import ExactPlan, pick_memory, solve_exact
from tvmx.search._exact_agent import ExactAgent
from tvmx.search._graph_walk import GraphBorderWalk, walk_of
from tvmx.search._hypervolume import hypervolume
from tvmx.search._measured import Measure, Measured
from tvmx.search._milp import solve_milp
from tvmx.search._objective import Objective
from tvmx.search._pareto import OBJECTIVES, dominates, pareto_front
from tvmx.search._qlearning import QLearning, QLearningParameters
from tvmx.search._registry import AGENTS, POLICY, choose_agent, default_agent, make_agent
from tvmx.search._settle import settle
from tvmx.search._target_features import target_features, target_numbers
from tvmx.search._tpe import TpeAgent

register()

__all__ = [
    "AGENTS",
    "ENV_ID",
    "NETWORK_INPUT",
    "OBJECTIVES",
    "POLICY",
    "TERMS",
    "Agent",
    "AnnealingAgent",
    "BorderWalk",
    "Budgets",
    "Candidate",
    "ChainBorderWalk",
    "CoordinateAgent",
    "Correction",
    "DeployEnv",
    "Episode",
    "EvolutionAgent",
    "ExactAgent",
    "ExactPlan",
    "GraphBorderWalk",
    "GreedyAgent",
    "Measure",
    "Measured",
    "Objective",
    "QLearning",
    "QLearningParameters",
    "RandomAgent",
    "ResumableWalk",
    "Sample",
    "TopCandidates",
    "TpeAgent",
    "choose_agent",
    "conversion_terms",
    "default_agent",
    "dominates",
    "held_out",
    "hypervolume",
    "make_agent",
    "pareto_front",
    "pick_memory",
    "plan_us",
    "settle",
    "solve_exact",
    "solve_milp",
    "target_features",
    "target_numbers",
    "walk_of",
]  # fmt: skip
