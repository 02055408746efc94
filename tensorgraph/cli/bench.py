"""`tensorgraph bench`: how fast a model trains and decodes here, beside what the machine could do; where time goes."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tensorgraph.backends import cpu
from tensorgraph.compile import compile
from tensorgraph.dims import evaluate
from tensorgraph.errors import ModelError
from tensorgraph.graph import Graph
from tensorgraph.interpret import shape_of
from tensorgraph.models.decoder import Decoder
from tensorgraph.ops.leaf import input
from tensorgraph.optim import AdamW
from tensorgraph.passes.memory import refuse, shown
from tensorgraph.profile import Profile, profile
from tensorgraph.step import Step

from .target import Target

if TYPE_CHECKING:
    from rich.console import Console

USUAL = {"B": 1, "T": 128}
TIMED = ("auto", "c", "numpy")
REST = 0.06  # seconds after which the threads of NumPy's BLAS no longer spin, waiting for more
AHEAD = 24  # positions after the context, at most, that are decoded in turn


@functools.cache
def _square() -> tuple[Any, Any]:
    return np.ones((1536, 1536), np.float32), np.empty((1536, 1536), np.float32)


@functools.cache
def _readers() -> tuple[int, list[Callable[[], Any]]]:
    """The bytes of a matrix, and ways of reading it once: NumPy's product with a vector, and ours if there is one."""
    w, x, y = np.ones((16384, 4096), np.float32), np.ones((1, 4096), np.float32), np.empty((16384, 1), np.float32)
    ways: list[Callable[[], Any]] = [lambda: np.dot(w, x.T, out=y)]
    if cpu.offered():
        ours = compile(input("x", x.shape) @ input("w", w.shape).T, backend="c")
        ways.append(lambda: ours(x=x, w=w))
    return w.nbytes, ways


def products(seconds: float = 0.1, of: Callable[[list[float]], float] = statistics.median) -> float:
    """GFLOP/s of a float32 product through NumPy, over so many seconds."""
    a, out = _square()
    return float(2e-9 * len(a) ** 3 / of(timed(lambda: np.matmul(a, a, out=out), seconds)))


def reading(seconds: float = 0.1, of: Callable[[list[float]], float] = statistics.median) -> float:
    """GB/s of reading memory, over so many seconds: the fastest way of NumPy's and ours."""
    size, ways = _readers()
    return float(1e-9 * size / min(of(timed(way, seconds / len(ways))) for way in ways))


def limits() -> dict[str, float]:
    """What this machine does at best."""
    return {"gemm_gflops": products(0.5, min), "read_gbs": reading(0.5, min)}


def windows(call: Callable[[], Any], limit: Callable[[], float] | None) -> Iterator[tuple[list[float], float]]:
    """Without end: times of a tenth of a second of calls, then the limit's speed at that moment (nan without one).

    A machine's speed drifts, its memory's most of all, by what its neighbours do. Each side has a call to warm up: what
    the other left in the caches is not its own.
    """
    while True:
        times = timed(call, 0.1)
        yield times, math.nan if limit is None else limit()
        time.sleep(0 if limit is None else REST)


def beside(call: Callable[[], Any], limit: Callable[[], float], seconds: float) -> tuple[list[float], list[float]]:
    """Times of calls, in seconds; and what part of the limit's speed a unit of work in a call's time is, by windows."""
    times: list[float] = []
    shares: list[float] = []
    start = time.perf_counter()
    for window, speed in windows(call, limit):
        times += window
        shares.append(1 / (statistics.median(window) * speed))
        if time.perf_counter() - start >= seconds:
            break
    return times, shares


def timed(call: Callable[[], Any], seconds: float) -> list[float]:
    call()
    times: list[float] = []
    start = time.perf_counter()
    while not times or time.perf_counter() - start < seconds:
        t = time.perf_counter()
        call()
        times.append(time.perf_counter() - t)
    return times


def peak_mb() -> float | None:
    """The largest size of this process so far, in MB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


# ---------------------------------------------------------------------------------------------- training


def train(target: Target, backend: str, seconds: float) -> tuple[dict[str, Any], Profile]:
    """Figures of a training step (AdamW, float32) on random batches, and where its time goes.

    Raises ModelError[TG951] for a model without a loss.
    """
    graph = _loss(target)
    target.check_sizes(graph.symbols)
    binding = sizes(target, graph)
    step: Step = compile(graph, update=AdamW(3e-4), binding=binding, backend=backend)
    predicted = step.memory().peak / 1e6
    state = step.init(seed=0)
    batch = random_inputs(graph, binding)
    begin = time.perf_counter()
    _, state = step(state, **batch)
    first = time.perf_counter() - begin

    def once() -> None:
        nonlocal state
        _, state = step(state, **batch)

    size = peak_mb()  # before the arrays of the limits
    times, shares = beside(once, products, seconds)
    spent = statistics.median(times)
    cost = step.cost(binding)
    gflop = sum(int(f.products) for f in (cost.forward, cost.backward)) / 1e9
    count, unit = _amount(batch)
    arrays = {k: a for k, a in {**state.arrays, **batch}.items() if k in step.compiled.program.leaves}
    where = profile(step.compiled, arrays, binding)
    return {
        "what": "train",
        "backend": step.compiled.options.backend,
        "sizes": {k: v for k, v in binding.items() if k in graph.symbols},
        "ms": spent * 1e3,
        "ms_least": min(times) * 1e3,
        "first_s": first,
        "per_s": count / spent,
        "unit": unit,
        "gflops": gflop / spent,
        "gemm_gflops": 1 / (spent * statistics.median(shares)),
        "share_of_gemm": gflop * statistics.median(shares),
        "predicted_mb": predicted,
        "process_mb": size,
        "ms_by_op": {k: v * 1e3 for k, v in where.by_op().items()},
    }, where


def _loss(target: Target) -> Graph:
    if target.graph is not None:
        outputs = target.graph.outputs
        scalar = {n: t for n, t in outputs.items() if t.shape == () and t.dtype.is_float}
    else:
        module: Any = target.module
        names = (*(getattr(module, "usual", ()) or getattr(module, "needs", ("input_ids",))),
                 *getattr(module, "learns", ("labels",)))  # fmt: skip
        found = module.outputs(**module.inputs(names)) if hasattr(module, "outputs") else {}
        scalar = {n: t for n, t in found.items() if n == "loss"}
    if not scalar:
        raise ModelError("TG951", f"{target.name} has no loss to train on", hint="return a scalar")
    name = "loss" if "loss" in scalar else next(iter(scalar))
    return Graph({"loss": scalar[name]}, name=target.name)


def sizes(target: Target, graph: Graph) -> dict[str, int]:
    """Values of all sizes: the model's, those of -d, and 1 sequence of 128 positions where none is given."""
    out = dict(target.binding)
    longest = getattr(getattr(target.module, "plan", None), "longest", None)
    for n in graph.symbols:
        if n not in out:
            out[n] = min(USUAL.get(n, 1), longest or USUAL["T"])
    return out


def random_inputs(graph: Graph, binding: Mapping[str, int]) -> dict[str, Any]:
    """An array for every input: ids in their ranges, ones for masks, normal numbers."""
    rng = np.random.default_rng(0)
    out: dict[str, Any] = {}
    for name, t in graph.inputs.items():
        shape = shape_of(t, binding)
        if t.dtype.kind == "i":
            highs = [evaluate(high, binding) for _, high, _, _ in graph.data_ranges.get(name, ())]
            out[name] = rng.integers(0, min(highs, default=2), shape).astype(t.dtype.np)
        elif t.dtype.kind == "b":
            out[name] = np.ones(shape, bool)
        else:
            out[name] = rng.standard_normal(shape).astype(t.dtype.np)
    return out


def _amount(batch: Mapping[str, Any]) -> tuple[int, str]:
    """How much a batch holds: the positions of its ids; without any, the rows of its first axis."""
    whole = [a for a in batch.values() if a.dtype.kind == "i" and a.ndim == 2]
    if whole:
        return int(whole[0].size), "tokens"
    return max((int(a.shape[0]) for a in batch.values() if a.ndim), default=1), "rows"


# ---------------------------------------------------------------------------------------------- decoding


def decode(target: Target, backend: str, weights: str | None, context: int, seconds: float) -> dict[str, Any]:
    """Figures of making one token after another, greedily, after `context` of them. `weights` as of `from_pretrained`.

    The share is of the time that reading each weight once takes at least.
    """
    from tensorgraph.models import from_pretrained
    from tensorgraph.models.generate import Session
    from tensorgraph.models.pretrained import Net

    module: Any = target.module
    assert target.config is not None
    target.check_sizes()
    if target.path is not None and target.path.suffix != ".json":
        net = from_pretrained(target.path, backend=backend, weights=weights)
    else:
        net = Net(module, target.config, backend=backend, weights=weights).init(0)
    plan: Any = net.model.plan
    longest = plan.longest or target.config.get("max_position_embeddings")
    context = min(context, longest - 1) if longest is not None else context
    ahead = AHEAD if longest is None else min(AHEAD, longest - context)
    session = Session(net, 1)
    begin = time.perf_counter()
    logits = session.feed(np.zeros((1, context), np.int32))
    prefill = time.perf_counter() - begin
    token = logits.argmax(-1)[:, None].astype(np.int32)

    def once() -> None:
        nonlocal token
        session.position = context + (session.position - context) % ahead
        token = session.feed(token).argmax(-1)[:, None].astype(np.int32)

    begin = time.perf_counter()
    once()
    first = time.perf_counter() - begin
    size = peak_mb()
    times, shares = beside(once, reading, seconds)
    spent = statistics.median(times)
    read = weight_bytes(session)
    return {
        "what": "decode",
        "backend": session._step.options.backend,
        "weights": weights or net.dtype,
        "context": context,
        "positions": longest,
        "ms_per_token": spent * 1e3,
        "ms_least": min(times) * 1e3,
        "first_s": prefill + first,
        "tokens_per_s": 1 / spent,
        "weights_mb": read / 1e6,
        "gbs": read / spent / 1e9,
        "read_gbs": 1 / (spent * statistics.median(shares)),
        "share_of_read": read / 1e9 * statistics.median(shares),
        "process_mb": size,
    }


def weight_bytes(session: Any) -> int:
    """Bytes of the weights that a token's products read: each once; of a table that is only looked up, a row; of
    experts, those that a token is routed to."""
    values, read = session.values(), 0
    for key, v in session._step.program.leaves.items():
        if key in values and any(t.op.name != "take" for t in session._step.graph.nodes if v.node in t.inputs):
            a, used = values[key], v.node.attrs.get("used")
            read += a.nbytes if used is None else a.nbytes * evaluate(used, session.net.model.binding) // len(a)
    return read


# ----------------------------------------------------------------------------------------------- the command


def duration(ms: float) -> str:
    """Milliseconds, or microseconds below a tenth of one."""
    return f"{ms:,.2f} ms" if ms >= 0.1 else f"{ms * 1e3:,.1f} µs"


def show(console: Console, rows: list[dict[str, Any]], context: int) -> None:
    """What was measured, for people; `context` as it was asked for."""
    from .tables import plain

    for row in rows:
        if row["what"] == "train":
            at = ", ".join(f"{k}={v}" for k, v in row["sizes"].items())
            console.print(
                f"\ntrain ({row['backend']}; {at}): {duration(row['ms'])} a step, {row['per_s']:,.0f} {row['unit']}/s, "
                f"{row['gflops']:,.1f} GFLOP/s = {row['share_of_gemm']:.0%} of the {row['gemm_gflops']:,.0f} that "
                f"NumPy's product reaches beside it; predicted peak {shown(round(row['predicted_mb'] * 1e6))}; "
                f"first step {row['first_s']:.1f} s",
                soft_wrap=True,
                markup=False,
            )
            table = plain("op", "time", "share", right=("time", "share"))
            total = sum(row["ms_by_op"].values())
            for name, ms in list(row["ms_by_op"].items())[:12]:
                table.add_row(name, duration(ms), f"{ms / total:.0%}")
            console.print(table)
            console.print("each op timed by itself: clocks and lost overlap make the sum more than a step", style="dim")
        else:
            fewer = f" of its {row['positions']} positions" if row["context"] < context else ""
            console.print(
                f"\ndecode ({row['backend']}; {row['weights']} weights, after {row['context']}{fewer}): "
                f"{duration(row['ms_per_token'])} a token, {row['tokens_per_s']:,.0f} tokens/s, "
                f"{row['gbs']:,.1f} GB/s of weights = {row['share_of_read']:.0%} of the {row['read_gbs']:,.1f} at "
                "which memory is read beside it",
                soft_wrap=True,
                markup=False,
            )


def _fits(target: Target, trains: bool) -> None:
    """Raise BackendError[TG710] for weights, with their moments in training, that memory cannot hold in float32.

    They are what is drawn first, long before a step is planned; those of a checkpoint are mapped, not drawn.
    """
    if target.config is None or (target.path is not None and target.path.suffix != ".json"):
        return
    assert target.module is not None
    count, trained = (evaluate(target.module.total(only), target.binding) for only in (None, True))
    refuse(target.name, 4 * (count + 2 * trained * trains), [], hint="fewer layers: -d n=2")


def run(
    console: Console | None,
    target: Target,
    *,
    backend: str,
    weights: str | None,
    modes: tuple[str, ...],
    context: int,
    seconds: float,
    out: list[Path],
) -> dict[str, Any]:
    """Measure, print unless `console` is None, then write the picture; all figures.

    Raises before anything is measured ModelError: TG953 a backend that is not timed, TG954 nothing to decode with or to
    draw; BackendError[TG710] for weights that do not fit; GraphError for files that cannot be written.
    """
    from tensorgraph.visualize.draw import draw
    from tensorgraph.visualize.files import ready
    from tensorgraph.visualize.picture import SUFFIXES

    if backend not in TIMED:
        raise ModelError("TG953", f"--backend is {', '.join(TIMED)}, not {backend}")
    module: Any = target.module
    decodes = target.config is not None and (isinstance(module, Decoder) or bool(module.seen))
    if "decode" in modes and not decodes:
        if modes == ("decode",):
            raise ModelError("TG954", f"{target.name} does not generate text", hint="--only train")
        modes = ("train",)
        if console is not None:
            console.print(f"{target.name} does not generate text: training alone is measured", markup=False)
    if weights is not None and "decode" not in modes:
        raise ModelError("TG954", f"--weights {weights} is for decoding, which is not measured")
    if out and "train" not in modes:
        raise ModelError("TG954", "the picture of -o shows a training step, which --only decode leaves out")
    for path in out:
        ready(path, SUFFIXES)
    _fits(target, "train" in modes)
    rows: list[dict[str, Any]] = []

    def begun(what: str) -> None:  # a line, and no spinner: that would take its time from what is measured
        if console is not None and console.is_terminal:
            console.print(f"{what} {target.name}: made ready, then timed for some {seconds:g} s ...", style="dim")

    if "train" in modes:
        begun("training")
        row, where = train(target, backend, seconds)
        rows.append(row)
    if "decode" in modes:
        begun("decoding")
        rows.append(decode(target, backend, weights, context, seconds))
    if console is not None:
        show(console, rows, context)
    for path in out:
        graph = target.trace()
        seconds_of = where.values(graph, 1.0)
        scale, unit = (1e3, "ms") if max(seconds_of.values(), default=0) > 1e-4 else (1e6, "µs")
        values = {t: v * scale for t, v in seconds_of.items()}
        label = f"{unit}, forward and backward, without the update; of repeated blocks the slowest"
        picture = draw(graph, values=values, values_label=label, binding=target.binding)
        picture.save(path)
        if console is not None:
            console.print(f"wrote {path}", soft_wrap=True, markup=False)
    return {"model": target.name, "rows": rows}


__all__ = ["decode", "limits", "run", "train"]
