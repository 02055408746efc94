"""A graph through its passes: the program that a backend lowers, what it costs, and what memory it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from . import cost as costs
from . import dims, interpret
from .backends import c as c_backend
from .backends import numpy as numpy_backend
from .collector import uncollected
from .cost import Cost
from .dtypes import DType
from .errors import BackendError, GraphError, SizeError
from .graph import Graph
from .op import operand
from .passes import fuse, masks, memory, orient, rewrite, tile, together
from .passes import program as programs
from .passes import remat as remats
from .tensor import Tensor


class Options(NamedTuple):
    """What a graph is compiled for: the arguments of `tg.compile`, checked."""

    backend: str
    binding: dict[str, int]
    debug: str | None
    trace: str | Path | None
    name: str
    strict: bool = False
    remat: str = "none"
    memory_limit: int | None = None


class Source(NamedTuple):
    """What is compiled: outputs by name, which of them overwrite which leaf, and the caller's names of leaves."""

    outputs: dict[str, Tensor]
    donate: dict[str, str]
    keys: Mapping[Tensor, str]


class Signature(NamedTuple):
    """What a program takes and returns: dtype and rank of its leaves by key; the leaf that each donated output
    overwrites, by key; the names of the other outputs; and which leaves of the caller one leaf joins."""

    leaves: dict[str, tuple[DType, int]]
    donated: dict[str, str]
    results: list[str]
    joined: dict[str, list[str]]


class Built:
    """A graph and its program. `choice`: what is computed again; `outputs`: the graph after all passes."""

    @uncollected
    def __init__(self, source: Source, options: Options) -> None:
        flat, donate = source.outputs, source.donate
        self.graph = Graph(flat, name=options.name)
        for t in self.graph.nodes:
            interpret.refuse_loop(t)
        self.options = options
        leaves = {**self.graph.inputs, **self.graph.params}
        self.keys = {t: source.keys.get(t, n) for n, t in leaves.items()}
        self.by_key = by_key = {k: t for t, k in self.keys.items()}
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
        p = self.program
        donated = {n: k for n, k in p.donated.items() if k in p.leaves}
        leaves_ = {k: (v.dtype, len(v.shape)) for k, v in p.leaves.items()}
        self.signature = Signature(leaves_, donated, [n for n in p.outputs if n not in p.donated], p.joined)

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
                report = self.memory(self.options.binding, found[2])
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

    # -- what it needs and costs
    def memory(self, values: dict[str, int], program: programs.Program | None = None) -> MemoryReport:
        """What a call needs, of this program or another. Raises SizeError for a size without a value."""
        program = program or self.program
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

    def cost(self) -> Cost:
        """Formulas of what the graph after all passes costs."""
        return costs.cost(Graph(self.outputs, name=self.options.name, aliases=self.graph.aliases))

    def remat(self, values: dict[str, int]) -> RematReport:
        """What computing values again saves and costs, for these sizes."""
        flops = [costs.cost(Graph(g), values) for g in (self._plain, self.outputs)]
        done = [cast("int", c.forward.all) + cast("int", c.backward.all) for c in flops]
        peaks = [self.memory(values, p).peak for p in (self._lower(self._plain), self.program)]
        return RematReport(str(self.choice), *done, *peaks)


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
