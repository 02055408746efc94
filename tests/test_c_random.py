"""Generated C against the reference on random graphs: reductions of every kind beside each other, views, products,
several outputs that share what makes them, gradients, values that overwrite inputs; one part and many, any threads."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph import autodiff, interpret
from tensorgraph.backends import cpu
from tensorgraph.dims import evaluate, mul, same_shape, size
from tensorgraph.errors import TensorgraphError
from tensorgraph.tensor import Tensor, topological

pytestmark = pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler")

LARGEST = 60_000  # elements of a value
UNARY = [
    tg.tanh, tg.sigmoid, tg.square, tg.abs, tg.neg, tg.relu, tg.sin, tg.erf, tg.gelu_tanh, tg.silu, tg.softplus,
    lambda x: tg.exp(tg.tanh(x)), lambda x: tg.sqrt(tg.square(x) + 0.5), lambda x: tg.log(tg.square(x) + 0.7),
    lambda x: tg.rsqrt(tg.square(x) + 0.5), lambda x: x * 0.5 + 1.0,
]  # fmt: skip
BINARY = [
    tg.add, tg.sub, tg.mul, tg.maximum, tg.minimum, lambda x, y: x / (tg.square(y) + 1.0),
    lambda x, y: tg.where(tg.less(x, y), x, y * 0.5), lambda x, y: x * y + x,
]  # fmt: skip


class Program(NamedTuple):
    outputs: dict[str, Tensor]
    donate: dict[str, str]
    sizes: dict[str, int]
    values: dict[Tensor, Any]


class _Writer:
    """A random program: inputs that broadcast against each other, then ops on what there is."""

    def __init__(self, seed: int, dtype: str) -> None:
        self.r = r = np.random.default_rng(seed)
        self.dtype = dtype
        self.sizes: dict[str, int] = {}
        self.axes = [self.axis(i) for i in range(r.integers(1, 5))]
        self.inputs = [self.leaf(i) for i in range(r.integers(1, 4))]
        self.pool: list[Tensor] = list(self.inputs)
        self.values = {t: self.draw(t) for t in self.inputs}

    def axis(self, i: int) -> Any:
        n = int(self.r.choice([1, 2, 3, 4, 5, 7, 8, 16, 17, 33, 64, 130, 600, 1025]))
        if self.r.random() < 0.4:
            return n
        self.sizes[f"n{i}"] = n
        return tg.dim(f"n{i}")

    def count(self, shape: Any) -> int:
        return evaluate(size(tuple(shape)), self.sizes)

    def leaf(self, i: int) -> Tensor:
        shape = [d if self.r.random() < 0.75 else 1 for d in self.axes][int(self.r.random() < 0.3) :]
        while shape and self.count(shape) > LARGEST:
            shape[int(self.r.integers(len(shape)))] = int(self.r.integers(1, 4))
        return tg.input(f"x{i}", tuple(shape), self.dtype)

    def draw(self, t: Tensor) -> Any:
        a = self.r.standard_normal(interpret.shape_of(t, self.sizes))
        return a.astype(t.dtype.np)

    def pick(self) -> Tensor:
        """What was made lately rather than long ago."""
        n = len(self.pool)
        return self.pool[n - 1 - min(n - 1, int(self.r.exponential(3)))]

    def some(self, n: int, least: int = 1) -> tuple[int, ...]:
        k = int(self.r.integers(least, n + 1)) if n >= least else 0
        return tuple(sorted(int(a) for a in self.r.choice(n, k, replace=False))) if k else ()

    # -- one op
    def unary(self, x: Tensor) -> Tensor:
        return UNARY[self.r.integers(len(UNARY))](x)

    def binary(self, x: Tensor) -> Tensor:
        return BINARY[self.r.integers(len(BINARY))](x, self.pick())

    def reduce(self, x: Tensor) -> Tensor:
        kind = self.r.integers(6)
        axes: Any = self.some(x.ndim) or None
        if kind == 0:  # all axes; first axes, or last axes
            axes = None
        elif kind < 3 and x.ndim:
            k = int(self.r.integers(1, x.ndim + 1))
            axes = tuple(range(k)) if kind == 1 else tuple(range(x.ndim - k, x.ndim))
        keep = bool(self.r.random() < 0.5)
        return [tg.mean, tg.mean, tg.max, tg.min, lambda *a, **k: tg.sum(*a, **k) * 0.1][self.r.integers(5)](
            x, axes, keepdims=keep
        )

    def several(self, x: Tensor) -> Tensor:
        """Reductions of one value over different axes, beside each other."""
        m = self.unary(x)
        self.pool += [self.reduce(m) for _ in range(self.r.integers(2, 4))]
        return m

    def shape(self, x: Tensor) -> Tensor:
        kind, r = int(self.r.integers(8)), self.r
        if kind == 0:
            return x.permute(*[int(a) for a in r.permutation(x.ndim)])
        if kind == 1:
            return x.reshape(size(x.shape))
        if kind == 2 and x.ndim > 1:
            return x.reshape(mul(x.shape[0], x.shape[1]), *x.shape[2:])
        if kind == 3:
            return tg.expand(x, (*([int(r.integers(1, 4))] * int(r.random() < 0.5)), *x.shape))
        if kind == 4 and x.ndim:
            return tg.flip(x, axis=int(r.integers(x.ndim)))
        if kind == 5 and x.ndim:
            return tg.concat(x, self.unary(x), axis=int(r.integers(x.ndim)))
        if kind == 6 and x.ndim:
            return tg.pad(x, tuple((int(r.integers(3)), int(r.integers(3))) for _ in x.shape))
        fixed = [i for i, d in enumerate(x.shape) if type(d) is int and d > 1]
        if fixed:
            at = int(r.choice(fixed))
            a = int(r.integers(0, x.shape[at] - 1))
            b, by = int(r.integers(a + 1, x.shape[at] + 1)), int(r.integers(1, 3))
            return x[(*[slice(None)] * at, slice(a, b, by))]
        return x.reshape(1, *x.shape)

    def product(self, x: Tensor) -> Tensor:
        y = self.pick()
        if self.r.random() < 0.5:
            y = tg.tanh(x)
        y = y.permute(*range(y.ndim - 2), y.ndim - 1, y.ndim - 2) if self.r.random() < 0.7 and y.ndim > 1 else y
        return (x @ y) / float(max(1, evaluate(x.shape[-1], self.sizes)))

    def composite(self, x: Tensor) -> Tensor:
        kind = int(self.r.integers(4))
        if kind == 0:
            return tg.softmax(x, axis=int(self.r.integers(x.ndim)))
        if kind == 1 and x.ndim:
            return tg.layer_norm(x, None, None)
        if kind == 2:
            return tg.logsumexp(x, axis=x.ndim - 1)
        return tg.cumsum(x, axis=int(self.r.integers(x.ndim))) * 0.2

    def ids(self, shape: Any, high: int) -> Tensor:
        t = tg.input(f"i{len(self.values)}", tuple(shape), "int32")
        self.values[t] = self.r.integers(0, high, interpret.shape_of(t, self.sizes)).astype("int32")
        return t

    def index(self, x: Tensor) -> Tensor:
        axis, kind, few = int(self.r.integers(x.ndim)), int(self.r.integers(7)), int(self.r.integers(1, 9))
        n = evaluate(x.shape[axis], self.sizes)
        if kind == 0:  # rows added to rows, some of them to each other
            at = self.ids((few,), n)
            return tg.index_add(x, at, tg.take(self.unary(x), self.ids((few,), n), axis=axis), axis=axis) * 0.5
        if kind == 1:  # to themselves
            return tg.index_add(x, self.ids((x.shape[axis],), n), x, axis=axis) * 0.1
        if kind == 2:
            new = x if self.r.random() < 0.5 else self.unary(x)
            return tg.update_slice(x, new[(*[slice(None)] * axis, slice(0, 1))], self.ids((), n), axis=axis)
        if kind == 3:
            return tg.sum_along(x, self.ids(x.shape, n), x.shape[axis], axis=axis) * 0.1
        if kind == 4:
            return tg.take_along(x, self.ids(x.shape, n), axis=axis)
        if kind == 5 and x.ndim == 2:
            w = tg.expand(tg.unsqueeze(tg.tanh(x).permute(1, 0), 0), (3, *x.shape[::-1]))
            y = tg.grouped_matmul(x, w, self.ids((3,), 1 + evaluate(x.shape[0], self.sizes)))
            return y / float(max(1, evaluate(x.shape[1], self.sizes)))
        return tg.take(x, self.ids((few,), n), axis=axis)

    def step(self) -> None:
        ways = [self.unary, self.binary, self.binary, self.reduce, self.several, self.shape, self.product,
                self.composite, self.index]  # fmt: skip
        try:
            y = ways[self.r.choice(len(ways), p=[0.15, 0.13, 0.13, 0.17, 0.1, 0.12, 0.05, 0.05, 0.1])](self.pick())
        except (TensorgraphError, IndexError, ValueError):
            return  # this op does not take this operand
        self.pool.append(y)
        self.pool = [t for t in self.pool if 0 < self.count(t.shape) <= LARGEST and t.ndim < 6]

    def write(self) -> Program:
        for _ in range(self.r.integers(3, 16)):
            self.step()
        made = [t for t in self.pool if t not in self.values] or [tg.tanh(self.inputs[0])]
        chosen = {made[-1], *(made[int(self.r.integers(len(made)))] for _ in range(self.r.integers(0, 5)))}
        outputs = {f"y{i}": t for i, t in enumerate(t for t in made if t in chosen)}
        if self.r.random() < 0.5:
            loss = sum((tg.mean(tg.square(t) + t) for t in outputs.values()), tg.mean(made[0]))
            found = autodiff.grad(loss, self.inputs, unused="none")
            outputs |= {f"d{i}": g for i, g in enumerate(found) if g is not None}
            if self.r.random() < 0.5:
                outputs["loss"] = loss
        donate: dict[str, str] = {}
        reached = set(topological(outputs.values()))
        for name, t in outputs.items():
            for x in self.inputs:
                fits = x in reached and x.label not in donate.values() and same_shape(t.shape, x.shape)
                if fits and t.dtype == x.dtype and self.r.random() < 0.3 and name not in donate:
                    donate[name] = x.label
        return Program(outputs, donate, self.sizes, {t: a for t, a in self.values.items() if t in reached})


def program(seed: int, dtype: str) -> Program:
    return _Writer(seed, dtype).write()


def disagreement(seed: int, dtype: str, strict: bool = False, make: Any = program) -> str | None:
    """Compile and run one program; what is wrong, if anything is: twice with one thread, and with two."""
    p = make(seed, dtype)
    nodes = [t for t in topological(p.outputs.values()) if t.specs is None]
    with np.errstate(all="ignore"):
        every = dict(zip(nodes, interpret.evaluate(nodes, p.values, p.sizes), strict=True))
    f = tg.compile(p.outputs, backend="c", donate=p.donate, binding=p.sizes, strict=strict)
    eps = 2e-5 if dtype == "float32" else 2e-13
    first: dict[str, Any] = {}
    for turn, threads in enumerate((1, 1, 2, 3)):
        given = {t.label: np.array(a) for t, a in p.values.items() if t.label in f.program.leaves}
        if turn:
            for bound, *_ in f._bound.values():
                bound.frame.arena.fill(255)  # nan: nothing may be read before it is written
                bound.frame.scratch.fill(255)
                bound.frame.call.threads = min(threads, cpu.threads())
        got = f(**given)
        for name, y in p.outputs.items():
            want, have = every[y], np.asarray(got[name])
            if have.shape != np.shape(want) or have.dtype != y.dtype.np:
                return f"{name}: {have.dtype}{have.shape}, not {y.dtype}{np.shape(want)}"
            if turn:
                if not np.array_equal(first[name], have, equal_nan=True):
                    return f"{name}: other bits in turn {turn} with {threads} threads"
                continue
            first[name] = have.copy()
            scale = max(float(np.max(np.abs(every[t]), initial=1)) for t in topological([y]) if t in every)
            error = np.max(np.abs(have.astype("float64") - np.asarray(want, "float64")), initial=0)
            if not error <= eps * scale:
                return f"{name}: off by {error:.3g} at a scale of {scale:.3g}"
    return None


def examine(seeds: range, make: Any = program) -> None:
    wrong = {
        (seed, dtype): found
        for seed in seeds
        for dtype in (("float32", "float64")[seed % 2],)
        if (found := disagreement(seed, dtype, strict=seed % 5 == 0, make=make)) is not None
    }
    assert not wrong, wrong


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    monkeypatch.setenv("TENSORGRAPH_THREADS", "3")


@pytest.mark.parametrize("start", range(0, 60, 10))
def test_random_programs(start):
    examine(range(start, start + 10))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(60, 560, 100))
def test_many_random_programs(start):
    examine(range(start, start + 100))


def test_sums_over_everything_and_over_rows_beside_each_other():
    x = tg.input("x", (5, 7))
    m = tg.tanh(x)
    a = np.random.default_rng(0).standard_normal((5, 7)).astype("float32")
    total, rows, columns = tg.compile([m.sum(), m.sum(1), m.max(0)], backend="c")(x=a)
    t = np.tanh(a.astype("float64"))
    np.testing.assert_allclose(total, t.sum(), rtol=1e-5)
    np.testing.assert_allclose(rows, t.sum(1), rtol=1e-5)
    np.testing.assert_allclose(columns, t.max(0), rtol=1e-6)


def test_the_largest_of_what_is_made_twice_is_found_again():
    """Its gradient compares a value, made in one pass, with the largest, found in another: bit for bit."""
    x, y = tg.input("x", (64, 700)), tg.input("y", (700,))
    p = x * y
    z = p + x
    f = tg.compile([z.max(1), p, autodiff.grad(z.max(1).sum(), x)], backend="c")
    r = np.random.default_rng(0)
    given = {"x": r.standard_normal((64, 700)).astype("float32"), "y": r.standard_normal(700).astype("float32")}
    assert np.count_nonzero(f(**given)[2]) == 64
