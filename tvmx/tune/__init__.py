"""The knob tuner: sampler, features, XGBoost ranking, and how the budget is spread."""

from tvmx.tune._allocate import BudgetAllocator, TuningState
from tvmx.tune._features import FeatureTable, config_features
from tvmx.tune._prefilter import Prefilter
from tvmx.tune._ranker import Ranker
from tvmx.tune._tuner import KnobTuner, TunerParameters

__all__ = [
    "BudgetAllocator", "FeatureTable", "KnobTuner", "Prefilter", "Ranker", "TunerParameters",
    "TuningState", "config_features",
]  # fmt: skip
