"""What all published models share: their config and sizes, and inputs and outputs under transformers' names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tensorgraph import dtypes
from tensorgraph.dims import Dim, Shape, dims, show_shape
from tensorgraph.errors import DataError, DTypeError
from tensorgraph.nn import Module
from tensorgraph.ops.leaf import input
from tensorgraph.tensor import Tensor

if TYPE_CHECKING:
    from .lora import LoRA

Array = np.ndarray[Any, np.dtype[Any]]
Spec = tuple[Shape, Any]


class Model(Module):
    """A published model: takes tensors under transformers' names, and `outputs` returns a dict under its names.

    `binding` holds the published value of each symbol, `aliases` what products are called in print (d = H·k),
    `config` the settings it was made from, `fields` the config's field of each size. Made by `build`.
    `needs`: the inputs it cannot do without; `usual`: those of its graph, if they are others; `flags`: inputs that are
    true or absent; `learns`: what makes it return a loss, () if it has none. Of a model that generates from images
    `seen` are the inputs that go with the prompt, `looks` that of them which says what each token sees (what the last
    one does holds for all that follow), `first` the position of the first token.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    usual: ClassVar[tuple[str, ...]] = ()
    flags: tuple[str, ...] = ()
    learns: ClassVar[tuple[str, ...]] = ()
    seen: ClassVar[tuple[str, ...]] = ()
    looks: ClassVar[str] = ""
    first: ClassVar[int] = 0
    plan: Any
    config: Mapping[str, Any]
    binding: Mapping[str, int]
    aliases: Mapping[str, Dim]
    fields: Mapping[str, str]

    def specs(self, names: tuple[str, ...]) -> dict[str, Spec]:
        """Shape and dtype of every input that the model can take, when it is given those in `names`."""
        raise NotImplementedError

    def inputs(self, names: Iterable[str]) -> dict[str, Any]:
        """Inputs of the graph by transformers' names; True for a flag.

        Raises DataError: TG512 for a name that the model does not take, TG501 for one that it needs.
        """
        names = tuple(names)
        specs = self.specs(names)
        if unknown := [name for name in names if name not in specs and name not in self.flags]:
            hint = f"it takes {', '.join((*specs, *self.flags))}"
            raise DataError("TG512", f"the model has no input called {', '.join(map(repr, unknown))}", hint=hint)
        if missing := [name for name in self.needs if name not in names]:
            types = [f"{n}: {dtypes.dtype(specs[n][1]).short}{show_shape(specs[n][0])}" for n in missing]
            raise DataError("TG501", f"no value given for {', '.join(missing)}", notes=types)
        return {name: input(name, *specs[name]) if name in specs else True for name in names}

    def outputs(self, **inputs: Any) -> dict[str, Tensor]:
        """Outputs by transformers' names, from tensors (and flags) by its names."""
        self.assign_names()
        return {name: y for name, y in self(**inputs).items() if isinstance(y, Tensor)}

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Raise SizeError for sizes that no inputs have together, as `check` does for arrays; some may be absent."""

    def check(self, arrays: Mapping[str, Any]) -> None:
        """Raise DataError for arrays that do not fit each other, beyond their shapes and ranges."""

    def astype(self, dtype: Any) -> Any:
        """Give every parameter this dtype, a float; before the first graph is made. Returns self.

        Raises DTypeError: TG206 for another dtype, TG200 for an unknown one.
        """
        chosen = float_dtype(dtype)
        for p in self.parameters():
            p.dtype = chosen
        return self

    def mode(self, name: str, adapter: LoRA | None = None) -> Any:
        """Train the parts of a mode ("all", "bridge-only" ...: `modes.names(model)`), freeze the rest. Returns self.

        Raises as `modes.apply`.
        """
        from . import modes

        return modes.apply(self, name, adapter)

    @property
    def dtype(self) -> Any:
        """The dtype of the parameters."""
        return next(p.dtype for _, m in self.modules() for p in m.__dict__.values() if hasattr(p, "trained"))


def array_of(name: str, value: Any) -> Array:
    """The array that a value handed in as `name` is. Raises DataError[TG503] for rows of different lengths and such."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        text = f"{name} is no array: a {type(value).__name__} that NumPy cannot read"
        nested = isinstance(value, (list, tuple))
        raise DataError("TG503", text, hint="rows must be equally long: pad them" if nested else None) from None


def float_dtype(dtype: Any) -> dtypes.DType:
    """The dtype, if it is one that a model computes in. Raises DTypeError[TG206] for ints, and as `dtypes.dtype`."""
    found = dtypes.dtype(dtype)
    if not found.is_float:
        text = f"a model's values are floats: {found} cannot hold them"
        raise DTypeError("TG206", text, hint="float32, float64, bfloat16 or float16")
    return found


def zero_or_one(name: str, mask: Array) -> Array:
    """int32, 1 where the mask is not 0. Raises DataError[TG503] for what is no number."""
    if mask.dtype.kind not in "biuf":
        raise DataError("TG503", f"{name} must be 0 or 1, not {mask.dtype}")
    return (mask != 0).astype(np.int32)


def used(step: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays that a compiled graph reads: what it returns need not depend on all inputs."""
    return {name: array for name, array in arrays.items() if name in step.graph.inputs}


def ids(*names: str) -> dict[str, Spec]:
    """Specs of inputs of whole numbers [B, T]."""
    return {name: (dims("B T"), "int32") for name in names}


def belongs(module: Any, component: str) -> Any:
    """Count all parameters in `module` under one component, whatever its parts are by themselves. Returns it."""
    for _, m in module.modules():
        m.component = component
    return module


def under(ours: str, theirs: str, names: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """A name map for a model that is a part of another: both sides with their prefixes."""
    return tuple((ours + a, theirs + b) for a, b in names)


__all__ = ["Model", "Spec", "array_of", "belongs", "float_dtype", "ids", "under", "used", "zero_or_one"]
