"""tg.compile: a graph through its passes to a backend; functions of arrays, and training steps with donated state."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from . import autodiff, dims, dtypes, interpret, xp
from . import cost as costs
from .backends import c as c_backend
from .backends import cpu
from .backends import numpy as numpy_backend
from .collector import uncollected
from .cost import Cost
from .errors import BackendError, DataError, GradError, GraphError, SizeError, StateError, TensorgraphError
from .graph import Graph
from .op import operand
from .ops.random import generator
from .optim import Optimizer
from .passes import fuse, masks, memory, orient, rewrite, tile, together
from .passes import program as programs
from .passes import remat as remats
from .tensor import Tensor, _hooks, as_tensor

BACKENDS = ("auto", "numpy", "c", "cupy")


def compile(
    outputs: Any,
    *,
    update: Optimizer | None = None,
    backend: str = "auto",
    binding: Any = None,
    capture: Any = (),
    donate: Mapping[str, str] | None = None,
    debug: str | None = None,
    trace: str | Path | None = None,
    strict: bool = False,
    remat: str = "none",
    memory_limit: int | str | None = None,
    name: str = "graph",
) -> Any:
    """A function of arrays that computes `outputs` (a tensor, a list or a dict of tensors, or a Graph).

    `f(params, **inputs)` or `f(**inputs)` returns arrays in the structure of `outputs`; sizes are read off the arrays,
    the rest comes from `binding`. With `update=` an optimiser it is a training step of the scalar output (the first, or
    the one called "loss"): see Step. `capture`: patterns of named values returned as well, under "captured".
    `donate`: {output: input} pairs; that input's array is overwritten with the output, in place where possible.
    `debug="nonfinite"`: the first node that produces nan or inf is an error. `trace`: a folder for each pass.
    `backend`: "auto" is generated C for a training step where a compiler is found, and NumPy otherwise.
    `strict`: generated C takes exp, tanh and erf of float32 from libm, small products round twice per element, and any
    number of threads gives the same bits; else exp, tanh and erf are polynomials, and large products are cut by the
    number of threads: the same bits from run to run.
    `remat`: forward values that backward reads are kept ("none"; but generated C makes scores of attention again that
    are 16 MB or more by `binding`) or computed again, layer by layer ("block"), also the layers' own inputs ("full"),
    or for as few layers as bring the peak under "budget=2GB" (which needs `binding`).
    `memory_limit`: bytes that a call may need in all, or "2GB"; by default what the system has free.
    Raises BackendError[TG700] for an unknown backend, [TG704] for "c" without a C compiler, [TG712] for an unknown
    `remat`, [TG713] for a budget that cannot be met, [TG716] for what is no limit; the call, [TG710] where it would not
    fit in memory.
    """
    if backend not in BACKENDS:
        raise BackendError("TG700", f"unknown backend {backend!r}", hint="one of " + ", ".join(BACKENDS))
    if debug not in (None, "nonfinite"):
        raise BackendError("TG700", f"unknown debug mode {debug!r}", hint='debug="nonfinite"')
    if backend == "c":
        cpu.need_compiler()
    chosen = _chosen(update is not None) if backend == "auto" else backend
    remats.mode(remat)
    sizes = dims.binding(binding) if binding else {}
    options = _Options(chosen, sizes, debug, trace, name, strict, remat, memory.limit_of(memory_limit))
    if isinstance(outputs, Graph):
        outputs, options = outputs.outputs, options._replace(name=outputs.name)
    tree, flat = _flatten(outputs)
    if not flat:
        raise GraphError("TG313", "nothing to compile: there are no outputs")
    if capture:
        patterns = [capture] if isinstance(capture, str) else list(capture)
        # what has no kernel of its own is inlined first, so that values inside it (attention's probs) are found too
        opened = Graph(rewrite.inline(dict(flat), lambda t: t.op.forward_fn is not None))
        captured = {t.path: t for p in patterns for t in opened.find(p)}
        flat.update({f"captured/{k}": t for k, t in captured.items()})
        tree = {"value": tree, "captured": {k: f"captured/{k}" for k in captured}}
    if update is not None:
        if not isinstance(update, Optimizer):
            text = f"update must be an optimiser, not {type(update).__name__}"
            raise GraphError("TG314", text, hint="update=tg.optim.AdamW(lr=3e-4)")
        return Step(flat, tree, update, options)
    return Compiled(flat, tree, options, dict(donate or {}))


def _chosen(repeated: bool) -> str:
    """What "auto" means: C for what is called again and again, if there is a compiler; NumPy for one evaluation."""
    return "c" if repeated and cpu.offered() else "numpy"


class _Options(NamedTuple):
    backend: str
    binding: dict[str, int]
    debug: str | None
    trace: str | Path | None
    name: str
    strict: bool = False
    remat: str = "none"
    memory_limit: int | None = None


def _flatten(outputs: Any) -> tuple[Any, dict[str, Tensor]]:
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


def _unflatten(tree: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(tree, Mapping):
        return {k: _unflatten(v, values) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)([_unflatten(v, values) for v in tree])
    return values[tree]


class Compiled:
    """A compiled graph. `.source` is the code that runs; `.program` the schedule; `.memory(binding)` the plan."""

    @uncollected
    def __init__(
        self,
        flat: dict[str, Tensor],
        tree: Any,
        options: _Options,
        donate: dict[str, str],
        keys: Mapping[Tensor, str] | None = None,
    ) -> None:
        self.graph = Graph(flat, name=options.name)
        for t in self.graph.nodes:
            interpret.refuse_loop(t)
        self.tree, self.options = tree, options
        leaves = {**self.graph.inputs, **self.graph.params}
        self.keys = {t: (keys or {}).get(t, n) for n, t in leaves.items()}
        by_key = {k: t for t, k in self.keys.items()}
        for out, leaf in donate.items():
            if out not in flat or leaf not in by_key:
                raise GraphError("TG311", f"cannot donate {leaf!r} to {out!r}: no such input or output")
            if not dims.same_shape(flat[out].shape, by_key[leaf].shape) or flat[out].dtype != by_key[leaf].dtype:
                raise GraphError(
                    "TG311",
                    f"{out!r} cannot overwrite {leaf!r}: their types differ",
                    operands=[operand(flat[out], out), operand(by_key[leaf], leaf)],
                )
        self.donate = {out: by_key[leaf] for out, leaf in donate.items()}
        self._plain = self._passes(dict(flat))
        self.choice, self.outputs, self.program = self._rematerialised()
        self.results = [n for n in self.program.outputs if n not in self.program.donated]
        self._bound: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()  # one arena per binding: calls take turns
        self._lowered: numpy_backend.Lowered | None = None

    def _passes(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named passes, each inspectable by `trace`."""
        differentiated = any(t.scope.backward for t in self.graph.nodes)

        def keep(t: Tensor) -> bool:
            if differentiated and t.op.recompute:
                return False
            return c_backend.keep(t) if self.options.backend == "c" else t.op.forward_fn is not None

        steps: list[tuple[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = [
            ("settle", rewrite.settle),
            ("inline", lambda o: rewrite.inline(o, keep)),
            ("simplify", rewrite.simplify),
            ("cse", rewrite.cse),
            ("simplify again", rewrite.simplify),
            ("flatten_matmul", rewrite.flatten_matmul),
            ("orient", orient.orient if self.options.backend == "c" else lambda o: o),
            ("views", rewrite.simplify),
            ("merge", rewrite.cse),
        ]
        self._trace(0, "graph", outputs)
        for i, (name, step) in enumerate(steps, 1):
            outputs = step(outputs)
            self._trace(i, name, outputs)
        return outputs

    def _lower(self, outputs: dict[str, Tensor]) -> programs.Program:
        if self.options.backend == "numpy" and self.options.remat == "none":  # it keeps small gradients for longer
            return together.lower(outputs, self.keys, self.donate)
        program = programs.lower(outputs, self.keys, self.donate)
        if self.options.backend != "c":
            return program
        masks.unfold(program, c_backend.MAPS, self.options.binding)
        program = fuse.fuse(program, c_backend.MAPS, c_backend.SPECIAL)
        return tile.tile(program, c_backend.tileable, self.options.binding)

    def _rematerialised(self) -> tuple[remats.Choice, dict[str, Tensor], programs.Program]:
        """The graph with what is computed again, and its program. Raises BackendError[TG713]; SizeError for a budget
        without sizes."""
        kind, budget = remats.mode(self.options.remat)
        choices = remats.choices(self._plain) if kind != "none" else [remats.Choice()]
        scores = remats.scores(self._plain, self.options.binding) if self.options.backend == "c" else {}

        def at(choice: remats.Choice) -> tuple[remats.Choice, dict[str, Tensor], programs.Program]:
            outputs = remats.remat(self._plain, choice, scores)
            choice = choice._replace(scores=len(set(scores.values())))
            return choice, outputs, self._lower(outputs)

        if budget is None:
            layers = [c for c in choices if c.stride == 1]
            found = at({"none": choices[0], "block": layers[-1], "full": choices[-1]}[kind])
        else:
            found = self._within(budget, choices, at)
        if found[1] is not self._plain:
            self._trace(10, "remat", found[1])
        return found

    def _within(self, budget: int, choices: list[remats.Choice], at: Callable[[remats.Choice], Any]) -> Any:
        """The first choice whose peak is within the budget, by halving: each needs no more memory than those before."""
        low, high, best = 0, len(choices) - 1, None
        tried: list[tuple[Any, MemoryReport]] = []
        while low <= high:
            middle = (low + high) // 2 if best is not None or low else low
            found = at(choices[middle])
            try:
                report = self._memory(found[2], self.options.binding)
            except SizeError as error:
                text = f"{self.options.remat!r} is met for known sizes: {error.summary}"
                raise SizeError(error.code, text, hint='compile(..., binding="B=8, T=128")') from None
            tried.append((found, report))
            if report.peak <= budget:
                best, high = found, middle - 1
            else:
                low = middle + 1
        if best is None:
            least, report = min(tried, key=lambda x: x[1].peak)
            raise BackendError(
                "TG713",
                f"{self.options.name} needs {memory.shown(report.peak)} even with {least[0]} computed again, "
                f"and the budget is {memory.shown(budget)}",
                notes=memory.rows(report.largest),
                hint='smaller sizes, or a lower precision: graph.astype("bfloat16")',
            )
        return best

    def _trace(self, i: int, name: str, outputs: dict[str, Tensor]) -> None:
        if self.options.trace is None:
            return
        folder = Path(self.options.trace)
        folder.mkdir(parents=True, exist_ok=True)
        g = Graph(outputs, name=name.replace(" ", "_"))
        counts: dict[str, int] = {}
        for t in g.nodes:
            counts[t.op.name] = counts.get(t.op.name, 0) + 1
        table = "\n".join(f"# {n:6d} {o}" for o, n in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))
        (folder / f"{i:02d}-{g.name}.txt").write_text(f"{g}\n\n# {len(g.nodes)} nodes\n{table}\n", encoding="utf-8")

    # -- inspection
    @property
    @uncollected
    def lowered(self) -> numpy_backend.Lowered:
        if self._lowered is None:
            if self.options.backend == "c":
                self._lowered = c_backend.Lowered(self.program, self.options.name, self.options.strict)
            else:
                self._lowered = numpy_backend.Lowered(self.program, self.options.name)
        return self._lowered

    @property
    def source(self) -> str:
        """The generated code."""
        return self.lowered.source

    def memory(self, binding: Any = None) -> MemoryReport:
        """What a call needs, before anything is allocated. Raises SizeError for a size without a value."""
        return self._memory(self.program, {**self.options.binding, **dims.binding(binding)})

    def _memory(self, program: programs.Program, values: dict[str, int]) -> MemoryReport:
        self.graph.check_binding(values)
        plan = memory.plan(program, values)

        def total(vs: Iterable[programs.Value]) -> int:
            return sum(dims.evaluate(dims.size(v.shape), values) * v.dtype.size for v in vs)

        given = total(program.leaves.values())
        returned = total(v for n, v in program.outputs.items() if n not in program.donated)
        tables = total(v for v in program.values if v.kind == "table")
        own = (k for k in program.kernels if numpy_backend.returns(k) and not fuse.generated(k))
        scratch = max((total(k.outputs) for k in own), default=0)
        largest = [(size, f"{t.op.name} {t.path}".rstrip(), t.where) for size, t in plan.live[:5]]
        largest += [(total([v]), key, "") for key, v in program.leaves.items()]
        largest.sort(key=lambda row: -row[0])
        return MemoryReport(plan.arena, given, returned, tables, scratch, largest[:5])

    def cost(self, binding: Any = None) -> Cost:
        """What the compiled graph costs, after all passes: what is computed again counts under `recomputed`.

        Formulas; with a `binding` numbers, the sizes it was compiled for among them. An update's FLOPs are not counted.
        """
        found = costs.cost(Graph(self.outputs, name=self.options.name, aliases=self.graph.aliases))
        return found if binding is None else found.bind({**self.options.binding, **dims.binding(binding)})

    def remat(self, binding: Any = None) -> RematReport:
        """What computing values again saves and costs, for these sizes."""
        values = {**self.options.binding, **dims.binding(binding)}
        flops = [costs.cost(Graph(g), values) for g in (self._plain, self.outputs)]
        done = [cast("int", c.forward.all) + cast("int", c.backward.all) for c in flops]
        peaks = [self._memory(p, values).peak for p in (self._lower(self._plain), self.program)]
        return RematReport(str(self.choice), *done, *peaks)

    # -- running
    def __call__(self, params: Mapping[str, Any] | None = None, /, **inputs: Any) -> Any:
        P = self.arrays(params, inputs)
        results = self.run(P)
        donated = {out: P[self.keys[leaf]] for out, leaf in self.donate.items()}
        return _unflatten(self.tree, {**results, **donated})

    def arrays(self, params: Mapping[str, Any] | None, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What `run` takes for a call: each array in its leaf's dtype, by key. Raises as the call."""
        leaves = self.program.leaves
        P: dict[str, Any] = {}
        if not (params is None or isinstance(params, Mapping)):
            text = f"parameters come first, as a dict by name, not as {type(params).__name__}"
            raise DataError("TG505", text, hint="inputs go by name: f(x=...)")
        for source in params or {}, inputs:
            for key, a in source.items():
                v = leaves.get(key)
                if v is not None:
                    P[key] = (
                        a
                        if type(a) is np.ndarray and a.dtype == v.dtype.np
                        else _coerce(key, a, v.node, key in self.donate_keys)
                    )
        if len(P) < len(leaves) or any(n not in leaves and n not in self.graph.inputs for n in inputs):
            self._missing(P, inputs)
        if self.donate:
            self._need_own(P)
        return P

    def _need_own(self, P: Mapping[str, Any]) -> None:
        """Raise DataError[TG506] if an array to be overwritten cannot be, or is given twice."""
        for key in self.donate_keys:
            if not P[key].flags.writeable:
                raise DataError("TG506", f"{key} is overwritten in place, and the array given is read-only")
            for other, a in P.items():
                if other != key and np.may_share_memory(P[key], a):
                    raise DataError("TG506", f"{key} is overwritten in place, and shares its memory with {other}")

    @property
    def donate_keys(self) -> set[str]:
        return {self.keys[leaf] for leaf in self.donate.values()}

    def _missing(self, P: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        by_key = {k: t for t, k in self.keys.items()}
        unknown = [n for n in inputs if n not in by_key]
        if unknown:
            import difflib

            near = difflib.get_close_matches(unknown[0], list(by_key), 3)
            raise DataError(
                "TG501",
                f"{self.options.name} has no input called {unknown[0]}",
                hint=f"did you mean {', '.join(near)}?" if near else None,
            )
        missing = [n for n in by_key if n in self.program.leaves and n not in P]
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
            found = self._bound[key] = self._bind(P)
            while len(self._bound) > 16:
                self._bound.pop(next(iter(self._bound)))
        bound, binding, ranged = found
        if ranged:
            self.graph.check_data({n: P[self.keys[self.graph.inputs[n]]] for n in ranged}, binding, ranged)
        if self.options.debug == "nonfinite":
            self._need_finite(P, binding)
        if self.options.backend == "cupy":
            return self._run_cupy(P, binding)
        try:
            results = bound.run(P)
        except BaseException as error:
            error.__dict__["halfway"] = True  # what is overwritten may be so in part
            raise
        return dict(zip(self.results, results, strict=True))

    @uncollected
    def _bind(self, P: Mapping[str, Any]) -> tuple[Any, dict[str, int], list[str]]:
        names = {
            self.keys[t]: n
            for n, t in (*self.graph.inputs.items(), *self.graph.params.items())
            if self.keys[t] in self.program.leaves
        }
        binding = self.graph.infer_binding({names[k]: a for k, a in P.items()}, self.options.binding, partial=True)
        self.graph.check_binding(binding)
        ranged = [n for n in self.graph.data_ranges if self.keys[self.graph.inputs[n]] in P]
        self._refuse(self._memory(self.program, binding), given=True)
        bound = None if self.options.backend == "cupy" else self.lowered.bind(binding)
        return bound, binding, ranged

    def _refuse(self, report: MemoryReport, given: bool) -> None:
        """Raise BackendError[TG710] if a call would not fit; `given`: what is passed in is there already."""
        limit = self.options.memory_limit
        need = report.peak - report.given * (given and limit is None)
        memory.refuse(self.options.name, need, report.largest, limit)

    def repeat(self, P: dict[str, Any], given: Mapping[str, Any]) -> Any:
        """The call just made, made again with nothing but the arrays `given` anew, where a backend has a short way."""
        if self._lowered is None or self.options.debug:
            return None
        bound, binding, ranged = self._bound[tuple(P), tuple([a.shape for a in P.values()])]
        ranges = [
            (self.keys[self.graph.inputs[n]], low, dims.evaluate(high, binding), ignored)
            for n in ranged
            for low, high, ignored, _ in self.graph.data_ranges[n]
        ]
        return bound.repeat(P, given, ranges)

    def _run_cupy(self, P: dict[str, Any], binding: dict[str, int]) -> dict[str, Any]:
        try:
            space = xp.cupy()
        except ImportError:
            raise BackendError(
                "TG703", "backend 'cupy' needs CuPy and a GPU", hint="pip install tensorgraph[cuda]"
            ) from None
        by_key = {k: t for t, k in self.keys.items()}
        given = {by_key[k]: space.asarray(a) for k, a in P.items()}
        values = interpret.evaluate(self.outputs.values(), given, binding, space)
        out = {}
        for name, value in zip(self.outputs, values, strict=True):
            if name in self.program.donated:
                P[self.program.donated[name]][...] = (
                    value.get() if isinstance(P[self.program.donated[name]], np.ndarray) else value
                )
            else:
                out[name] = value.get()
        return out

    def _need_finite(self, P: Mapping[str, Any], binding: Mapping[str, int]) -> None:
        """Raise GradError[TG405] naming what is given nan, or else the first node that makes nan or inf.

        On the graph as it was written.
        """
        from .gradcheck.finite import first_nonfinite  # what only a debugging call needs

        found = first_nonfinite(self.graph, {t: P[k] for t, k in self.keys.items() if k in P}, binding)
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


class MemoryReport(NamedTuple):
    """Bytes: arena for intermediates, arrays given (parameters, state, inputs), returned, tables; scratch for what
    NumPy's kernels return before it is put in its place; the largest values alive at once."""

    arena: int
    given: int
    returned: int
    tables: int
    scratch: int
    largest: list[tuple[int, str, str]]
    note: str = ""

    @property
    def peak(self) -> int:
        """All of it together: what the process grows by at most."""
        return self.arena + self.given + self.returned + self.tables + self.scratch

    def __str__(self) -> str:
        shown = memory.shown
        lines = [
            f"peak {shown(self.peak)} = arena {shown(self.arena)} + parameters, state and inputs {shown(self.given)}"
            f" + results {shown(self.returned)} + tables {shown(self.tables)} + scratch {shown(self.scratch)}"
        ]
        lines += [f"  {shown(size):>13}  {path}  {where}".rstrip() for size, path, where in self.largest]
        lines += [self.note] if self.note else []
        return "\n".join(lines)


class RematReport(NamedTuple):
    """What is computed again; FLOPs of a call and its peak in bytes, without that and with it."""

    choice: str
    flops_before: int
    flops_after: int
    peak_before: int
    peak_after: int

    def __str__(self) -> str:
        more = self.flops_after / max(1, self.flops_before) - 1
        return (
            f"computed again: {self.choice}; peak {memory.shown(self.peak_before)} -> {memory.shown(self.peak_after)}, "
            f"FLOPs {self.flops_before / 1e9:,.2f} G -> {self.flops_after / 1e9:,.2f} G ({more:+.1%})"
        )


def _coerce(name: str, a: Any, t: Tensor, donated: bool = False) -> Any:
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


# ---------------------------------------------------------------------------------------------- training


class State(Mapping[str, Any]):
    """Parameters and optimiser state of a training run, by name: `params/...`, `m/...`, `v/...`, `step`.

    A step consumes the state it is given and returns the next one, in the same storage. Reading or passing a
    consumed state raises StateError[TG601], and so does one on which a step failed halfway.
    """

    def __init__(self, arrays: dict[str, Any], owner: Any = None) -> None:
        self._arrays: dict[str, Any] | None = arrays
        self.owner = owner
        self.repeat: Any = None  # the backend's short way of calling its owner again on these arrays
        self._spoilt = False

    @property
    def arrays(self) -> dict[str, Any]:
        if self._spoilt:
            raise StateError(
                "TG601",
                "a step on this state failed halfway, when some of it was overwritten already",
                hint="go on from a saved one: step.load(arrays)",
            )
        if self._arrays is None:
            raise StateError(
                "TG601",
                "this state was consumed by a step and is no longer valid",
                hint="value, state = step(state, ...)",
            )
        return self._arrays

    def take(self) -> dict[str, Any]:
        """The storage; the state is consumed."""
        arrays = self.arrays
        self._arrays = None
        return arrays

    def spoil(self) -> None:
        """The state is half overwritten, and nobody's any more."""
        self._arrays, self.repeat, self._spoilt = None, None, True

    @property
    def params(self) -> dict[str, Any]:
        """Copies of the parameters, by their names."""
        return {k[7:]: v.copy() for k, v in self.arrays.items() if k.startswith("params/")}

    def __getitem__(self, key: str) -> Any:
        view = self.arrays[key].view()
        view.flags.writeable = False
        return view

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __deepcopy__(self, memo: Any) -> State:
        return State({k: v.copy() for k, v in self.arrays.items()}, self.owner)

    def __reduce__(self) -> Any:
        hint = "save dict(state), or io.checkpoint; step.load(arrays) takes it up again"
        raise StateError("TG605", "a state cannot be pickled: it belongs to its step", hint=hint)

    def __repr__(self) -> str:
        return (
            "<State consumed>"
            if self._arrays is None
            else f"<State of {len(self._arrays)} arrays, step {int(self._arrays['step'])}>"
        )


class Step:
    """A training step as one graph: forward, backward and the update of every trained parameter.

    `state = step.init(params)`, then `value, state = step(state, **inputs)`.
    """

    def __init__(self, flat: dict[str, Tensor], tree: Any, update: Optimizer, options: _Options) -> None:
        loss = flat.get("loss", next(iter(flat.values())))
        graph = Graph(flat, name=options.name)
        self.params = graph.params
        self.trained = {n: p for n, p in graph.params.items() if p.attrs.get("trained", True) and p.dtype.is_float}
        found = autodiff.grad(loss, list(self.trained.values()), unused="none")
        grads = {n: g for n, g in zip(self.trained, found, strict=True) if g is not None}
        if not grads:
            raise GraphError(
                "TG312",
                "nothing to train: the loss depends on no trained parameter",
                hint="unfreeze some, or mark the loss",
            )
        slots, after = update.build(graph.params, grads)
        keys = {p: f"params/{n}" for n, p in graph.params.items()} | {t: n for n, t in slots.items()}
        self.slots = slots
        results = {f"value/{n}": t for n, t in flat.items()}
        self.compiled = Compiled({**results, **after}, tree, options, {n: n for n in after}, keys)
        self.tree, self.options, self.update = tree, options, update
        self._place = {n.removeprefix("value/"): i for i, n in enumerate(self.compiled.results)}
        self.grads = grads

    @property
    def graph(self) -> Graph:
        """The whole step: forward, backward, update."""
        return self.compiled.graph

    @property
    def source(self) -> str:
        return self.compiled.source

    def memory(self, binding: Any = None) -> MemoryReport:
        report = self.compiled.memory(binding)
        if self.update.clip is None:
            return report
        return report._replace(note="clipping by the global norm keeps all gradients until the last is there")

    def cost(self, binding: Any = None) -> Cost:
        return self.compiled.cost(binding)

    def remat(self, binding: Any = None) -> RematReport:
        return self.compiled.remat(binding)

    def init(self, params: Any = None, *, seed: int = 0, binding: Any = None) -> State:
        """Fresh state: parameters copied from `params` (a dict by name), or drawn (`seed`); moments zero; step 0.

        Raises StateError[TG602] for missing, unknown or mis-shaped parameters.
        """
        values = {**self.options.binding, **dims.binding(binding)}
        try:
            report = self.compiled.memory(values)
        except SizeError:  # sizes of the batch come with the first call, which is checked in turn
            pass
        else:
            self.compiled._refuse(report, given=False)
        drawn = params is None or isinstance(params, int)
        rng_seed = params if isinstance(params, int) else seed
        if drawn:
            params = dict.fromkeys(self.params)
        if not isinstance(params, Mapping):
            raise StateError("TG603", f"init takes parameters as a dict by name, not a {type(params).__name__}")
        if unknown := [n for n in params if n not in self.params]:
            raise StateError("TG602", f"the step has no parameter called {', '.join(map(str, unknown[:4]))}")
        missing = [n for n in self.params if n not in params]
        if missing:
            raise StateError(
                "TG602", f"no value for parameter {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}"
            )
        shapes: dict[str, tuple[int, ...]] = {}
        for n, p in self.params.items():
            shapes[n] = interpret.shape_of(p, values) if drawn else _shape(n, params[n], p)
            if _misfit(p, shapes[n]):
                raise StateError(
                    "TG602", f"parameter {n} must have the shape {dims.show_shape(p.shape)}, not {list(shapes[n])}"
                )
        arrays = self._storage(shapes)
        for n, p in self.params.items():  # one at a time: there is room for one alone
            arrays[f"params/{n}"][...] = _coerce(n, _draw(n, rng_seed, p, values) if drawn else params[n], p)
        return State(arrays, self)

    def _storage(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Zeros for every entry of the state, of parameters of these shapes, in one stretch of memory.

        What is updated together lies one after another; all else starts at a cache line.
        """
        leaves = {**{f"params/{n}": p for n, p in self.params.items()}, **self.slots}
        like = {k: shapes.get(k.partition("/")[2], ()) if t.shape else () for k, t in leaves.items()}
        offsets: dict[str, int] = {}
        end = 0
        joined = self.compiled.program.joined.values()
        alone = leaves.keys() - {k for keys in joined for k in keys}
        for stretch in (*joined, *([k] for k in leaves if k in alone)):
            end = -(-end // memory.ALIGN) * memory.ALIGN
            for k in stretch:
                offsets[k] = end
                end += math.prod(like[k]) * leaves[k].dtype.size
        block = np.zeros(end + memory.ALIGN, np.uint8)  # in huge pages, where NumPy may ask for them
        start = -block.ctypes.data % memory.ALIGN
        return {k: np.ndarray(like[k], t.dtype.np, block, start + offsets[k]) for k, t in leaves.items()}

    def load(self, arrays: Mapping[str, Any]) -> State:
        """State from saved arrays (see io.checkpoint). Raises StateError[TG602] if it is another model's."""
        want = {*(f"params/{n}" for n in self.params), *self.slots}
        if want != set(arrays):
            odd = sorted(want ^ set(arrays))
            raise StateError(
                "TG602",
                f"this is not the state of this step: {', '.join(odd[:4])} {'...' if len(odd) > 4 else ''}".rstrip(),
            )
        shapes = {n: _shape(f"params/{n}", arrays[f"params/{n}"], p) for n, p in self.params.items()}
        leaves = {**{f"params/{n}": p for n, p in self.params.items()}, **self.slots}
        for k, t in leaves.items():
            shape, like = _shape(k, arrays[k], t), shapes.get(k.partition("/")[2]) if t.shape else None
            fits = like is None or shape == like
            if not fits or _misfit(t, shape):
                want_shape = str(list(like)) if like is not None and not fits else dims.show_shape(t.shape)
                raise StateError("TG602", f"{k} must have the shape {want_shape}, not {list(shape)}")
        fresh = self._storage(shapes)
        for k, t in leaves.items():
            fresh[k][...] = _coerce(k, arrays[k], t)
        return State(fresh, self)

    def __call__(self, state: State, /, **inputs: Any) -> tuple[Any, State]:
        if not isinstance(state, State):
            raise StateError(
                "TG603", f"a step takes a State first, not {type(state).__name__}", hint="state = step.init(params)"
            )
        if state.repeat is not None and state.owner is self and state._arrays is not None:
            try:
                with self.compiled._lock:
                    found = state.repeat(inputs)
            except BaseException:
                state.spoil()
                raise
            if found is not None:
                after = State(state._arrays, self)
                after.repeat, state._arrays = state.repeat, None
                if type(self.tree) is str:
                    return found[self._place[self.tree]], after
                return _unflatten(self.tree, {n: found[i] for n, i in self._place.items()}), after
        if state.owner is not self:
            raise StateError("TG602", "this state belongs to another step", hint="step.load(dict(state)) adopts a copy")
        compiled = self.compiled
        leaves = compiled.program.leaves
        arrays = state.arrays
        P = {k: a for k, a in arrays.items() if k in leaves}
        for key, a in inputs.items():
            v = leaves.get(key)
            if v is None or key in arrays:
                if key not in compiled.graph.inputs or key in arrays:
                    compiled._missing(P, {**inputs, key: None} if key not in arrays else {f"{key} (state)": None})
                continue
            P[key] = a if type(a) is np.ndarray and a.dtype == v.dtype.np else _coerce(key, a, v.node)
        if len(P) < len(leaves):
            compiled._missing(P, {})
        try:
            results = compiled.run(P)  # raises before anything is written, if the arrays do not fit
        except BaseException as error:
            if "halfway" in error.__dict__:
                state.spoil()
            raise
        state.take()
        after = State(arrays, self)
        after.repeat = compiled.repeat(P, inputs)
        values = {k.removeprefix("value/"): v for k, v in results.items()}
        return _unflatten(self.tree, values), after


def _shape(name: str, a: Any, t: Tensor) -> tuple[int, ...]:
    return a.shape if isinstance(a, np.ndarray) else _coerce(name, a, t).shape


def _misfit(t: Tensor, shape: tuple[int, ...]) -> bool:
    return len(shape) != len(t.shape) or any(type(d) is int and d != s for d, s in zip(t.shape, shape, strict=True))


def _draw(name: str, seed: int, p: Tensor, binding: Mapping[str, int]) -> Any:
    """An initial value where no module says better: normal with deviation 0.02; zeros for biases, ones for norms."""
    shape, rng = interpret.shape_of(p, binding), generator(seed, name)
    if len(shape) == 1:
        return np.ones(shape) if p.attrs.get("component") == "norm" and not name.endswith("bias") else np.zeros(shape)
    normal = rng.standard_normal(shape)
    normal *= 0.02
    return normal


def eval_tensor(y: Tensor, backend: str, arrays: Mapping[str, Any]) -> Any:
    """`y.eval(x=..., w=...)`: inputs and parameters by name; the last few compilations are kept."""
    return _compiled(y, backend)(None, **arrays)


@functools.lru_cache(maxsize=8)
def _compiled(y: Tensor, backend: str) -> Any:
    return compile(y, backend=backend)


_hooks["eval"] = eval_tensor
