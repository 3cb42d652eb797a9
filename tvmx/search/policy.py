"""Policies that are trained on many tables and applied to others. Needs torch, unlike the rest."""

from tvmx.search._policy_agent import PolicyAgent
from tvmx.search._policy_net import POLICY_SCHEMA, ImplementationPolicy
from tvmx.search._policy_train import TrainingParameters, train_policy, training_envs

__all__ = [
    "POLICY_SCHEMA", "ImplementationPolicy", "PolicyAgent", "TrainingParameters", "train_policy",
    "training_envs",
]  # fmt: skip
