"""Rematerialisation: the same bits from less memory; what it saves and costs is said; the order of nodes is stable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph.backends import cpu
from tensorgraph.errors import TensorgraphError
from tensorgraph.ops.random import dropout
from tensorgraph.passes import remat, together

BATCH, LENGTH, WIDTH, VOCABULARY, LAYERS = 2, 32, 32, 64, 3
MODES = ("none", "block", "full")


class Block(tg.Module):
    """GPT-2's, with dropout."""

    def __init__(self, seed: tg.Tensor) -> None:
        super().__init__()
        d = WIDTH
        self.norm1, self.norm2 = tg.nn.LayerNorm(d), tg.nn.LayerNorm(d)
        self.qkv, self.out = tg.nn.Linear(d, 3 * d), tg.nn.Linear(d, d)
        self.up, self.down = tg.nn.Linear(d, 4 * d), tg.nn.Linear(4 * d, d)
        self.seed = seed

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        heads = self.qkv(self.norm1(x)).reshape(BATCH, LENGTH, 3, 2, WIDTH // 2)
        q, k, v = (heads[:, :, i].permute(0, 2, 1, 3) for i in range(3))
        a = tg.attention(q, k, v, causal=True).permute(0, 2, 1, 3).reshape(BATCH, LENGTH, WIDTH)
        x = x + dropout(self.out(a), 0.1, self.seed)
        return x + self.down(tg.gelu_tanh(self.up(self.norm2(x))))


class GPT(tg.Module):
    def __init__(self, seed: tg.Tensor) -> None:
        super().__init__()
        self.table = tg.nn.Embedding(VOCABULARY, WIDTH)
        self.layers = tg.ModuleList([Block(seed) for _ in range(LAYERS)])
        self.norm = tg.nn.LayerNorm(WIDTH)

    def forward(self, ids: tg.Tensor, labels: tg.Tensor) -> tg.Tensor:
        x = self.table(ids)
        for layer in self.layers:
            x = layer(x)
        return tg.cross_entropy(self.norm(x) @ self.table.weight.T, labels)


def gpt() -> tuple[tg.Tensor, dict[str, Any], dict[str, Any]]:
    """Loss, parameters and inputs."""
    ids, labels = (tg.input(n, (BATCH, LENGTH), "int32") for n in ("ids", "labels"))
    model = GPT(tg.input("seed", (), "int32"))
    rng = np.random.default_rng(0)
    batch = {n: rng.integers(0, VOCABULARY, (BATCH, LENGTH)).astype("i4") for n in ("ids", "labels")}
    return model(ids, labels), model.init(0), {**batch, "seed": np.int32(3)}


def plain(depth: int = 16) -> tuple[tg.Tensor, dict[str, Any], dict[str, Any]]:
    """A chain without layers: y = tanh(y w)."""
    x = y = tg.input("x", (64, 16))
    params = {f"w{i}": tg.param(f"w{i}", (16, 16)) for i in range(depth)}
    for w in params.values():
        y = tg.tanh(y @ w)
    rng = np.random.default_rng(0)
    values = {n: (rng.standard_normal((16, 16)) / 4).astype("f4") for n in params}
    return y.square().sum(), values, {x.label: rng.standard_normal((64, 16)).astype("f4")}


def trained(made: Any, mode: str, backend: str = "numpy", steps: int = 2) -> tuple[dict[str, Any], tg.Step]:
    loss, params, batch = made
    step = tg.compile(loss, update=tg.optim.AdamW(1e-2), backend=backend, strict=True, remat=mode)
    state = step.init(params)
    for _ in range(steps):
        value, state = step(state, **batch)
    return {**state, "loss": value}, step


@pytest.mark.parametrize("make", [gpt, plain])
def test_the_same_bits_from_less_memory(make: Any) -> None:
    made = make()
    before, kept = trained(made, "none")
    peaks = [kept.memory().arena]
    for mode in MODES[1:]:
        after, step = trained(made, mode)
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value, err_msg=f"{mode} {name}")
        peaks.append(step.memory().arena)
    assert peaks[1] < 0.6 * peaks[0] and peaks[2] <= 1.02 * peaks[1]


def test_generated_c_computes_again_too() -> None:
    if cpu.compiler() is None:
        pytest.skip("no compiler")
    made = gpt()
    before, kept = trained(made, "none", "c")
    after, step = trained(made, "block", "c")
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=2e-4, atol=2e-6, err_msg=name)
    assert step.memory().arena < 0.75 * kept.memory().arena


def test_what_it_saves_and_costs_is_said() -> None:
    loss, *_ = gpt()
    step = tg.compile(loss, update=tg.optim.AdamW(1e-2), backend="numpy", remat="block")
    kept = tg.compile(loss, update=tg.optim.AdamW(1e-2), backend="numpy")
    report = step.remat()
    assert report.peak_before == kept.memory().peak and report.peak_after == step.memory().peak < report.peak_before
    counted = {c: step.cost() if c else kept.cost() for c in (True, False)}
    more = counted[True].recomputed.products - counted[False].recomputed.products
    assert report.flops_after > report.flops_before and more > 0
    # A layer's products run once more but for its last, which nothing but the layer's result reads: that one is kept.
    forward = counted[False].forward.products - 2 * BATCH * LENGTH * WIDTH * VOCABULARY
    last = LAYERS * 2 * BATCH * LENGTH * 4 * WIDTH * WIDTH
    assert more == forward - last
    assert str(report).startswith(f"computed again: {LAYERS} layers; peak ")


def test_a_budget_takes_as_few_layers_as_it_can() -> None:
    loss, params, batch = gpt()
    step = tg.compile(loss, update=tg.optim.AdamW(1e-2), backend="numpy")
    none, least = step.memory().peak, trained((loss, params, batch), "full")[1].memory().peak
    found = []
    for share in (1.0, 0.5):
        budget = int(least + share * (none - least))
        chosen = tg.compile(loss, update=tg.optim.AdamW(1e-2), backend="numpy", remat=f"budget={budget}")
        assert chosen.memory().peak <= budget
        found.append(chosen.compiled.built.choice.layers)
    assert found[0] == 0 < found[1] < LAYERS


def said(**settings: Any) -> str:
    with pytest.raises(TensorgraphError) as info:
        tg.compile(gpt()[0], update=tg.optim.AdamW(1e-2), backend="numpy", **settings)
    return info.value.report()


def test_what_cannot_be_is_refused_in_words() -> None:
    assert said(remat="some") == (
        "BackendError[TG712] unknown rematerialisation 'some'\n"
        '  hint: "none", "block", "full", or a peak: "budget=2GB"'
    )
    rows = said(remat="budget=0.5MB", name="gpt").splitlines()
    assert rows[0].startswith("BackendError[TG713] gpt needs ") and rows[0].endswith("and the budget is 0.5 MB")
    assert rows[1] == "  the largest alive at once:" and 'graph.astype("bfloat16")' in rows[-1]
    assert remat.mode("budget=100KB") == remat.mode("budget=100 kb") == ("budget", 100_000)
    T = tg.dim("T")
    x = tg.input("x", (T, 4))
    with pytest.raises(TensorgraphError, match=r"TG007\] 'budget=1MB' is met for known sizes: no value for T"):
        tg.compile((x @ tg.param("w", (4, 4))).sum(), update=tg.optim.SGD(0.1), backend="numpy", remat="budget=1MB")


def test_checkpoints_are_computed_again_alone() -> None:
    def build(marked: bool) -> tg.Tensor:
        x, w = tg.input("x", (64, 16)), tg.param("w", (16, 16))
        y = x @ w
        if marked:
            with tg.checkpoint():
                y = tg.exp(tg.sin(tg.cos(y)))
        else:
            y = tg.exp(tg.sin(tg.cos(y)))
        return tg.square(y @ w).sum()

    rng = np.random.default_rng(0)
    made = {"w": rng.standard_normal((16, 16)).astype("f4")}, {"x": rng.standard_normal((64, 16)).astype("f4")}
    results = []
    for marked in (False, True):
        values, step = trained((build(marked), *made), "none")
        again = [t for t in tg.Graph(step.compiled.outputs).nodes if t.scope.kind == remat.RECOMPUTED]
        assert sorted(t.op.name for t in again) == (["cos"] if marked else [])  # what the others need is kept
        results.append(values)
    for name, value in results[0].items():
        np.testing.assert_array_equal(results[1][name], value, err_msg=name)


def test_updates_come_as_soon_as_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, *_ = gpt()
    monkeypatch.setattr(together, "SMALL", WIDTH * WIDTH - 1)  # biases and norms wait for each other, matrices do not
    for clip in (None, 1.0):
        step = tg.compile(loss, update=tg.optim.AdamW(1e-2, clip=clip), backend="numpy")
        names = [k.node.op.name for k in step.compiled.program.kernels]
        updates, products = ([i for i, n in enumerate(names) if n == kind] for kind in ("adamw", "matmul"))
        early = sum(i < products[-1] for i in updates)
        assert early > len(updates) / 2 if clip is None else early == 0
        assert ("clipping" in str(step.memory())) == (clip is not None)


def test_a_graph_compiled_again_runs_in_the_same_order() -> None:
    loss, *_ = gpt()
    steps = [tg.compile(loss, update=tg.optim.AdamW(1e-2), backend="numpy") for _ in range(2)]
    orders = [[(k.node.op.name, k.node.where) for k in s.compiled.program.kernels] for s in steps]
    assert orders[0] == orders[1]
    assert len({s.memory().arena for s in steps}) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's size")
@pytest.mark.parametrize("backend", ["numpy", "c"])
def test_the_predicted_peak_is_what_the_process_grows_by(backend: str) -> None:
    """Within 5 %, over its size after import and one warm product."""
    if backend == "c" and cpu.compiler() is None:
        pytest.skip("no compiler")
    script = Path(__file__).parent / "benchmarks" / "memory.py"
    ran = subprocess.run([sys.executable, script, "S", backend], capture_output=True, text=True, check=True)
    row = json.loads(ran.stdout)
    assert 0.95 < row["ratio"] < 1.05, row
