"""Gradient checkers on the same functions, side by side in one run: ours, torch's `gradcheck`, JAX's `check_grads`.

    python tests/benchmarks/gradcheck_peers.py [--quick] [--write]

(needs torch and jax) prints Markdown (`--write`: into the README), then JSON: the CPU time of a check, the tightest
tolerance that right gradients pass (`floor`), and what each says of planted bugs. Every function is written once, for
three frameworks; values are the same; checkers run with their defaults, in float64 unless the bug is one of float32,
on one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from jax.test_util import check_grads
from ours import CONFIGS, weights

import tensorgraph as tg
from tensorgraph import autodiff

jax.config.update("jax_enable_x64", True)
torch.set_num_threads(1)
Arrays = dict[str, Any]
DEEP = {"L": 12, "d": 4, "H": 1, "T": 6, "V": 8, "B": 1, "f": 8, "affine": False, "bias": False}
LONG = 2.0  # seconds
MARK = "<!-- gradcheck_peers.py -->"


# ------------------------------------------------------------------------------- ops that carry planted rules
# A rule takes (ns, g, y, *inputs) and gives one cotangent per input; `ns` writes it in either framework.


class Ours:
    """Functions and rules as nodes of a graph."""

    def __init__(self, planted: dict[str, Any]) -> None:
        self.planted = planted

    softmax, gelu, relu, tanh, exp = tg.softmax, tg.gelu_tanh, tg.relu, tg.tanh, tg.exp
    stop_gradient = staticmethod(tg.stop_gradient)

    def where(self, c: Any, a: Any, b: Any) -> Any:
        return tg.where(c, a, b)

    def norm(self, x: Any) -> Any:
        return tg.layer_norm(x, None, None)

    def take(self, w: Any, ids: Any) -> Any:
        return tg.take(w, tg.const(ids))

    def masked(self, s: Any) -> Any:
        return tg.where(tg.const(np.tri(s.shape[-1], dtype=bool)), s, float("-inf"))

    def loss(self, logits: Any, labels: Any) -> Any:
        return tg.cross_entropy(logits, tg.const(labels), ignore=None)

    def permute(self, x: Any, axes: tuple[int, ...]) -> Any:
        return x.permute(*axes)

    def repeat(self, x: Any, r: int) -> Any:
        return repeat_heads(x, r)

    def bias(self, x: Any, b: Any) -> Any:
        return add_bias(x, b)

    def use(self, x: Any) -> Any:
        return x  # here the engine's own sum over uses is what goes wrong


@tg.op(shape=lambda x, r: (x.shape[0], x.shape[1] * r, *x.shape[2:]))
def repeat_heads(x: tg.Tensor, r: int) -> tg.Tensor: ...


repeat_heads.forward(lambda xp, x, r: xp.repeat(x, r, 1))
repeat_heads.vjp(lambda g, y, x, r: (repeated(None, g, y, x, r)[0],))


@tg.op(shape="n f, f -> n f")
def add_bias(x: tg.Tensor, b: tg.Tensor) -> tg.Tensor: ...


add_bias.forward(lambda xp, x, b: x + b)
add_bias.vjp(lambda g, y, x, b: (g, g.sum(0)))


class Torch:
    """The same in torch; an op with a planted rule is a torch.autograd.Function."""

    def __init__(self, planted: dict[str, Any]) -> None:
        self.planted = planted

    tanh, exp, where = staticmethod(torch.tanh), staticmethod(torch.exp), staticmethod(torch.where)
    permute = staticmethod(torch.permute)

    def call(self, name: str, forward: Callable[..., Any], *xs: Any) -> Any:
        rule = self.planted.get(name)
        if rule is None:
            return forward(*xs)

        class Op(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *xs: Any) -> Any:
                y = forward(*xs)
                ctx.save_for_backward(y, *xs)
                return y

            @staticmethod
            def backward(ctx: Any, g: Any) -> Any:
                return tuple(rule(self, g, *ctx.saved_tensors))

        return Op.apply(*xs)

    def softmax(self, x: Any) -> Any:
        return self.call("softmax", lambda x: torch.softmax(x, -1), x)

    def gelu(self, x: Any) -> Any:
        return self.call("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), x)

    def relu(self, x: Any) -> Any:
        return self.call("relu", torch.relu, x)

    def stop_gradient(self, x: Any) -> Any:
        return x.detach()

    def norm(self, x: Any) -> Any:
        return F.layer_norm(x, x.shape[-1:])

    def take(self, w: Any, ids: Any) -> Any:
        return w[torch.as_tensor(ids, dtype=torch.long)]

    def masked(self, s: Any) -> Any:
        return s.masked_fill(torch.ones(s.shape[-2:]).triu(1).bool(), float("-inf"))

    def loss(self, logits: Any, labels: Any) -> Any:
        flat = torch.as_tensor(labels.reshape(-1), dtype=torch.long)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), flat)

    def repeat(self, x: Any, r: int) -> Any:
        return self.call("repeat_heads", lambda x: torch.repeat_interleave(x, r, 1), x)

    def bias(self, x: Any, b: Any) -> Any:
        return self.call("add_bias", lambda x, b: x + b, x, b)

    def use(self, x: Any) -> Any:
        return self.call("use", lambda x: x.clone(), x)


class Jax:
    """The same in JAX; an op with a planted rule is a custom_vjp."""

    def __init__(self, planted: dict[str, Any]) -> None:
        self.planted = planted

    tanh, exp, where = staticmethod(jnp.tanh), staticmethod(jnp.exp), staticmethod(jnp.where)
    permute, stop_gradient = staticmethod(jnp.permute_dims), staticmethod(jax.lax.stop_gradient)

    def call(self, name: str, forward: Callable[..., Any], *xs: Any) -> Any:
        rule = self.planted.get(name)
        if rule is None:
            return forward(*xs)
        op = jax.custom_vjp(forward)
        op.defvjp(lambda *xs: ((y := forward(*xs)), (y, xs)), lambda kept, g: tuple(rule(self, g, kept[0], *kept[1])))
        return op(*xs)

    def softmax(self, x: Any) -> Any:
        return self.call("softmax", lambda x: jax.nn.softmax(x, -1), x)

    def gelu(self, x: Any) -> Any:
        return self.call("gelu_tanh", lambda x: jax.nn.gelu(x, approximate=True), x)

    def relu(self, x: Any) -> Any:
        return self.call("relu", lambda x: jnp.maximum(x, 0.0), x)

    def norm(self, x: Any) -> Any:
        m = x.mean(-1, keepdims=True)
        return (x - m) * jax.lax.rsqrt(((x - m) ** 2).mean(-1, keepdims=True) + 1e-5)

    def take(self, w: Any, ids: Any) -> Any:
        return w[ids]

    def masked(self, s: Any) -> Any:
        return jnp.where(np.tri(s.shape[-1], dtype=bool), s, -jnp.inf)

    def loss(self, logits: Any, labels: Any) -> Any:
        flat = logits.reshape(-1, logits.shape[-1])
        return jnp.mean(
            jax.nn.logsumexp(flat, -1) - jnp.take_along_axis(flat, jnp.asarray(labels).reshape(-1, 1), 1)[:, 0]
        )

    def repeat(self, x: Any, r: int) -> Any:
        return self.call("repeat_heads", lambda x: jnp.repeat(x, r, 1), x)

    def bias(self, x: Any, b: Any) -> Any:
        return self.call("add_bias", lambda x, b: x + b, x, b)

    def use(self, x: Any) -> Any:
        return self.call("use", lambda x: x * 1.0, x)


# ----------------------------------------------------------------------------------------------- functions


def gpt(c: dict[str, Any]) -> Callable[..., Any]:
    """The benchmark's GPT: pre-norm, tied head, tanh-gelu, no gains in the norms."""
    r = np.random.default_rng(1)
    ids, labels = (r.integers(0, c["V"], (c["B"], c["T"])) for _ in range(2))
    B, T, d, H = c["B"], c["T"], c["d"], c["H"]

    def f(ns: Any, **p: Any) -> Any:
        x = ns.take(p["wte"], ids) + p["wpe"]
        for i in range(c["L"]):
            qkv = ns.permute((ns.norm(x) @ p[f"{i}.wqkv"]).reshape(B, T, 3, H, d // H), (2, 0, 3, 1, 4))
            q, k, v = qkv[0], qkv[1], qkv[2]
            a = ns.softmax(ns.masked((q @ k.swapaxes(-1, -2)) * (d // H) ** -0.5)) @ v
            x = x + a.swapaxes(1, 2).reshape(B, T, d) @ p[f"{i}.wo"]
            x = x + ns.gelu(ns.norm(x) @ p[f"{i}.w1"] + p[f"{i}.b1"]) @ p[f"{i}.w2"] + p[f"{i}.b2"]
        return ns.loss(ns.norm(x) @ ns.use(p["wte"]).T, labels)

    return f


def attn(ns: Any, x: Any, w: Any, wo: Any) -> Any:
    """One attention block with a norm: T=8, d=16, two heads."""
    T, d, H = 8, 16, 2
    qkv = ns.permute((ns.norm(x) @ w).reshape(1, T, 3, H, d // H), (2, 0, 3, 1, 4))
    q, k, v = qkv[0], qkv[1], qkv[2]
    a = ns.softmax(ns.masked((q @ k.swapaxes(-1, -2)) * (d // H) ** -0.5)) @ v
    return x + a.swapaxes(1, 2).reshape(1, T, d) @ wo


def grouped(ns: Any, x: Any, wq: Any, wk: Any, wv: Any) -> Any:
    """Four heads of queries on two of keys and values."""
    heads = lambda t, n: t.reshape(1, 5, n, 3).swapaxes(1, 2)  # noqa: E731
    q, k, v = heads(x @ wq, 4), ns.repeat(heads(x @ wk, 2), 2), ns.repeat(heads(x @ wv, 2), 2)
    return ns.softmax(ns.masked(q @ k.swapaxes(-1, -2))) @ v


def rectified(ns: Any, x: Any, w: Any) -> Any:
    return ns.tanh(ns.relu(x) @ w)


def biased(ns: Any, x: Any, w: Any, b: Any) -> Any:
    return ns.tanh(ns.bias(x @ w, b))


def gelued(ns: Any, x: Any, w: Any) -> Any:
    return ns.gelu(x @ w)


def cut(ns: Any, x: Any, w: Any) -> Any:
    """The divisor of a softmax is held constant, by mistake."""
    e = ns.exp(x @ w)
    return e / ns.stop_gradient(e.sum(-1).reshape(4, 1))


def uncut(ns: Any, x: Any, w: Any) -> Any:
    e = ns.exp(x @ w)
    return e / e.sum(-1).reshape(4, 1)


def variance(ns: Any, x: Any) -> Any:
    y = x + 1e5
    return (y * y).mean() - y.mean() * y.mean()


def variance_right(ns: Any, x: Any) -> Any:
    """The same as one should take it: float32 is enough."""
    y = x - x.mean()
    return (y * y).mean()


def numbers(seed: int, **shapes: tuple[int, ...]) -> Arrays:
    r = np.random.default_rng(seed)
    return {n: r.standard_normal(s) * 0.3 for n, s in shapes.items()}


def model_values(c: dict[str, Any], factor: float = 1.0) -> Arrays:
    return {n: a.astype(np.float64) * factor for n, a in weights(c).items()}


# ------------------------------------------------------------------------------------------------- rules


def softmax_off(ns: Any, g: Any, y: Any, x: Any) -> Any:
    return (1.01 * y * (g - (g * y).sum(-1).reshape(*y.shape[:-1], 1)),)


def repeated(ns: Any, g: Any, y: Any, x: Any, r: int = 2) -> Any:
    b, n, t, k = x.shape
    return (g.reshape(b, n, r, t, k).sum(2),)


def tiled(ns: Any, g: Any, y: Any, x: Any, r: int = 2) -> Any:
    b, n, t, k = x.shape
    return (g.reshape(b, r, n, t, k).sum(1),)


def gelu_slope(ns: Any, x: Any, c: float, a: float) -> Any:
    u = ns.tanh(c * (x + a * x * x * x))
    return 0.5 * (1 + u) + 0.5 * x * (1 - u * u) * c * (1 + 3 * a * x * x)


C, A = (2 / np.pi) ** 0.5, 0.044715


def gelu_sign(ns: Any, g: Any, y: Any, x: Any) -> Any:
    return (-g * gelu_slope(ns, x, C, A),)


def gelu_rounded(ns: Any, g: Any, y: Any, x: Any) -> Any:
    return (g * gelu_slope(ns, x, 0.79788, A),)


def gelu_stale(ns: Any, g: Any, y: Any, x: Any) -> Any:
    return (g * gelu_slope(ns, 0.875 * x, C, A),)


def gelu_far(ns: Any, g: Any, y: Any, x: Any) -> Any:
    return (ns.where(x > 30.0, g * 0.0, g * gelu_slope(ns, x, C, A)),)


def relu_triple(ns: Any, g: Any, y: Any, x: Any) -> Any:
    return (ns.where(x > 0.0, g, ns.where(x < 0.0, g * 0.0, g * 3.0)),)


def relu_everywhere(ns: Any, g: Any, y: Any, x: Any) -> Any:
    return (g,)


def first_row(ns: Any, g: Any, y: Any, x: Any, b: Any) -> Any:
    return g, g[0]


def forgotten(ns: Any, g: Any, y: Any, x: Any) -> Any:
    return (g * 0.0,)


@dataclasses.dataclass
class Plant:
    """A bug (or none): the function, its values, the op whose rule is replaced.

    `control` is the function that has no bug, where that is another one; values are given in `dtype`.
    """

    name: str
    f: Callable[..., Any]
    values: Arrays
    op: str = ""
    rule: Any = None
    right: bool = False  # nothing is wrong: a checker that complains gives a false alarm
    dtype: str = "float64"
    control: Callable[..., Any] | None = None

    def without_bug(self) -> Plant:
        return dataclasses.replace(self, f=self.control or self.f, op="", rule=None)


AT_KINK = numbers(2, x=(3, 4), w=(4, 3))
AT_KINK["x"][1, 2] = 0.0
POSITIVE = {n: np.abs(a) + 0.1 for n, a in numbers(2, x=(3, 4), w=(4, 3)).items()}
GROUPED = numbers(3, x=(1, 5, 6), wq=(6, 12), wk=(6, 6), wv=(6, 6))
SMALL = numbers(4, x=(4, 5), w=(5, 3))


def plants(deep: bool = True) -> Iterator[Plant]:
    if deep:
        f = gpt(DEEP)
        yield Plant("softmax 1 % off, 12 layers, as initialised", f, model_values(DEEP), "softmax", softmax_off)
        yield Plant("the same, weights 15 times larger", f, model_values(DEEP, 15.0), "softmax", softmax_off)
    yield Plant("wrong repeat order, grouped queries", grouped, GROUPED, "repeat_heads", tiled)
    toy = CONFIGS["toy"]
    yield Plant("one use of a tied weight forgotten", gpt(toy), model_values(toy), "use", forgotten)
    yield Plant("wrong sign (gelu)", gelued, SMALL, "gelu_tanh", gelu_sign)
    yield Plant("missing sum (bias)", biased, {**SMALL, **numbers(5, b=(3,))}, "add_bias", first_row)
    yield Plant("stale value: the input before an update (gelu)", gelued, SMALL, "gelu_tanh", gelu_stale)
    yield Plant("constant rounded to 5 digits (gelu)", gelued, SMALL, "gelu_tanh", gelu_rounded)
    yield Plant("at a kink, 3 times the slope (relu)", rectified, AT_KINK, "relu", relu_triple)
    yield Plant("at a kink, and right (relu as it comes)", rectified, AT_KINK, right=True)
    yield Plant("wrong where the data never are, x < 0 (relu)", rectified, POSITIVE, "relu", relu_everywhere)
    lossy = Plant("float32 loses all digits (variance)", variance, numbers(6, x=(64,)), control=variance_right)
    yield dataclasses.replace(lossy, dtype="float32")
    yield Plant("a detach left in by mistake", cut, SMALL, "stop_gradient", control=uncut)
    yield Plant("wrong far from all data, x > 30 (gelu)", gelued, SMALL, "gelu_tanh", gelu_far)


# ---------------------------------------------------------------------------------------------- checkers


@contextlib.contextmanager
def planted_in_ours(plant: Plant) -> Iterator[None]:
    if plant.op == "use":  # the engine's sum over uses forgets one
        whole, shape = autodiff.add, plant.values["wte"].shape
        with mock.patch.object(autodiff, "add", lambda a, b: a if a.shape == b.shape == shape else whole(a, b)):
            yield
    elif plant.rule is not None:
        op = {"repeat_heads": repeat_heads, "add_bias": add_bias}.get(plant.op, plant.op)
        ns = Ours({})
        with tg.testing.override(op, lambda g, y, *xs, **attrs: plant.rule(ns, g, y, *xs[:2])):
            yield
    else:
        yield


def ours_graph(f: Any, values: Arrays, dtype: str = "float64") -> Any:
    return f(Ours({}), **{n: tg.input(n, a.shape, dtype) for n, a in values.items()})


def ours(plant: Plant) -> tuple[bool, str]:
    with planted_in_ours(plant):
        report = tg.check_grads(ours_graph(plant.f, plant.values, plant.dtype), values=plant.values)
    said = [e.words() for e in report.rows(only_wrong=True)] or [n for n in report.notes if "stop_gradient" in n]
    return bool(report), said[0] if said else ""


def torch_arguments(plant: Plant) -> tuple[Any, list[Any]]:
    ns, names = Torch({plant.op: plant.rule} if plant.rule else {}), list(plant.values)
    xs = [torch.tensor(a, dtype=getattr(torch, plant.dtype), requires_grad=True) for a in plant.values.values()]
    return (lambda *xs: plant.f(ns, **dict(zip(names, xs, strict=True)))), xs


def torch_check(plant: Plant, fast: bool, **options: Any) -> tuple[bool, str]:
    f, xs = torch_arguments(plant)
    try:
        return torch.autograd.gradcheck(f, xs, fast_mode=fast, **options), ""
    except RuntimeError as why:
        return False, str(why).strip().splitlines()[0]


def jax_arguments(plant: Plant) -> tuple[Any, tuple[Any, ...]]:
    ns, names = Jax({plant.op: plant.rule} if plant.rule else {}), list(plant.values)
    f = jax.jit(lambda *xs: plant.f(ns, **dict(zip(names, xs, strict=True))))
    return f, tuple(jnp.asarray(a, plant.dtype) for a in plant.values.values())


def jax_check(plant: Plant, **options: Any) -> tuple[bool, str]:
    f, xs = jax_arguments(plant)
    try:
        check_grads(f, xs, order=1, modes=["rev"], **options)
    except AssertionError as why:
        return False, " ".join(str(why).split())[:120]
    return True, ""


CHECKERS: dict[str, Callable[[Plant], tuple[bool, str]]] = {
    "tensorgraph": ours,
    "torch slow": lambda p: torch_check(p, False),
    "torch fast": lambda p: torch_check(p, True),
    "JAX": jax_check,
}


# ---------------------------------------------------------------------------------------------- measuring


def timed(cases: dict[str, Callable[[], Any]], rounds: int, budget: float) -> dict[str, float]:
    """Median CPU milliseconds of a call, the cases in turn in every round; what takes seconds is called twice."""
    times: dict[str, list[float]] = {n: [] for n in cases}
    for name, fn in cases.items():
        times[name].append(once(fn))
    for _ in range(rounds):
        for name, fn in cases.items():
            until = time.perf_counter() + budget
            if len(times[name]) < 2 or max(times[name][1:]) < LONG:
                times[name].append(once(fn))
            while time.perf_counter() < until:
                times[name].append(once(fn))
    return {n: 1e3 * statistics.median(ts[1:]) for n, ts in times.items()}


def once(fn: Callable[[], Any]) -> float:
    begin = time.process_time()
    fn()
    return time.process_time() - begin


def checks(plant: Plant) -> dict[str, Callable[[], Any]]:
    """What a user runs again and again: ours builds the graph anew each time, JAX has compiled before."""
    f, xs = torch_arguments(plant)
    g, ys = jax_arguments(plant)
    return {
        "tensorgraph": lambda: tg.check_grads(ours_graph(plant.f, plant.values), values=plant.values),
        "torch slow": lambda: torch.autograd.gradcheck(f, xs),
        "torch fast": lambda: torch.autograd.gradcheck(f, xs, fast_mode=True),
        "JAX": lambda: jax_alone(g, ys),
    }


def jax_alone(f: Any, xs: Any) -> None:
    with contextlib.suppress(AssertionError):  # false alarms are counted elsewhere
        check_grads(f, xs, order=1, modes=["rev"])


def floors(plant: Plant) -> dict[str, float]:
    """The tightest tolerance that the right gradients pass: relative, and absolute at that of the largest gradient.

    Ours is the worst residual it reports.
    """
    graph = ours_graph(plant.f, plant.values)
    out = {"tensorgraph": tg.check_grads(graph, values=plant.values).worst_residual}
    f, xs = torch_arguments(plant)
    largest = max(float(g.abs().max()) for g in torch.autograd.grad(f(*xs).sum(), xs))
    checkers: dict[str, Callable[..., tuple[bool, str]]] = {
        "torch slow": lambda **o: torch_check(plant, False, **o),
        "torch fast": lambda **o: torch_check(plant, True, **o),
        "JAX": lambda **o: jax_check(plant, **o),
    }
    for name, check in checkers.items():
        low, high = -28, 0  # halves of a decade
        while low < high:
            middle = (low + high) // 2
            tolerance = 10.0 ** (middle / 2)
            fine = check(rtol=tolerance, atol=tolerance * largest)[0]
            low, high = (low, middle) if fine else (middle + 1, high)
        out[name] = 10.0 ** (low / 2)
    return out


def verdict(plant: Plant, check: Callable[[Plant], tuple[bool, str]]) -> dict[str, str]:
    """In a word, and what the checker said. An alarm that the right rule sets off too is no finding."""
    passed, said = check(plant)
    if plant.right:
        word = "passes" if passed else "false alarm"
    elif passed:
        word = "missed, noted" if said else "missed"
    else:
        right = check(plant.without_bug())[0]
        culprit = {"use": "wte"}.get(plant.op, plant.op or plant.f.__name__)
        word = "alarm, bug or not" if not right else "found and named" if culprit in said else "found"
    return {"verdict": word, "says": said}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, without the deep model")
    parser.add_argument("--write", action="store_true", help="put the table into the README")
    options = parser.parse_args()
    rounds, budget = (1, 0.0) if options.quick else (5, 0.5)
    right = {
        "toy": Plant("toy GPT", gpt(CONFIGS["toy"]), model_values(CONFIGS["toy"])),
        "attn": Plant("attention block", attn, numbers(0, x=(1, 8, 16), w=(16, 48), wo=(16, 16))),
        "deep": Plant("GPT of 12 layers", gpt(DEEP), model_values(DEEP)),
    }
    result: dict[str, Any] = {"functions": {}, "bugs": {}}
    if options.quick:
        del right["deep"]
    for key, plant in right.items():
        row: dict[str, Any] = {"passes": {name: check(plant)[0] for name, check in CHECKERS.items()}}
        row["ms"] = timed(checks(plant), rounds, budget)
        if max(row["ms"].values()) < 1e3 * LONG:
            row["floor"] = floors(plant)
        result["functions"][key] = {"name": plant.name, "values": sum(a.size for a in plant.values.values()), **row}
    for plant in plants(deep=not options.quick):
        result["bugs"][plant.name] = {name: verdict(plant, check) for name, check in CHECKERS.items()}
    result["versions"] = {"tensorgraph": tg.__version__, "torch": torch.__version__, "jax": jax.__version__}
    print(markdown(result))
    if options.write:
        write(markdown(result))
    print(json.dumps(result, indent=2, ensure_ascii=False, default=float))
    return 0


def markdown(result: dict[str, Any]) -> str:
    names = list(CHECKERS)
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in result["functions"].values():
        times = (f"{t:,.0f}" if t >= 100 else f"{t:.3g}" for t in (row["ms"][n] for n in names))
        cells = " | ".join(
            f"{t} ms{'' if row['passes'][n] else ', false alarm'}" for t, n in zip(times, names, strict=True)
        )
        lines.append(f"| {row['name']} ({row['values']:,} values): time | {cells} |")
        if "floor" in row:
            lines.append("| error floor | " + " | ".join(f"{row['floor'][n]:.0e}" for n in names) + " |")
    for bug, says in result["bugs"].items():
        lines.append(f"| {bug} | " + " | ".join(says[n]["verdict"] for n in names) + " |")
    return "\n".join(lines)


def write(table: str, readme: Path = Path(__file__).parents[2] / "README.md") -> None:
    """Replace what stands between the README's marks."""
    before, mark, rest = readme.read_text(encoding="utf-8").partition(MARK)
    _, end, after = rest.partition(MARK)
    if not end:
        raise SystemExit(f"{readme} has no two lines {MARK}")
    readme.write_text(f"{before}{mark}\n{table}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
