"""The knob tuner: sampler, features, XGBoost ranking, and how the budget is spread."""

from tvmx.tune._allocate import BudgetAllocator, TuningState
from tvmx.tune._features import knob_features
from tvmx.tune._prefilter import Prefilter
from tvmx.tune._ranker import Ranker
from tvmx.tune._tuner import KnobTuner, TunerParameters

__all__ = [
    "BudgetAllocator", "KnobTuner", "Prefilter", "Ranker", "TunerParameters", "TuningState",
    "knob_features",
]  # fmt: skip
