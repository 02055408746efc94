"""Compiled: a function of arrays. It takes them by name, checks them, binds sizes and runs the program on them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from . import dims, dtypes, interpret, kept, xp
from .backends import c as c_backend
from .backends import numpy as numpy_backend
from .backends.cimage import Native, Ranges
from .built import Built, MemoryReport, Options, RematReport, Source
from .collector import uncollected
from .cost import Cost
from .errors import BackendError, DataError, GradError, GraphError, SizeError, TensorgraphError
from .graph import Graph, outside
from .op import operand
from .passes import memory
from .passes.program import Program
from .tensor import Tensor, as_tensor


def flatten(outputs: Any) -> tuple[Any, dict[str, Tensor]]:
    """The structure with names at its leaves, and tensors by name."""
    flat: dict[str, Tensor] = {}

    def walk(x: Any, path: str) -> Any:
        if isinstance(x, Mapping):
            return {k: walk(v, f"{path}{k}/") for k, v in x.items()}
        if isinstance(x, (list, tuple)):
            return type(x)([walk(v, f"{path}{i}/") for i, v in enumerate(x)])
        name = path.rstrip("/") or "out"
        flat[name] = as_tensor(x)
        return name

    return walk(outputs, ""), flat


def unflatten(tree: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(tree, Mapping):
        return {k: unflatten(v, values) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)([unflatten(v, values) for v in tree])
    return values[tree]


class Entry(NamedTuple):
    """A program bound to the shapes of arrays, what integers it takes, and the sizes, where they are known."""

    bound: Any
    ranges: Ranges
    binding: dict[str, int] | None


class Compiled:
    """A compiled graph. `.source` is the code that runs; `.program` the schedule; `.memory(binding)` the plan.

    What another process compiled is taken up from the disk, by its `name` there (see kept.py); the graph then goes
    through its passes only if more is asked of it than to run.
    """

    def __init__(
        self,
        make: Callable[[], Source],
        tree: Any,
        options: Options,
        name: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._make, self.tree, self.options, self._name = make, tree, options, name
        self._key = name()
        self._kept = kept.find(self._key) if self._key is not None else None
        self.signature = self._kept.signature if self._kept is not None else self.built.signature
        self._bound: dict[tuple[Any, ...], Entry] = {}
        self._lock = threading.Lock()  # one arena per binding: calls take turns

    @functools.cached_property
    def built(self) -> Built:
        """Raises GraphError[TG316] if what was taken up from the disk would not be compiled so any more."""
        if self._kept is not None and self._name() != self._key:
            text = f"{self.options.name} was compiled before something that it depends on was changed"
            raise GraphError("TG316", text, hint="a rule, an assumption, a setting: compile it again")
        return Built(self._make(), self.options)

    # -- inspection
    @property
    def graph(self) -> Graph:
        return self.built.graph

    @property
    def outputs(self) -> dict[str, Tensor]:
        """The graph after all passes."""
        return self.built.outputs

    @property
    def program(self) -> Program:
        return self.built.program

    @functools.cached_property
    @uncollected
    def lowered(self) -> numpy_backend.Lowered:
        if self.options.backend == "c":
            return c_backend.Lowered(self.program, self.options.name, self.options.strict)
        return numpy_backend.Lowered(self.program, self.options.name)

    @property
    def source(self) -> str:
        """The generated code."""
        return self.lowered.source

    def memory(self, binding: Any = None) -> MemoryReport:
        """What a call needs, before anything is allocated. Raises SizeError for a size without a value."""
        return self.built.memory({**self.options.binding, **dims.binding(binding)})

    def cost(self, binding: Any = None) -> Cost:
        """What the compiled graph costs, after all passes: what is computed again counts under `recomputed`.

        Formulas; with a `binding` numbers, the sizes it was compiled for among them. An update's FLOPs are not counted.
        """
        found = self.built.cost()
        return found if binding is None else found.bind({**self.options.binding, **dims.binding(binding)})

    def remat(self, binding: Any = None) -> RematReport:
        """What computing values again saves and costs, for these sizes."""
        return self.built.remat({**self.options.binding, **dims.binding(binding)})

    # -- running
    def __call__(self, params: Mapping[str, Any] | None = None, /, **inputs: Any) -> Any:
        P = self.arrays(params, inputs)
        results = self.run(P)
        donated = {out: P[key] for out, key in self.signature.donated.items()}
        return unflatten(self.tree, {**results, **donated})

    def fits(self, binding: Mapping[str, int]) -> bool:
        """Whether a call of these sizes fits in memory, nothing of it being there yet.

        Raises SizeError for a size without a value.
        """
        peak = self._kept.peak if self._kept is not None and binding == self.options.binding else None
        return memory.fits(self.built.memory(dict(binding)).peak if peak is None else peak, self.options.memory_limit)

    def refuse(self, binding: Mapping[str, int]) -> None:
        """Raise BackendError[TG710] if it does not. Where sizes are missing, they come with the first call."""
        if self._kept is not None and self._kept.peak is None and binding == self.options.binding:
            return
        try:
            if not self.fits(binding):
                self._refuse(self.built.memory(dict(binding)), given=False)
        except SizeError:
            return

    def arrays(self, params: Mapping[str, Any] | None, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What `run` takes for a call: each array in its leaf's dtype, by key. Raises as the call."""
        leaves, donated = self.signature.leaves, self.donated
        P: dict[str, Any] = {}
        if not (params is None or isinstance(params, Mapping)):
            text = f"parameters come first, as a dict by name, not as {type(params).__name__}"
            raise DataError("TG505", text, hint="inputs go by name: f(x=...)")
        for source in params or {}, inputs:
            for key, a in source.items():
                if key in leaves:
                    fits = type(a) is np.ndarray and a.dtype == leaves[key][0].np
                    P[key] = a if fits else coerce(key, a, self.built.by_key[key], key in donated)
        if len(P) < len(leaves) or any(n not in leaves and n not in self.graph.inputs for n in inputs):
            self._missing(P, inputs)
        if donated:
            self._need_own(P)
        return P

    def _need_own(self, P: Mapping[str, Any]) -> None:
        """Raise DataError[TG506] if an array to be overwritten cannot be, or is given twice."""
        for key in self.donated:
            if not P[key].flags.writeable:
                raise DataError("TG506", f"{key} is overwritten in place, and the array given is read-only")
            for other, a in P.items():
                if other != key and np.may_share_memory(P[key], a):
                    raise DataError("TG506", f"{key} is overwritten in place, and shares its memory with {other}")

    @property
    def donated(self) -> set[str]:
        """Keys of the leaves that are overwritten."""
        return set(self.signature.donated.values())

    def _missing(self, P: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        by_key = self.built.by_key
        unknown = [n for n in inputs if n not in by_key]
        if unknown:
            import difflib

            near = difflib.get_close_matches(unknown[0], list(by_key), 3)
            raise DataError(
                "TG501",
                f"{self.options.name} has no input called {unknown[0]}",
                hint=f"did you mean {', '.join(near)}?" if near else None,
            )
        missing = [n for n in by_key if n in self.signature.leaves and n not in P]
        if missing:
            raise DataError(
                "TG501",
                f"no value given for {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}",
                notes=[f"{n}: {by_key[n].type_text}" for n in missing[:4]],
                hint="parameters come first, as a dict: f(params, x=...)"
                if by_key[missing[0]].op.name == "param"
                else None,
            )

    def run(self, P: dict[str, Any]) -> dict[str, Any]:
        """Results by name, for arrays of the right dtypes by key. Donated arrays are overwritten."""
        with self._lock, np.errstate(all="ignore"):  # nan and inf are results; debug="nonfinite" finds where they arise
            return self._run(P)

    def _run(self, P: dict[str, Any]) -> dict[str, Any]:
        shapes = tuple([a.shape for a in P.values()])
        key = (tuple(P), shapes)
        found = self._bound.get(key)
        if found is None:
            found = self._bound[key] = self.taken_up({k: a.shape for k, a in P.items()}) or self._bind(P)
            while len(self._bound) > 16:
                self._bound.pop(next(iter(self._bound)))
        if any(outside(P[k], low, high, ignored) is not None for k, low, high, ignored in found.ranges):
            ranged = {self.built.by_key[k].label: P[k] for k, *_ in found.ranges}
            self.graph.check_data(ranged, found.binding or self._binding(P), ranged)
        if self.options.debug == "nonfinite":
            self._need_finite(P, found.binding or {})
        if self.options.backend == "cupy":
            return self._run_cupy(P, found.binding or {})
        try:
            results = found.bound.run(P)
        except BaseException as error:
            if not found.bound.atomic:
                error.__dict__["halfway"] = True  # what is overwritten may be so in part
            raise
        return dict(zip(self.signature.results, results, strict=True))

    def _binding(self, P: Mapping[str, Any]) -> dict[str, int]:
        """The sizes that these arrays tell. Raises as Graph.infer_binding and check_binding."""
        graph, keys = self.graph, self.built.keys
        names = {keys[t]: n for n, t in (*graph.inputs.items(), *graph.params.items()) if keys[t] in P}
        binding = graph.infer_binding({names[k]: a for k, a in P.items()}, self.options.binding, partial=True)
        graph.check_binding(binding)
        return binding

    def taken_up(self, shapes: Mapping[str, tuple[int, ...]]) -> Entry | None:
        """What the disk has for arrays of these shapes, by key, if it fits in memory."""
        found = self._kept.bound(shapes, self.options.memory_limit) if self._kept is not None else None
        return None if found is None else Entry(*found, None)

    @uncollected
    def _bind(self, P: Mapping[str, Any]) -> Entry:
        binding = self._binding(P)
        graph, keys = self.graph, self.built.keys
        ranges = [
            (keys[graph.inputs[n]], low, dims.evaluate(high, binding), ignored)
            for n, found in graph.data_ranges.items()
            for low, high, ignored, _ in found
            if keys[graph.inputs[n]] in P
        ]
        report = self.built.memory(binding)
        self._refuse(report, given=True)
        bound = None if self.options.backend == "cupy" else self.lowered.bind(binding)
        if self._key is not None and isinstance(bound, Native) and self._name() == self._key:
            kept.keep(self._key, self.built, {k: a.shape for k, a in P.items()}, bound.image, ranges, report)
        return Entry(bound, ranges, binding)

    def _refuse(self, report: MemoryReport, given: bool) -> None:
        """Raise BackendError[TG710] if a call would not fit; `given`: what is passed in is there already."""
        limit = self.options.memory_limit
        need = report.peak - report.given * (given and limit is None)
        memory.refuse(self.options.name, need, report.largest, limit)

    def repeat(self, P: dict[str, Any], given: Mapping[str, Any]) -> Any:
        """The call just made, made again with nothing but the arrays `given` anew, where a backend has a short way."""
        if self.options.debug or self.options.backend == "cupy":
            return None
        found = self._bound.get((tuple(P), tuple([a.shape for a in P.values()])))
        return None if found is None else found.bound.repeat(P, given, found.ranges)

    def _run_cupy(self, P: dict[str, Any], binding: dict[str, int]) -> dict[str, Any]:
        try:
            space = xp.cupy()
        except ImportError:
            raise BackendError(
                "TG703", "backend 'cupy' needs CuPy and a GPU", hint="pip install tensorgraph[cuda]"
            ) from None
        by_key, donated = self.built.by_key, self.signature.donated
        given = {by_key[k]: space.asarray(a) for k, a in P.items()}
        values = interpret.evaluate(self.outputs.values(), given, binding, space)
        out = {}
        for name, value in zip(self.outputs, values, strict=True):
            if name in donated:
                array = P[donated[name]]
                array[...] = value.get() if isinstance(array, np.ndarray) else value
            else:
                out[name] = value.get()
        return out

    def _need_finite(self, P: Mapping[str, Any], binding: Mapping[str, int]) -> None:
        """Raise GradError[TG405] naming what is given nan, or else the first node that makes nan or inf.

        On the graph as it was written.
        """
        from .gradcheck.finite import first_nonfinite  # what only a debugging call needs

        found = first_nonfinite(self.graph, {t: P[k] for t, k in self.built.keys.items() if k in P}, binding)
        if found is not None:
            t = found.node
            if not t.inputs:
                kind = "parameter" if t.op.name == "param" else t.op.name
                raise GradError("TG405", f"the {kind} {t.label} is given {found.value}", operands=[operand(t)])
            side = ", in the backward pass" if t.scope.backward else ""
            raise GradError(
                "TG405",
                f"{t.op.name} is the first to produce {found.value}{side}",
                operands=[operand(t, "y")],
                notes=[f"{name} in {given}" for name, given in found.inputs.items()],
            )


def coerce(name: str, a: Any, t: Tensor, donated: bool = False) -> Any:
    """An array of the leaf's dtype. Widths may differ, kinds may not: a float is no index. Raises DataError[TG503]."""
    try:
        array = np.asarray(a)
    except (TypeError, ValueError, TensorgraphError):
        text = f"{name} is no array: a {type(a).__name__} that NumPy cannot read"
        raise DataError("TG503", text, operands=[operand(t)]) from None
    if array.dtype == t.dtype.np:
        return array
    if donated:
        raise DataError(
            "TG503", f"{name} is overwritten in place and must be {t.dtype}, not {array.dtype}", operands=[operand(t)]
        )
    kind = "f" if array.dtype == dtypes.bfloat16.np else {"u": "i"}.get(array.dtype.kind, array.dtype.kind)
    if kind not in "bif":
        raise DataError("TG503", f"{name} must be {t.dtype}, not {array.dtype}", operands=[operand(t)])
    if kind != t.dtype.kind and not (
        array.size == 0
        or (t.dtype.is_float and kind in "bi")
        or (t.dtype.kind == "b" and kind == "i" and ((array == 0) | (array == 1)).all())
    ):
        raise DataError("TG503", f"{name} must be {t.dtype}, not {array.dtype}", operands=[operand(t)])
    out = array.astype(t.dtype.np)
    if t.dtype.kind == "i" and not (out == array).all():
        raise DataError("TG503", f"{name} has values that {t.dtype} cannot hold", operands=[operand(t)])
    return out
