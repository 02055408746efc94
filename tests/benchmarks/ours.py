"""tensorgraph on the peers' work. Prints one JSON line, or one for each row, as the peers do.

    ours.py train S|M|toy|llama|vit [backend [strict]]     a training step; llama and vit: models of the library
    ours.py decode M|smollm2:PATH [backend [weights]]      a token after 256; weights float32, bfloat16 or int8
    ours.py gradcheck toy|attn [backend]                   every entry of the gradient by central differences
    ours.py limits                                         GFLOP/s and GB/s of this machine, through NumPy

Times come from windows in which other processes left the processor alone, where there are any; "foreign" says how much
of a core they used in those (nan where the system does not tell).
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

start = time.perf_counter()
import numpy as np  # noqa: E402

import tensorgraph as tg  # noqa: E402

IMPORT_S = time.perf_counter() - start

from tensorgraph.cli import bench  # noqa: E402

MODELS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {  # configs, and sizes of a batch
    "llama": (
        {"model_type": "llama", "num_hidden_layers": 6, "hidden_size": 512, "num_attention_heads": 8,
         "num_key_value_heads": 4, "intermediate_size": 1408, "vocab_size": 8192, "max_position_embeddings": 256,
         "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True},
        {"B": 4, "T": 256},
    ),
    "vit": (
        {"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 384,
         "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6, "image_size": 224,
         "patch_size": 16, "num_labels": 1000},
        {"B": 4},
    ),
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "toy": {"L": 1, "d": 4, "H": 1, "T": 6, "V": 8, "B": 1, "f": 16, "affine": False, "bias": False},
    "S": {"L": 6, "d": 384, "H": 6, "T": 256, "V": 8192, "B": 4, "f": 1536, "affine": True, "bias": True},
    "M": {"L": 12, "d": 768, "H": 12, "T": 256, "V": 50257, "B": 1, "f": 3072, "affine": True, "bias": True},
}


def weights(c: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """The peers' initial weights: one stream, in their order."""
    r = np.random.default_rng(seed)
    d, f = c["d"], c["f"]

    def normal(*shape: int) -> Any:
        return (r.standard_normal(shape) * 0.02).astype("float32")

    ones, zeros = (lambda n: np.ones(n, "float32")), (lambda n: np.zeros(n, "float32"))
    p = {"wte": normal(c["V"], d), "wpe": normal(c["T"], d)}
    for i in range(c["L"]):
        if c["affine"]:
            p |= {f"{i}.ln1g": ones(d), f"{i}.ln1b": zeros(d), f"{i}.ln2g": ones(d), f"{i}.ln2b": zeros(d)}
        if c["bias"]:
            p |= {f"{i}.bqkv": zeros(3 * d), f"{i}.bo": zeros(d)}
        p |= {f"{i}.wqkv": normal(d, 3 * d), f"{i}.wo": normal(d, d)}
        p |= {f"{i}.w1": normal(d, f), f"{i}.b1": zeros(f), f"{i}.w2": normal(f, d), f"{i}.b2": zeros(d)}
    if c["affine"]:
        p |= {"lnfg": ones(d), "lnfb": zeros(d)}
    return p


def loss_of(c: dict[str, Any], shapes: dict[str, Any]) -> tg.Tensor:
    """The peers' GPT: pre-norm, tied head, tanh-gelu; norms without gain in `toy`."""
    p = {n: tg.param(n, s) for n, s in shapes.items()}
    B, T, d, H = c["B"], c["T"], c["d"], c["H"]
    k = d // H
    ids, labels = tg.input("ids", (B, T), "int32"), tg.input("labels", (B, T), "int32")

    def linear(x: tg.Tensor, w: str, b: str) -> tg.Tensor:
        y = x @ p[w]
        return y + p[b] if b in p else y

    x = tg.take(p["wte"], ids) + p["wpe"]
    for i in range(c["L"]):
        h = tg.layer_norm(x, p.get(f"{i}.ln1g"), p.get(f"{i}.ln1b"))
        qkv = linear(h, f"{i}.wqkv", f"{i}.bqkv").reshape(B, T, 3, H, k)
        q, kk, v = (qkv[:, :, j].permute(0, 2, 1, 3) for j in range(3))
        a = tg.attention(q, kk, v, causal=True).permute(0, 2, 1, 3).reshape(B, T, d)
        x = x + linear(a, f"{i}.wo", f"{i}.bo")
        h = tg.layer_norm(x, p.get(f"{i}.ln2g"), p.get(f"{i}.ln2b"))
        x = x + linear(tg.gelu_tanh(linear(h, f"{i}.w1", f"{i}.b1")), f"{i}.w2", f"{i}.b2")
    x = tg.layer_norm(x, p.get("lnfg"), p.get("lnfb"))
    return tg.cross_entropy(x @ p["wte"].T, labels, ignore=None)


def others() -> float:
    """Seconds of processor time that other processes have used since the machine started; nan if unknown."""
    try:
        with open("/proc/stat") as f:
            used = [int(x) for x in f.readline().split()[1:9]]
    except OSError:
        return math.nan
    return (sum(used) - used[3] - used[4]) / os.sysconf("SC_CLK_TCK") - time.process_time()


BACKENDS = ["auto", "c", "numpy"]


class Measured(NamedTuple):
    """Of quiet windows: (median, least) seconds of a call; the share of a core that others used meanwhile; and
    1 / (seconds of a call x the machine's limit beside it): with the work of a call, its share of the limit."""

    median: float
    least: float
    foreign: float
    pace: float


def measure(
    run: Callable[[], Any], seconds: float = 6.0, limit: Callable[[], float] | None = None, quiet: float = 0.12
) -> Measured:
    """Windows of calls; beside each the machine's limit, which drifts as its speed does."""
    found: list[Measured] = []
    start = begin = time.perf_counter()
    before = others()
    for times, speed in bench.windows(run, limit):
        usual = statistics.median(times)
        foreign = (others() - before) / (time.perf_counter() - begin)
        found.append(Measured(usual, min(times), foreign, 1 / (usual * speed)))
        clean = [w for w in found if not w.foreign > quiet]
        passed = time.perf_counter() - start
        if len(found) >= 3 and ((passed > seconds and len(clean) >= 5) or passed > 4 * seconds):
            break
        begin, before = time.perf_counter(), others()
    used = clean if len(clean) >= 3 else sorted(found, key=lambda w: w.foreign)[:3]
    median, _, foreign, pace = (statistics.median(figures) for figures in zip(*used, strict=True))
    return Measured(median, min(w.least for w in used), foreign, pace)


def problem(name: str) -> tuple[Callable[[], tg.Tensor], dict[str, Any], dict[str, Any], dict[str, int]]:
    """What builds the graph of the loss; the parameters' values, a batch, and sizes."""
    r = np.random.default_rng(1)
    if name in CONFIGS:
        c = CONFIGS[name]
        p = weights(c)
        batch = {n: r.integers(0, c["V"], (c["B"], c["T"])).astype("int32") for n in ("ids", "labels")}
        shapes = {n: a.shape for n, a in p.items()}
        return lambda: loss_of(c, shapes), p, batch, {}
    config, sizes = MODELS[name]
    model = tg.models.build(config)
    B = sizes["B"]
    if name == "vit":
        batch = {"pixel_values": r.standard_normal((B, 3, 224, 224)).astype("f4"),
                 "labels": r.integers(0, config["num_labels"], (B,)).astype("int32")}  # fmt: skip
    else:
        shape = (B, sizes["T"])
        batch = {n: r.integers(0, config["vocab_size"], shape).astype("int32") for n in ("input_ids", "labels")}
    sizes = {**model.binding, **sizes}
    return lambda: model.outputs(**model.inputs(tuple(batch)))["loss"], model.init(0, model.binding), batch, sizes


def train(name: str, backend: str = "auto", strict: str = "") -> None:
    build, p, batch, sizes = problem(name)
    begin = time.perf_counter()
    loss = build()
    adamw = tg.optim.AdamW(3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    step = tg.compile(loss, update=adamw, backend=backend, strict=bool(strict), binding=sizes)
    compiled = time.perf_counter() - begin
    state = step.init(p)  # the peers have theirs before their clock starts
    del p
    losses = []
    begin = time.perf_counter()
    value, state = step(state, **batch)
    losses.append(float(value))
    first = compiled + time.perf_counter() - begin

    def one() -> None:
        nonlocal state
        value, state = step(state, **batch)
        if len(losses) < 5:
            losses.append(float(value))

    while len(losses) < 5:
        one()
    peak = rss_mb()  # before the arrays of the limit
    found = measure(one, limit=None if name == "toy" else bench.products)
    work = step.cost(sizes)
    flops = work.forward.products + work.backward.products - work.recomputed.products
    emit(
        key=f"train {name}",
        backend=step.compiled.options.backend,
        ms=found.median * 1e3,
        ms_min=found.least * 1e3,
        gflops=flops / found.median / 1e9,
        share=flops / 1e9 * found.pace,
        foreign=found.foreign,
        first_s=first,
        import_s=IMPORT_S,
        rss_mb=peak,
        predicted_mb=step.memory(sizes).peak / 2**20,
        loss0=losses[0],
        loss4=losses[4],
    )


def decode(name: str, backend: str = "auto", kind: str = "float32", context: int = 256) -> None:
    """One token after another, as the peers: the positions after the context are used in turn."""
    from tensorgraph.models.generate import Session

    with tempfile.TemporaryDirectory() as folder:
        path = folder if name == "M" else name.partition(":")[2]
        if name == "M":  # a process of its own: what it takes to make the weights is no part of the figures
            child = multiprocessing.get_context("fork").Process(target=write, args=(folder,))
            child.start()
            child.join()
        begin = time.perf_counter()
        net = tg.models.from_pretrained(path, backend=backend, weights=kind)
    session = Session(net, 1)  # as `generate` has it: room for up to a quarter more positions, all of it read
    token = session.feed(np.full((1, context), 5, np.int32)).argmax(-1)[:, None].astype(np.int32)

    def one() -> None:
        nonlocal token
        session.position = context + (session.position - context) % 24
        token = session.feed(token).argmax(-1)[:, None].astype(np.int32)

    one()
    first = time.perf_counter() - begin
    peak = rss_mb()
    found = measure(one, limit=bench.reading)
    emit(
        key=f"decode {name.partition(':')[0]}",
        backend=session._step.options.backend,
        weights=kind,
        ms=found.median * 1e3,
        ms_min=found.least * 1e3,
        gbs=bench.weight_bytes(session) / found.median / 1e9,
        share=bench.weight_bytes(session) / 1e9 * found.pace,
        foreign=found.foreign,
        first_s=first,
        import_s=IMPORT_S,
        rss_mb=peak,
    )


def write(folder: str) -> None:
    """The peers' GPT-2 as a checkpoint."""
    c = {**CONFIGS["M"], "T": 1024}
    config = {"model_type": "gpt2", "n_layer": c["L"], "n_embd": c["d"], "n_head": c["H"], "vocab_size": c["V"],
              "n_positions": c["T"]}  # fmt: skip
    tg.models.Net(tg.models.build(config), config, gpt2_names(weights(c))).save_pretrained(folder)


def gpt2_names(p: dict[str, Any]) -> dict[str, Any]:
    """The peers' weights under the published names."""
    parts = {"ln1g": "ln_1.weight", "ln1b": "ln_1.bias", "ln2g": "ln_2.weight", "ln2b": "ln_2.bias",
             "wqkv": "attn.c_attn.weight", "bqkv": "attn.c_attn.bias", "wo": "attn.c_proj.weight",
             "bo": "attn.c_proj.bias", "w1": "mlp.c_fc.weight", "b1": "mlp.c_fc.bias", "w2": "mlp.c_proj.weight",
             "b2": "mlp.c_proj.bias"}  # fmt: skip
    whole = {"wte": "wte.weight", "wpe": "wpe.weight", "lnfg": "ln_f.weight", "lnfb": "ln_f.bias"}
    names = {n: whole.get(n) or f"h.{n.partition('.')[0]}.{parts[n.partition('.')[2]]}" for n in p}
    return {f"transformer.{names[n]}": a for n, a in p.items()}


def gradcheck(what: str, backend: str = "auto") -> None:
    from tensorgraph.gradcheck.differences import Differences

    begin = time.perf_counter()
    if what == "toy":
        build, p, batch, _ = problem("toy")
        loss = build()
        y, wrt = loss, list(p)
        arrays = {**{n: a.astype("f8") for n, a in p.items()}, **batch}
    else:
        y, arrays = attention_block()
        wrt = [n for n in arrays if n != "r"]
    made = Differences(y, wrt, backend=backend)
    worst = max(made.check(arrays).values())
    first = time.perf_counter() - begin
    if not worst < 1e-6:
        raise SystemExit(f"the gradient of {what} is wrong: {worst}")
    found = measure(lambda: made.check(arrays), seconds=1.0)
    entries = sum(arrays[n].size for n in wrt)
    emit(
        key=f"gradcheck {what} full",
        backend=made.f.options.backend,
        ms=found.median * 1e3,
        ms_min=found.least * 1e3,
        foreign=found.foreign,
        first_s=first,
        entries=entries,
        worst=worst,
    )


def attention_block() -> tuple[tg.Tensor, dict[str, Any]]:
    """The peers' attention block (T 8, d 16, 2 heads), its output weighed by random numbers to be a scalar."""
    T, d, H = 8, 16, 2
    r = np.random.default_rng(0)
    shapes = {"x": (1, T, d), "w": (d, 3 * d), "wo": (d, d)}
    arrays = {n: r.standard_normal(s) * 0.3 for n, s in shapes.items()} | {"r": r.standard_normal((1, T, d))}
    x, w, wo = (tg.input(n, s, "float64") for n, s in shapes.items())
    heads = (tg.layer_norm(x, None, None) @ w).reshape(1, T, 3, H, d // H)
    q, k, v = (heads[:, :, i].permute(0, 2, 1, 3) for i in range(3))
    a = tg.attention(q, k, v, causal=True).permute(0, 2, 1, 3).reshape(1, T, d)
    return ((x + a @ wo) * tg.input("r", (1, T, d), "float64")).sum(), arrays


def limits() -> None:
    found = [bench.limits() for _ in range(5)]  # the most of several seconds: others use the machine, too
    emit(key="limits", **{k: max(f[k] for f in found) for k in found[0]})


def rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def emit(**row: Any) -> None:
    print(json.dumps(row), flush=True)


def main(words: list[str]) -> None:
    known: dict[str, list[str]] = {"train": [*CONFIGS, *MODELS], "decode": ["M"], "gradcheck": ["toy", "attn"]}
    if words == ["limits"]:
        limits()
    elif len(words) >= 2 and (words[1] in known.get(words[0], ()) or (words[:1] == ["decode"] and ":" in words[1])):
        commands: dict[str, Callable[..., None]] = {"train": train, "decode": decode, "gradcheck": gradcheck}
        further = {"train": ["", "strict"], "decode": ["float32", "bfloat16", "int8"], "gradcheck": []}[words[0]]
        fit = all(w in ok for w, ok in zip(words[2:], (BACKENDS, further), strict=False))
        if len(words) > 4 or not fit:
            sys.exit(f"not understood: {' '.join(words[2:])}\n\n{__doc__}")
        commands[words[0]](*words[1:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
