"""For tests: wrong gradient rules put in on purpose, and the sample calls of an op as graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from . import autodiff
from .dims import Dim
from .dims import dim as symbol
from .errors import OpError
from .gradcheck import Report, check_grads
from .gradcheck.sampling import sample_values, small_sizes
from .graph import Graph
from .op import REGISTRY, BadSample, InputSpec, Op, Sample
from .ops.leaf import input as input_
from .ops.random import generator
from .tensor import Tensor


@contextmanager
def override(op: Op | str, vjp: Callable[..., Any]) -> Iterator[Op]:
    """Within it, an op's gradient rule is `vjp`, a function (g, y, *inputs, **attributes) -> one cotangent per input.

    Raises OpError[TG259] for the name of no op.
    """
    record = REGISTRY.get(op) if isinstance(op, str) else op
    if not isinstance(record, Op):
        raise OpError(
            "TG259",
            f"there is no op called {op!r}",
            hint="give the record itself: tg.testing.override(tg.softmax, ...)",
        )
    before = autodiff.overrides.get(record)
    autodiff.overrides[record] = vjp
    autodiff._templates.clear()  # they were made with the rules of before
    try:
        yield record
    finally:
        if before is None:
            del autodiff.overrides[record]
        else:
            autodiff.overrides[record] = before
        autodiff._templates.clear()


def right_rule(op: Op) -> Callable[..., Any]:
    """An op's own rule in the form that `override` takes, also where it is read off the op's definition."""

    def from_body(g: Any, y: Any, *inputs: Tensor | None, **attrs: Any) -> list[Tensor | None]:
        node = y[0].inputs[0] if isinstance(y, tuple) else y
        needs = [x.specs is None and x.dtype.is_float for x in node.inputs]
        given = iter(autodiff._vjp_of_body(node, g, needs))
        return [None if x is None else next(given) for x in inputs]

    return op.vjp_fn or from_body


class Case(NamedTuple):
    """One sample of an op as a graph: its inputs are named after the op's parameters."""

    op: Op
    sample: Sample
    inputs: list[Tensor | None]
    results: list[Tensor]

    @property
    def graph(self) -> Graph:
        return Graph({f"y{i}": y for i, y in enumerate(self.results)}, name=f"a sample of {self.op.name}")

    def values(self, sizes: dict[str, int], seed: int = 0) -> dict[Tensor, Any]:
        """A value for every input, in the op's domain or where the sample says."""
        rng = generator(seed)
        out = sample_values(self.graph, sizes, rng)
        for t, spec in zip(self.inputs, self.sample.inputs, strict=True):
            if t is not None and spec is not None and (spec.low, spec.top) != (InputSpec("").low, InputSpec("").top):
                out[t] = rng.uniform(spec.low, spec.top, out[t].shape)
        return out

    def check(self, seed: int = 0, **options: Any) -> Report:
        """`check_grads` of this sample, at values drawn as the sample says."""
        sizes = small_sizes(self.graph)
        values = {t.label: a for t, a in self.values(sizes, seed).items()}
        return check_grads(self.graph, values=values, binding=sizes, seed=seed, **options)

    def __str__(self) -> str:
        shapes = "; ".join("-" if s is None else s.shape or "scalar" for s in self.sample.inputs)
        attrs = ", ".join(f"{k}={v}" for k, v in self.sample.attrs.items())
        return f"{self.op.name}({shapes}{' | ' + attrs if attrs else ''})"


def size(text: str, sizes: dict[str, int] | None = None) -> Dim:
    """A size of a sample: a number, or a symbol (or what `sizes` gives for it)."""
    if text.isdigit():
        return int(text)
    return sizes[text] if sizes is not None and text in sizes else symbol(text)


def build(op: Op, sample: Sample | BadSample, sizes: dict[str, int] | None = None, dtype: str = "float64") -> Case:
    """Call an op as a sample says, on inputs of its shapes; the op's own domain says where their values lie.

    Raises what the op raises.
    """
    inputs: list[Tensor | None] = []
    for i, spec in enumerate(sample.inputs):
        name = op.inputs[min(i, len(op.inputs) - 1)].name + (str(i) if op.variadic else "")
        inputs.append(None if spec is None else _input(name, spec, sizes, dtype))
    attrs = {k: _attr(v, sizes) for k, v in sample.attrs.items()}
    result = op(*inputs, **attrs)
    return Case(
        op, Sample(sample.inputs, sample.attrs), inputs, list(result) if isinstance(result, tuple) else [result]
    )


def _input(name: str, spec: InputSpec, sizes: dict[str, int] | None, dtype: str) -> Tensor:
    shape = tuple(size(w, sizes) for w in spec.shape.split())
    high = size(spec.high, sizes) if spec.high is not None else None
    return input_(name, shape, dtype if spec.dtype == "float" else spec.dtype, high)


def _attr(v: Any, sizes: dict[str, int] | None) -> Any:
    """Attributes of samples name sizes by strings within a shape: shape=("B", "T")."""
    if isinstance(v, tuple):
        return tuple(size(x, sizes) if isinstance(x, str) else _attr(x, sizes) for x in v)
    return v


def cases(op: Op, sizes: dict[str, int] | None = None, dtype: str = "float64") -> Iterator[Case]:
    """All samples of an op as graphs."""
    for s in op.samples:
        yield build(op, s, sizes, dtype)


__all__ = ["Case", "build", "cases", "override", "right_rule"]
