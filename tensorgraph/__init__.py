"""tensorgraph: write a model once, as a graph whose sizes may be symbols; everything else is read off that graph."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import dtypes, errors, nn, ops, optim
from .autodiff import grad, value_and_grad, vjp
from .compile import compile
from .cost import cost
from .dims import assume, dim, dims
from .dtypes import bfloat16, float16, float32, float64, int8, int32, int64, uint8
from .errors import (
    BackendError,
    CheckpointError,
    DataError,
    DTypeError,
    GradError,
    GraphError,
    ModelError,
    OpError,
    ShapeError,
    SizeError,
    StateError,
    TensorgraphError,
)
from .graph import Graph
from .nn import Module, ModuleList, Parameter
from .op import Bad, InputSpec, S, bools, ids, op
from .ops import *  # noqa: F403
from .optim import adamw
from .passes.remat import checkpoint
from .step import State, Step
from .tensor import Tensor, _hooks, scope

if TYPE_CHECKING:
    from . import gradcheck, io, models, testing, visualize
    from .gradcheck import check_function, check_grads
    from .visualize import draw

# What needs a heavier import, and where it stands: `models` and `visualize` import the engine, never the reverse.
_LAZY = {
    "draw": ("visualize", "draw"),
    "models": ("models", None),
    "visualize": ("visualize", None),
    "testing": ("testing", None),
    "gradcheck": ("gradcheck", None),
    "check_grads": ("gradcheck", "check_grads"),
    "check_function": ("gradcheck", "check_function"),
    "io": ("io", None),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tensorgraph' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = importlib.import_module(f"tensorgraph.{module}")
    if attribute is not None:
        value = getattr(value, attribute)
        globals()[name] = value
    return value


def _display(what: Any) -> Any:
    """The MIME bundle of a tensor, graph or module, for notebooks."""
    return importlib.import_module("tensorgraph.visualize.notebook").display(what)


_hooks["display"] = _display


def __dir__() -> list[str]:
    """The public names, which completion shows; those of files within are there, and imported by their own names."""
    return sorted({*__all__, "__all__", "__doc__", "__file__", "__name__", "__path__", "__version__"})


__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "Bad",
    "CheckpointError",
    "DTypeError",
    "DataError",
    "GradError",
    "Graph",
    "GraphError",
    "InputSpec",
    "ModelError",
    "Module",
    "ModuleList",
    "OpError",
    "Parameter",
    "S",
    "ShapeError",
    "SizeError",
    "State",
    "StateError",
    "Step",
    "Tensor",
    "TensorgraphError",
    "adamw",
    "assume",
    "bfloat16",
    "bools",
    "check_function",
    "check_grads",
    "checkpoint",
    "compile",
    "cost",
    "dim",
    "dims",
    "draw",
    "dtypes",
    "errors",
    "float16",
    "float32",
    "float64",
    "grad",
    "gradcheck",
    "ids",
    "int8",
    "int32",
    "int64",
    "io",
    "models",
    "nn",
    "op",
    "ops",
    "optim",
    "scope",
    "testing",
    "uint8",
    "value_and_grad",
    "visualize",
    "vjp",
    *ops.__all__,
]
