"""Training steps that another process compiled: the same bits, the same errors, and never another graph's program."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph import kept
from tensorgraph.backends import cpu
from tensorgraph.built import Options
from tensorgraph.errors import TensorgraphError
from tensorgraph.op import REGISTRY
from tests.test_c_random import _Writer

pytestmark = pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler")

B, T = tg.dims("B T")
CONFIG = {
    "model_type": "llama", "vocab_size": 61, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
SIZES = {"B": 2, "T": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cache(folder, monkeypatch):
    """A cache of these tests' own, in which no step is kept yet."""
    monkeypatch.setenv("TENSORGRAPH_CACHE", str(folder))
    monkeypatch.delenv("TENSORGRAPH_KEEP")
    shutil.rmtree(folder / "c" / "steps", ignore_errors=True)
    cpu.cache.cache_clear()
    yield folder / "c" / "steps"
    cpu.cache.cache_clear()


def loss_of(config: dict[str, Any] = CONFIG) -> Any:
    model = tg.models.build(config)
    return model.outputs(**model.inputs(("input_ids", "labels")))["loss"], model


def batch(seed: int = 0, rows: int = 2) -> dict[str, Any]:
    ids = np.random.default_rng(seed).integers(0, 61, (rows, 8)).astype("i4")
    return {"input_ids": ids, "labels": np.where(ids < 5, -100, ids).astype("i4")}


def compiled(sizes: dict[str, int] = SIZES, **options: Any) -> tuple[tg.Step, Any]:
    loss, model = loss_of()
    options = {"update": tg.optim.AdamW(tg.optim.cosine(1e-2, 100, 5), clip=1.0), "backend": "c", **options}
    return tg.compile(loss, binding={**model.binding, **sizes}, **options), model


def run(step: tg.Step, model: Any, steps: int = 3, rows: int = 2) -> dict[str, bytes]:
    """All bits of the losses and of the state."""
    state = step.init(model.init(0, model.binding))
    found = {}
    for i in range(steps):
        value, state = step(state, **batch(i, rows))
        found[f"loss {i}"] = np.asarray(value).tobytes()
    return found | {k: np.asarray(v).tobytes() for k, v in state.items()}


def from_disk(step: tg.Step) -> bool:
    return "built" not in step.compiled.__dict__


def test_what_is_taken_up_gives_the_same_bits(cache):
    first, again = compiled(), None
    want = run(*first)
    assert not from_disk(first[0])
    again = compiled()
    assert run(*again) == want
    assert from_disk(again[0]), "the second goes through no pass"


def test_another_process_takes_it_up(cache):
    want = run(*compiled())
    program = "import test_kept as k, sys; s, m = k.compiled(); f = k.run(s, m); print(k.from_disk(s), hash_of(f))"
    program = f"import hashlib\nhash_of = lambda f: hashlib.sha256(repr(f).encode()).hexdigest()\n{program}"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    ran = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["True", hashlib.sha256(repr(want).encode()).hexdigest()], ran.stderr


def test_all_else_is_read_off_the_graph(cache):
    one, model = compiled()
    run(one, model)
    two, _ = compiled()
    run(two, model)
    assert str(two.memory()) == str(one.memory())
    assert str(two.cost(SIZES)) == str(one.cost(SIZES))
    assert str(two.graph) == str(one.graph)
    assert two.slots.keys() == one.slots.keys() and two.grads.keys() == one.grads.keys()


def test_where_it_is_asked_for_its_graph_does_not_matter(cache, monkeypatch):
    run(*compiled())
    step, model = compiled()
    run(step, model)
    assert from_disk(step)
    monkeypatch.setenv("TENSORGRAPH_KEEP", "0")
    with tg.scope("elsewhere"):
        assert step.graph.params and step.source


def test_other_shapes_and_saved_states_work_as_before(cache):
    one, model = compiled({"T": 8})
    want, more = run(one, model), run(one, model, rows=5)
    two, _ = compiled({"T": 8})
    state = two.init(model.init(0, model.binding))
    saved = {k: np.array(v) for k, v in state.items()}
    assert run(two, model, rows=5) == more and from_disk(two)
    assert run(two, model, rows=3) == run(one, model, rows=3) and not from_disk(two), "shapes not seen are compiled"
    state = two.load(saved)
    value, _ = two(state, **batch(0))
    assert np.asarray(value).tobytes() == want["loss 0"]


@pytest.mark.parametrize("seed", range(5))
def test_random_programs_that_are_taken_up(cache, monkeypatch, seed):
    """Compiled, taken up, and with nothing kept: the same bits, in the state, too."""
    monkeypatch.setattr(kept, "FEWEST", 0)
    updates = [
        tg.optim.SGD(0.1, momentum=0.9, clip=1.0),
        tg.optim.AdamW(tg.optim.cosine(1e-2, 10, 2)),
        tg.optim.SGD(0.1),
    ]

    def trained() -> tuple[list[Any], bool]:
        r, w = np.random.default_rng(seed), _Writer(seed, "float32")
        outputs = [t for t in w.write().outputs.values() if t.dtype.is_float]
        names = [t.label for t in tg.Graph(outputs).inputs.values() if t.dtype.is_float and r.random() < 0.6]
        swap = {n: tg.ops.param(n, t.shape, t.dtype) for n, t in tg.Graph(outputs).inputs.items() if n in names}
        graph = tg.Graph(outputs).map(leaf=lambda t: swap.get(t.label) if t.op.name == "input" else None)
        loss = sum(
            (tg.mean(tg.square(t)) for t in graph.outputs.values()), tg.mean(tg.square(tg.ops.param("own", (3,))))
        )
        step = tg.compile(
            loss, update=updates[seed % 3], backend="c", strict=seed == 4, remat="block" if seed == 3 else "none"
        )
        values = {t.label: a for t, a in w.values.items()} | {"own": np.ones(3, "f4")}
        state = step.init({n: values[n] for n in step.params})
        found = []
        for _ in range(3):
            value, state = step(state, **{n: values[n] for n in step.inputs})
            found.append(np.asarray(value).tobytes())
        return [*found, *(np.asarray(a).tobytes() for a in state.values())], from_disk(step)

    first, second = trained(), trained()
    monkeypatch.setenv("TENSORGRAPH_KEEP", "0")
    assert first[0] == second[0] == trained()[0]
    assert second[1] or not list(cache.rglob("*.json"))


def test_a_run_of_the_command_line_starts_at_once(cache):
    from tensorgraph.models.train import Corpus, Settings, Trainer, fresh

    curves, taken = [], []
    for _ in range(2):
        net = fresh(CONFIG, "a b c d e f g . " * 99, vocab=300, length=8).init(0)
        corpus = Corpus.of("a b c d e f g . " * 99, net.need_tokenizer())
        trainer = Trainer(net.model, net.state, corpus, Settings(3, batch=2, length=8), dict(net.model.binding))
        curves.append([p.loss for p in trainer.run()])
        taken.append(from_disk(trainer.step))
    assert curves[0] == curves[1] and taken == [False, True]


WRONG: dict[str, dict[str, Any]] = {
    "an id too high": {"input_ids": np.full((2, 8), 61, "i4")},
    "a negative id": {"input_ids": np.full((2, 8), -1, "i4")},
    "a label out of range": {"labels": np.full((2, 8), 99, "i4")},
    "another rank": {"input_ids": np.zeros((2, 8, 1), "i4")},
    "shapes that disagree": {"labels": np.zeros((2, 7), "i4")},
    "floats": {"input_ids": np.full((2, 8), 0.5)},
    "too large an integer": {"input_ids": np.full((2, 8), 1 << 40)},
    "an unknown name": {"input_idz": np.zeros((2, 8), "i4")},
    "a list of words": {"input_ids": [["a"]]},
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_is_refused_in_the_same_words(cache, what):
    one, model = compiled()
    run(one, model)
    two, _ = compiled()
    said = []
    for step in (one, two):
        state = step.init(model.init(0, model.binding))
        with pytest.raises(TensorgraphError) as error:
            step(state, **{**batch(), **WRONG[what]})
        said.append(str(error.value))
        step(state, **batch())  # nothing was lost
    assert said[0] == said[1]


def test_missing_input_and_memory_are_refused_in_the_same_words(cache, monkeypatch):
    one, model = compiled()
    run(one, model)
    for wrong in ("missing", "limit", "limit of a call"):
        said = []
        for other in (False, True):
            monkeypatch.setenv("TENSORGRAPH_KEEP", str(int(other)))
            step, _ = compiled(memory_limit="20kB" if wrong == "limit" else None)
            with pytest.raises(TensorgraphError) as error:
                state = step.init(model.init(0, model.binding))
                if wrong == "limit of a call":
                    monkeypatch.setattr("tensorgraph.passes.memory.available", lambda: 1000)
                    step(state, **batch())
                step(state, input_ids=batch()["input_ids"])
            monkeypatch.setattr("tensorgraph.passes.memory.available", lambda: None)
            said.append(str(error.value))
        assert said[0] == said[1], wrong


def test_int64_ids_and_strided_arrays_need_no_compiling(cache):
    one, model = compiled()
    want = run(one, model, 1)["loss 0"]
    two, _ = compiled()
    state = two.init(model.init(0, model.binding))
    ids = batch()["input_ids"]
    wide = np.stack([ids, ids], -1).astype("i4")[..., 0]
    value, _ = two(state, input_ids=wide, labels=batch()["labels"].astype("i8"))
    assert np.asarray(value).tobytes() == want and from_disk(two)


@pytest.mark.parametrize("damage", ["cut", "changed", "no json", "gone", "unit gone", "unit damaged", "all gone"])
def test_what_is_damaged_is_compiled_again(cache, damage):
    one, model = compiled()
    want = run(one, model)
    files = sorted(p for p in cache.rglob("*") if p.is_file())
    assert len(files) == 2
    for p in files:
        if damage == "cut":
            p.write_bytes(p.read_bytes()[:-20])
        elif damage == "changed":
            p.write_bytes(p.read_bytes().replace(b"1", b"2"))
        elif damage == "no json":
            kept._write(p, ["something else"])
        elif (damage == "gone" and p.name != "step.json") or damage == "all gone":
            p.unlink()
    for p in cache.parent.glob("*.so"):
        if damage == "unit gone":
            p.unlink()
        elif damage == "unit damaged":
            fresh = p.with_suffix(".tmp")
            fresh.write_bytes(b"no library")
            os.replace(fresh, p)
    two, _ = compiled()
    assert run(two, model) == want


def test_what_changes_after_compiling_is_not_kept(cache):
    """Neither by a first process, nor by one that compiles more shapes of a step that it took up."""
    right = REGISTRY["tanh"].vjp_fn
    x, w = tg.input("x", (B, 3)), tg.ops.param("w", (3, 3))

    def stack() -> tg.Tensor:
        h = x
        for _ in range(24):
            h = tg.softmax(tg.tanh(h @ w) * 0.5 + h)
        return tg.mean(h)

    def step() -> tg.Step:
        return tg.compile(stack(), update=tg.optim.SGD(0.1), backend="c")

    def trained(made: tg.Step, rows: int) -> bytes:
        _, state = made(made.init({"w": np.eye(3)}), x=np.linspace(0, 1, 3 * rows, dtype="f4").reshape(rows, 3))
        return state["params/w"].tobytes()

    first = step()
    try:
        REGISTRY["tanh"].vjp_fn = lambda g, y, x: (g * 100.0,)
        trained(first, 2)
    finally:
        REGISTRY["tanh"].vjp_fn = right
    assert not list(cache.rglob("*.json")), "the gradient may have been made with either rule"
    want = {rows: trained(step(), rows) for rows in (2, 5)}
    files = sorted((p for p in cache.rglob("*.json") if p.name != "step.json"), key=lambda p: p.stat().st_mtime_ns)
    files[-1].unlink()  # that of 5 rows
    second = step()
    assert trained(second, 2) == want[2] and from_disk(second)
    try:
        REGISTRY["tanh"].vjp_fn = lambda g, y, x: (g * 100.0,)
        with pytest.raises(TensorgraphError, match=r"TG316.*compiled before something that it depends on was changed"):
            trained(second, 5)
    finally:
        REGISTRY["tanh"].vjp_fn = right
    assert trained(second, 5) == want[5]


def test_an_optimiser_that_is_changed_later_is_that_of_before(cache):
    rate = tg.optim.SGD(0.5)
    x, w = tg.input("x", (B,)), tg.ops.param("w", ())
    step = tg.compile(tg.mean(x * w), update=rate, backend="c")
    rate.lr = 100.0
    _, state = step(step.init({"w": np.float32(1.0)}), x=np.ones(2, "f4"))
    assert state["params/w"] == 0.5


def test_a_rate_is_asked_for_once(cache):
    asked = []

    def rate(step: tg.Tensor) -> tg.Tensor:
        asked.append(step)
        return step * (0.1 * len(asked))

    x, w = tg.input("x", (B,)), tg.ops.param("w", ())
    step = tg.compile(tg.mean(x * w), update=tg.optim.SGD(rate), backend="c")
    _, state = step(step.init({"w": np.float32(1.0)}), x=np.ones(2, "f4"))
    assert len(asked) == 1 and state["params/w"] == pytest.approx(0.9)


def broken(step: tg.Tensor) -> tg.Tensor:
    raise ZeroDivisionError


@pytest.mark.parametrize(("loss", "code"), [
    (lambda: tg.mean(tg.input("x", (B,))), "TG312"),
    (lambda: tg.mean(tg.input("x", (B,)) + tg.input("x", (B,)) * tg.ops.param("w", ())), "TG309"),
    (lambda: tg.input("x", (B,)) * tg.ops.param("w", ()), "TG401"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_the_same_order(cache, loss, code):
    with pytest.raises(TensorgraphError, match=code):
        tg.compile(loss(), update=tg.optim.SGD(broken), backend="c")
    with pytest.raises(ZeroDivisionError):
        tg.compile(small(), update=tg.optim.SGD(broken), backend="c")


def test_two_inputs_of_one_name_are_refused_whatever_is_kept(cache, monkeypatch):
    monkeypatch.setattr(kept, "FEWEST", 0)

    def step(lr: tg.Tensor, other: tg.Tensor) -> Any:
        made = tg.compile(
            tg.mean(tg.input("x", (B,)) * tg.ops.param("w", ()) * lr), update=tg.optim.SGD(other), backend="c"
        )
        return made(made.init({"w": np.float32(1.0)}), x=np.ones(2, "f4"), lr=np.float32(0.5))

    shared = tg.input("lr", ())
    step(shared, shared)
    with pytest.raises(TensorgraphError, match=r"TG309.*two inputs are called 'lr'"):
        step(tg.input("lr", ()), tg.input("lr", ()))


# ------------------------------------------------------------------------------------------------ keys


def key(outputs: Any, update: Any = None, **options: Any) -> str | None:
    outputs = outputs if isinstance(outputs, dict) else {"loss": outputs}
    made = Options(**{"backend": "c", "binding": {}, "debug": None, "trace": None, "name": "graph", **options})
    update = update or tg.optim.AdamW(1e-3)
    return kept.key(outputs, "loss", update, update.clock(), made) if kept.wanted(made) else None


def small(
    *, rows: Any = B, d: int = 4, dtype: str = "float32", axis: int = 1, trained: bool = True, name: str = "w",
    scale: float = 0.5, layer: str = "mlp", label: str = "h", swap: bool = False, literal: float = 2.0, frame: str = "",
) -> Any:  # fmt: skip
    """A small loss, of which one thing or another may be otherwise."""
    x, w = tg.input("x", (rows, d), dtype), tg.ops.param(name, (d, 3), dtype, trained=trained)
    with tg.scope(frame), tg.scope(layer):
        parts = [tg.tanh(w), tg.exp(w)] if swap else [tg.exp(w), tg.tanh(w)]
        a, b = reversed(parts) if swap else parts
        h = (x @ (a * scale + b)).named(label)
        h = tg.where(h > tg.ops.const(np.array([0.0, 1.0, literal]), dtype), h, 0.0)
    return tg.mean(tg.max(h, axis))


def test_one_graph_has_one_key(cache):
    assert key(small()) == key(small()) is not None
    assert key(loss_of()[0]) == key(loss_of()[0]) is not None
    assert key(small()) == key(small(), memory_limit=1), "a limit is asked about at every call"


def test_whatever_is_otherwise_has_another_key(cache, monkeypatch):
    adamw, sgd = tg.optim.AdamW, tg.optim.SGD
    options: list[dict[str, Any]] = [{"binding": {"B": 2}}, {"strict": True}, {"remat": "block"}, {"name": "n"}]
    found = {
        "graph": [key(small(**k)) for k in (
            {}, {"rows": T}, {"rows": 7}, {"rows": 2 * B}, {"rows": tg.dim("B0", 0)}, {"d": 5}, {"dtype": "float64"},
            {"axis": 0}, {"trained": False}, {"name": "u"}, {"scale": 0.25}, {"scale": 0.5000001},
            {"layer": "layers.0"}, {"label": "g"}, {"swap": True}, {"literal": 3.0}, {"literal": float("nan")},
            {"frame": "model"},
        )],
        "outputs": [key({"loss": small(), "other": small()}), key({"other": small(), "loss": small()})],
        "update": [key(small(), u) for u in (
            adamw(1e-4), adamw(1e-3, betas=(0.9, 0.95)), adamw(1e-3, eps=1e-7), adamw(1e-3, weight_decay=0.0),
            adamw(1e-3, clip=1.0), sgd(1e-3), sgd(1e-3, momentum=0.9), adamw(tg.optim.cosine(1e-3, 100)),
            adamw(tg.optim.cosine(1e-3, 101)), adamw(lambda step: step * 1e-3), adamw(tg.input("lr", ())),
        )],
        "options": [key(small(), **k) for k in options],
    }  # fmt: skip
    monkeypatch.setenv("TENSORGRAPH_CFLAGS", "-O1")
    found["flags"] = [key(small())]
    monkeypatch.setattr(kept, "_FILES", ["another version"])
    found["version"] = [key(small())]
    keys = [k for ks in found.values() for k in ks]
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_an_assumption_on_a_size_in_an_attribute_changes_the_key(cache):
    N, M = tg.dims("N_kept M_kept")
    found = {key(small() / tg.dimension(N))}
    tg.assume(N, M)
    found.add(key(small() / tg.dimension(N)))
    tg.assume(M, 2 * B)
    assert len(found | {key(small() / tg.dimension(N))}) == 3


def test_an_assumption_changes_the_key(cache):
    P, Q = tg.dims("P_kept Q_kept")
    before = key(small(rows=P))
    tg.assume(P, Q + 1)
    middle = key(small(rows=P))
    tg.assume(Q, 2 * B)
    assert len({before, middle, key(small(rows=P))}) == 3


def test_what_cannot_be_told_apart_has_no_key(cache, monkeypatch, tmp_path):
    @tg.op(shape="B d -> B d")
    def double(x: tg.Tensor) -> tg.Tensor:
        return x * 2.0

    class Own(tg.optim.SGD):
        pass

    x, w = tg.input("x", (B, 3)), tg.ops.param("w", (B, 3))
    assert key(tg.mean(double(x * w))) is None
    assert key(tg.mean(tg.ops.random.dropout(x * w, 0.5, tg.input("seed", (), "int32")))) is None
    loss = small()
    (slope,) = tg.grad(loss, list(tg.Graph(loss).params.values()))
    assert key(tg.mean(tg.square(slope))) is None, "a loss of gradients"
    assert key(small(), Own(0.1)) is None
    mine = tg.op(lambda x: tg.tanh(x) * 2.0, builtin=True, name="twice_tanh", shape="B d -> B d")
    try:
        assert key(tg.mean(mine(x * w))) is None, "it says that it is built in"
    finally:
        del REGISTRY["twice_tanh"]
    with tg.testing.override("tanh", lambda g, y, x: (g,)):
        assert key(small()) is None
    assert key(small(), backend="numpy") is None
    assert key(small(), debug="nonfinite") is None
    assert key(small(), trace=str(tmp_path)) is None
    with tg.scope("outside"):
        assert key(small()) is None
    for what, name, new in (
        (REGISTRY["tanh"], "vjp_fn", functools.wraps(REGISTRY["tanh"].vjp_fn)(lambda g, y, x: (g,))),
        (REGISTRY["silu"], "body", lambda x: x),
        (REGISTRY["tanh"], "nodiff", "because"),
        (tg.optim.SGD, "shared", lambda self, step, rate: {"rate": rate * 2.0}),
        (tg.optim.AdamW, "rate", lambda self, step: tg.ops.const(1.0)),
        (tg.optim, "clip_by_global_norm", lambda grads, limit: grads),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(what, name, new, raising=False)
            assert key(small()) is None, f"{name} is not the package's"
    assert key(small()) is not None
    monkeypatch.setenv("TENSORGRAPH_KEEP", "0")
    assert key(small()) is None
    assert not [name for name, record in REGISTRY.items() if kept._OPS[name][0] is not record]


def test_the_text_of_the_code_is_part_of_the_key(cache, monkeypatch):
    files = kept._files()
    root = Path(tg.__file__).parent
    there = {str(p) for p in root.rglob("*.[pch]*") if p.suffix in (".py", ".c", ".h")}
    assert {path for path in there if "/models/" not in path and "/visualize/" not in path} <= {
        path for path, *_ in files
    }


def test_the_oldest_steps_go(cache, monkeypatch):
    monkeypatch.setattr(kept, "STEPS", 2)
    for layers in (1, 2, 3):
        loss, model = loss_of({**CONFIG, "num_hidden_layers": layers})
        run(tg.compile(loss, update=tg.optim.SGD(0.1), backend="c", binding={**model.binding, **SIZES}), model)
    assert len(list(cache.iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_no_error(cache, monkeypatch):
    monkeypatch.setattr(kept, "_write", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    step, model = compiled()
    run(step, model)
    assert not list(cache.rglob("*.json"))
