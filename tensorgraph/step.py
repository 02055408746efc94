"""Training steps: forward, backward and update as one program, and the state that it overwrites."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from . import autodiff, dims, interpret, kept
from .built import MemoryReport, Options, RematReport, Source
from .compiled import Compiled, coerce, unflatten
from .cost import Cost
from .errors import GraphError, StateError, caller
from .graph import Graph
from .ops.random import generator
from .optim import Clock, Optimizer
from .passes import memory
from .tensor import Tensor, at, current_scope


class State(Mapping[str, Any]):
    """Parameters and optimiser state of a training run, by name: `params/...`, `m/...`, `v/...`, `step`.

    A step consumes the state it is given and returns the next one, in the same storage. Reading or passing a
    consumed state raises StateError[TG601], and so does one on which a step failed halfway. A step of one call of C
    that Ctrl-C interrupts is whole: the state given is what it was, or what it has become (`state["step"]` tells).
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

    def __init__(self, flat: dict[str, Tensor], tree: Any, update: Optimizer, options: Options) -> None:
        graph = Graph(flat, name=options.name)
        self.params, self.inputs = graph.params, graph.inputs
        self.trained = {n: p for n, p in graph.params.items() if p.attrs.get("trained", True) and p.dtype.is_float}
        self.tree, self.options, self.update, self._flat = tree, options, copy.copy(update), flat
        self._here = current_scope(), caller()  # where the update stands, whenever it is made
        self._keeps = kept.wanted(options)
        self.compiled = Compiled(self._source, tree, options, self._name)
        self._place = {n.removeprefix("value/"): i for i, n in enumerate(self.compiled.signature.results)}
        self._only = self._place[tree] if type(tree) is str else None
        leaves = self.compiled.signature.leaves  # every entry of the state: its dtype, and whether it is one number
        self._entries = {f"params/{n}": (p.dtype, not p.shape) for n, p in self.params.items()}
        for k in self.compiled.signature.donated.values():
            self._entries.setdefault(k, (leaves[k][0], not leaves[k][1]))

    def _name(self) -> str | None:
        """What the step is called on disk."""
        clock = self._clock if self._keeps else None
        if clock is None:
            return None
        with at(*self._here):
            return kept.key(self._flat, self.tree, self.update, clock, self.options)

    @functools.cached_property
    def _clock(self) -> Clock | None:
        try:
            with at(*self._here):
                return self.update.clock()
        except Exception:  # raised when the update is made, if nothing else is wrong before
            return None

    def _source(self) -> Source:
        slots, after = self._update
        keys = {p: f"params/{n}" for n, p in self.params.items()} | {t: n for n, t in slots.items()}
        results = {f"value/{n}": t for n, t in self._flat.items()}
        return Source({**results, **after}, {n: n for n in after}, keys)

    def _input(self, key: str) -> Tensor:
        return self.inputs[key] if key in self.inputs else self.compiled.built.by_key[key]

    @functools.cached_property
    def grads(self) -> dict[str, Tensor]:
        """The gradients, by parameter. Raises GraphError[TG312] if the loss depends on nothing that is trained."""
        loss = self._flat.get("loss", next(iter(self._flat.values())))
        found = autodiff.grad(loss, list(self.trained.values()), unused="none")
        grads = {n: g for n, g in zip(self.trained, found, strict=True) if g is not None}
        if not grads:
            raise GraphError(
                "TG312",
                "nothing to train: the loss depends on no trained parameter",
                hint="unfreeze some, or mark the loss",
            )
        return grads

    @functools.cached_property
    def _update(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        grads = self.grads
        with at(*self._here):
            return self.update.build(self.params, grads, self._clock if self._keeps else None)

    @property
    def slots(self) -> dict[str, Tensor]:
        """What the optimiser keeps, as inputs of the graph."""
        return self._update[0]

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

    def fits(self, binding: Any = None) -> bool:
        """Whether a call of these sizes fits in what is free, or in `memory_limit`. Raises SizeError as `memory`."""
        return self.compiled.fits({**self.options.binding, **dims.binding(binding)})

    def cost(self, binding: Any = None) -> Cost:
        return self.compiled.cost(binding)

    def remat(self, binding: Any = None) -> RematReport:
        return self.compiled.remat(binding)

    def init(self, params: Any = None, *, seed: int = 0, binding: Any = None) -> State:
        """Fresh state: parameters copied from `params` (a dict by name), or drawn (`seed`); moments zero; step 0.

        Raises StateError[TG602] for missing, unknown or mis-shaped parameters.
        """
        values = {**self.options.binding, **dims.binding(binding)}
        self.compiled.refuse(values)
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
            arrays[f"params/{n}"][...] = coerce(n, _draw(n, rng_seed, p, values) if drawn else params[n], p)
        return State(arrays, self)

    def _storage(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Zeros for every entry of the state, of parameters of these shapes, in one stretch of memory.

        What is updated together lies one after another; all else starts at a cache line.
        """
        entries = self._entries
        like = {k: () if number else shapes.get(k.partition("/")[2], ()) for k, (_, number) in entries.items()}
        offsets: dict[str, int] = {}
        end = 0
        joined = self.compiled.signature.joined.values()
        alone = entries.keys() - {k for keys in joined for k in keys}
        for stretch in (*joined, *([k] for k in entries if k in alone)):
            end = -(-end // memory.ALIGN) * memory.ALIGN
            for k in stretch:
                offsets[k] = end
                end += math.prod(like[k]) * entries[k][0].size
        block = np.zeros(end + memory.ALIGN, np.uint8)  # in huge pages, where NumPy may ask for them
        start = -block.ctypes.data % memory.ALIGN
        return {k: np.ndarray(like[k], t.np, block, start + offsets[k]) for k, (t, _) in entries.items()}

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
            fresh[k][...] = coerce(k, arrays[k], t)
        return State(fresh, self)

    def _values(self, found: Any) -> Any:
        return unflatten(self.tree, {n: found[i] for n, i in self._place.items()})

    def __call__(self, state: State, /, **inputs: Any) -> tuple[Any, State]:
        if not isinstance(state, State):
            raise StateError(
                "TG603", f"a step takes a State first, not {type(state).__name__}", hint="state = step.init(params)"
            )
        if state.repeat is not None and state.owner is self and state._arrays is not None:
            try:
                with self.compiled._lock:
                    found = state.repeat(inputs)
            except BaseException as error:
                if not state.repeat.atomic or "halfway" in error.__dict__:
                    state.spoil()
                raise
            if found is not None:
                value = found[self._only] if self._only is not None else self._values(found)
                after = State(state._arrays, self)
                after.repeat, state._arrays = state.repeat, None
                return value, after
        if state.owner is not self:
            raise StateError("TG602", "this state belongs to another step", hint="step.load(dict(state)) adopts a copy")
        compiled = self.compiled
        leaves = compiled.signature.leaves
        arrays = state.arrays
        P = {k: a for k, a in arrays.items() if k in leaves}
        for key, a in inputs.items():
            if key not in leaves or key in arrays:
                if key not in compiled.graph.inputs or key in arrays:
                    compiled._missing(P, {**inputs, key: None} if key not in arrays else {f"{key} (state)": None})
                continue
            fits = type(a) is np.ndarray and a.dtype == leaves[key][0].np
            P[key] = a if fits else coerce(key, a, self._input(key))
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
        return unflatten(self.tree, values), after


def _shape(name: str, a: Any, t: Tensor) -> tuple[int, ...]:
    return a.shape if isinstance(a, np.ndarray) else coerce(name, a, t).shape


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
