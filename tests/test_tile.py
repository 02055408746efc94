"""Tiles: steps that run block after block of rows give what they give in one go; what is local never exists whole."""

from __future__ import annotations

import numpy as np
import pytest
from test_c_random import Program, _Writer, examine

import tensorgraph as tg
from tensorgraph import autodiff
from tensorgraph.backends import cpu
from tensorgraph.passes import fuse, masks, program, remat, tile
from tensorgraph.profile import profile

pytestmark = pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    monkeypatch.setenv("TENSORGRAPH_THREADS", "3")


@pytest.fixture
def blocks(monkeypatch):
    """blocks(wide, size, fewest): tiles for values from `wide` bytes on, in blocks of `size` bytes or `fewest` rows."""

    def choose(wide: int, size: int, fewest: int) -> None:
        monkeypatch.setattr(tile, "WIDE", wide)
        monkeypatch.setattr(tile, "LONGER", 0)
        monkeypatch.setattr(program, "BLOCK", size)
        monkeypatch.setattr(program, "FEWEST", fewest)
        monkeypatch.setattr(fuse, "SMALL", 0)

    return choose


def tiles(f) -> list[program.Tile]:
    return list(dict.fromkeys(s.tile for s in f.program.kernels if s.tile is not None))


class _Products(_Writer):
    """Programs of products over the same rows, of what regions make of them, and of their transposes."""

    def axis(self, i: int):
        n = int(self.r.choice([1, 2, 3, 5, 16, 17, 33, 40]))
        if self.r.random() < 0.5:
            return n
        self.sizes[f"n{i}"] = n
        return tg.dim(f"n{i}")

    def product(self, x):
        y, kind = self.pick(), self.r.integers(4)
        flip = lambda t: t.permute(*range(t.ndim - 2), t.ndim - 1, t.ndim - 2)  # noqa: E731
        y = tg.tanh(self.inputs[0]) if kind == 0 else y
        x, y = [(x, flip(y)), (flip(x), y), (x, y), (flip(x), x)][self.r.integers(4)]
        return (x @ y) / float(max(1, self.count(x.shape[-1:])))

    def step(self) -> None:
        ways = [self.product, self.unary, self.binary, self.reduce, self.composite]
        try:
            y = ways[self.r.choice(len(ways), p=[0.4, 0.2, 0.2, 0.1, 0.1])](self.pick())
        except (tg.errors.TensorgraphError, IndexError, ValueError):
            return
        self.pool.append(y)
        self.pool = [t for t in self.pool if 0 < self.count(t.shape) <= 60_000 and t.ndim < 6]


def products(seed: int, dtype: str) -> Program:
    return _Products(seed, dtype).write()


@pytest.mark.parametrize(("start", "size", "fewest"), [(0, 1, 1), (30, 2000, 1), (60, 1, 7)])
def test_random_programs_in_small_blocks(start, size, fewest, blocks):
    blocks(1, size, fewest)
    examine(range(start, start + 12), products)


@pytest.mark.slow
@pytest.mark.parametrize(("start", "size", "fewest"), [(100, 1, 1), (300, 2000, 1), (500, 1, 7), (700, 9000, 5)])
def test_many_random_programs_in_small_blocks(start, size, fewest, blocks):
    blocks(1, size, fewest)
    examine(range(start, start + 60), products)


def transformer(batch: int = 3, length: int = 37, ignore: int | None = -100) -> tuple[dict, dict, dict]:
    """A block of grouped causal attention and a head, with symbolic sizes: (loss and gradients, values, sizes)."""
    B, T = tg.dims("B T")
    d, k, V, heads, groups = 32, 8, 67, 4, 2
    shapes = {"e": (V, d), "q": (d, heads * k), "k": (d, groups * k), "v": (d, groups * k), "o": (heads * k, d)}
    p = {n: tg.param(n, s, "float64") for n, s in shapes.items()}
    ids, labels = tg.input("ids", (B, T), "int32"), tg.input("labels", (B, T), "int32")
    x = tg.take(p["e"], ids)
    h = tg.layer_norm(x, None, None)
    q, kk, v = ((h @ p[n]).reshape(B, T, -1, k).permute(0, 2, 1, 3) for n in "qkv")
    a = tg.attention(q, kk, v, causal=True).permute(0, 2, 1, 3).reshape(B, T, heads * k)
    x = tg.layer_norm(x + a @ p["o"], None, None)
    loss = tg.cross_entropy(x @ p["e"].T, labels, ignore=ignore)
    sizes = {"B": batch, "T": length}
    r = np.random.default_rng(0)
    values = {n: r.standard_normal(s) for n, s in shapes.items()}
    values |= {n: r.integers(0, V, (batch, length)).astype("int32") for n in ("ids", "labels")}
    if ignore is not None:
        values["labels"][0, :5] = ignore
    grads = autodiff.grad(loss, list(p.values()))
    return {"loss": loss, **dict(zip(p, grads, strict=True))}, values, sizes


@pytest.mark.parametrize("remat", ["none", "block"])
@pytest.mark.parametrize(
    ("size", "fewest", "ignore"), [(1, 1, None), (1, 7, -100), (25_000, 1, -100), (1 << 20, 1, -100)]
)
def test_a_transformer_in_blocks_has_the_gradients_of_numpy(size, fewest, ignore, remat, blocks):
    blocks(20_000, size, fewest)
    outputs, values, sizes = transformer(ignore=ignore)
    f = tg.compile(outputs, backend="c", remat=remat, binding=sizes)
    assert tiles(f)
    want = tg.compile(outputs, backend="numpy")(**values)
    for name, have in f(**values).items():
        np.testing.assert_allclose(have, want[name], rtol=1e-12, atol=1e-12 * np.abs(want[name]).max())


def test_logits_never_exist_whole(blocks):
    blocks(1 << 16, 1 << 14, 16)
    x, w, labels = tg.param("x", (512, 16)), tg.param("w", (64, 16)), tg.input("labels", (512,), "int32")
    loss = tg.cross_entropy(x @ w.T, labels)
    f = tg.compile([loss, *autodiff.grad(loss, [x, w])], backend="c")
    (t,) = tiles(f)
    assert t.block({}) == (1, 64)
    assert f.memory().arena < 2 * 64 * 64 * 4 + 512 * 16 * 4 + 64 * 16 * 4 + 16 * 512 + 2**13


def test_no_rows_at_all(blocks):
    """A sum over nothing is zero, also where the blocks of rows are none."""
    blocks(1, 1, 1)
    n = tg.dim("no_rows", min=0)
    x, w, labels = tg.input("x", (n, 16)), tg.param("w", (64, 16)), tg.input("labels", (n,), "int32")
    loss = tg.cross_entropy(x @ w.T, labels, reduction="sum", ignore=None)
    f = tg.compile([loss, *autodiff.grad(loss, [w])], backend="c")
    assert tiles(f)
    given = {"x": np.zeros((0, 16), "f4"), "labels": np.zeros(0, "i4"), "w": np.ones((64, 16), "f4")}
    value, dw = f(**given)
    assert value == 0
    assert not dw.any()


def test_sizes_that_are_unknown_count_as_large_and_blocks_follow_them_when_they_come():
    outputs, values, sizes = transformer()
    f = tg.compile(outputs, backend="c")
    assert {t.block(sizes) for t in tiles(f)} == {(12, 37)}
    assert {t.block({"B": 2, "T": 4096}) for t in tiles(f)} == {(1, 256)}
    want = tg.compile(outputs, backend="numpy")(**values)
    for name, have in f(**values).items():
        np.testing.assert_allclose(have, want[name], rtol=1e-12, atol=1e-12 * np.abs(want[name]).max())


def test_small_graphs_have_no_tiles():
    outputs, _, sizes = transformer()
    assert not tiles(tg.compile(outputs, backend="c", binding=sizes))


def attend(**options):
    """Attention over 65 positions, and its gradients, as NumPy has them; which of its tiles are causal."""
    B, T, k = tg.dim("B"), 65, 8
    q, kk, v = (tg.input(n, (B, h, T, k), "float64") for n, h in (("q", 4), ("k", 2), ("v", 2)))
    r = np.random.default_rng(0)
    values = {n: r.standard_normal((2, h, T, k)) for n, h in (("q", 4), ("k", 2), ("v", 2))}
    given = {n: tg.input(n, a.shape, str(a.dtype)) for n, a in options.items() if isinstance(a, np.ndarray)}
    values |= {n: a for n, a in options.items() if n in given}
    y = tg.attention(q, kk, v, **{**options, **given})
    out = [y, *autodiff.grad((y * y).sum(), [q, kk, v])]
    f = tg.compile(out, backend="c", binding={"B": 2})
    for have, want in zip(f(**values), tg.compile(out, backend="numpy")(**values), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-11, atol=1e-12)
    return [t.causal for t in tiles(f)]


@pytest.mark.parametrize(("size", "fewest"), [(1, 1), (1, 20), (1 << 16, 1)])
def test_columns_after_the_row_are_left_out_where_they_count_for_nothing(size, fewest, blocks, monkeypatch):
    blocks(30_000, size, fewest)
    monkeypatch.setattr(masks, "LARGE", 1)
    monkeypatch.setattr(remat, "SCORES", 1)
    assert attend(causal=True) == [True, True]
    assert attend(causal=True, window=5) == [True, True]
    assert attend(causal=True, softcap=2.0) == [True, True]
    assert attend() == [False, False]
    hides = np.random.default_rng(1).random((1, 1, 65, 65)) < 0.5
    hides[:, :, 3] = False  # a row that sees nothing weighs all alike, also what comes after it
    assert attend(causal=True, mask=hides) == [False, False]
    assert attend(causal=True, mask=np.where(hides, 0.0, -1e300)) == [False, False]


def test_scores_that_are_vast_are_made_again(blocks):
    kept = tg.compile(transformer()[0], backend="c")
    outputs, values, sizes = transformer(32, 1024)
    assert kept.cost(sizes).recomputed.all == 0
    again = tg.compile(outputs, backend="c", binding=sizes)
    assert again.cost(sizes).recomputed.products == 2 * 32 * 4 * 1024 * 1024 * 8
    assert again.memory(sizes).peak < 0.2 * kept.memory(sizes).peak
    assert str(again.remat()).startswith("computed again: the scores of 1 attentions; peak ")
    need = again.memory(sizes).peak
    with pytest.raises(tg.BackendError, match=r"TG710.*the limit is"):
        tg.compile(outputs, backend="c", binding=sizes, memory_limit=need - 1)(**values)


def test_steps_of_a_tile_are_timed(blocks):
    blocks(20_000, 1, 7)
    outputs, values, sizes = transformer()
    f = tg.compile(outputs, backend="c", binding=sizes)
    found = profile(f, values, sizes, runs=2)
    inside = {p.kernel.node for s in f.program.kernels if s.tile is not None for p in s.pieces}
    assert inside
    assert all(seconds > 0 for t, seconds in found.rows if t in inside)
