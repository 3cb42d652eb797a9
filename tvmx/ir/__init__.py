"""The vocabulary as data: workloads, implementations, configs, layouts, graphs, plans, costs."""

from tvmx.ir._channels import ChannelValues
from tvmx.ir._config import Config, Space
from tvmx.ir._cost_table import CostTable, LayerCosts, transition_key
from tvmx.ir._graph import (
    Conversion,
    Layer,
    LayoutWalk,
    NetworkGraph,
    Node,
    NodeKind,
    Placement,
    StatedValue,
    WalkState,
    plain_or_blocked,
    value_bytes,
)
from tvmx.ir._implementation import Implementation
from tvmx.ir._layout import (
    MATRIX,
    PLAIN,
    block_of,
    blocked,
    ceil_div,
    dtype_of,
    is_int8,
    layout_of,
    physical_shape,
    stored_as,
    to_logical,
    to_physical,
)
from tvmx.ir._model import Model, SourceNode, TensorSpec
from tvmx.ir._plan import Activation, LayerChoice, Plan
from tvmx.ir._source import DataSource, Preprocess
from tvmx.ir._sparsity import DENSE, LEVELS, BlockSparsity
from tvmx.ir._workload import (
    ROUNDINGS,
    Conv2dWorkload,
    DataType,
    DenseWorkload,
    Epilogue,
    Rounding,
    Workload,
    workload_from_json,
)

__all__ = [
    "DENSE",
    "LEVELS",
    "MATRIX",
    "PLAIN",
    "ROUNDINGS",
    "Activation",
    "BlockSparsity",
    "ChannelValues",
    "Config",
    "Conv2dWorkload",
    "Conversion",
    "CostTable",
    "DataSource",
    "DataType",
    "DenseWorkload",
    "Epilogue",
    "Implementation",
    "Layer",
    "LayerChoice",
    "LayerCosts",
    "LayoutWalk",
    "Model",
    "NetworkGraph",
    "Node",
    "NodeKind",
    "Placement",
    "Plan",
    "Preprocess",
    "Rounding",
    "SourceNode",
    "Space",
    "StatedValue",
    "TensorSpec",
    "WalkState",
    "Workload",
    "block_of",
    "blocked",
    "ceil_div",
    "dtype_of",
    "is_int8",
    "layout_of",
    "physical_shape",
    "plain_or_blocked",
    "stored_as",
    "to_logical",
    "to_physical",
    "transition_key",
    "value_bytes",
    "workload_from_json",
]  # fmt: skip
