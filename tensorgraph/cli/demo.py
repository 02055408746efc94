"""The tour: 268 weights followed number by number, then 405 billion as symbols. Every figure is computed.

What stands beside a figure as "the document" is quoted from the text that the miniatures are taken from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from rich.text import Text

import tensorgraph as tg
from tensorgraph import testing
from tensorgraph.autodiff import expanded
from tensorgraph.cost import cost
from tensorgraph.errors import ModelError, ShapeError
from tensorgraph.graph import Graph
from tensorgraph.models import presets
from tensorgraph.models.pretrained import Net
from tensorgraph.models.train import fresh
from tensorgraph.nn import sum_sizes
from tensorgraph.tensor import Tensor, topological
from tensorgraph.visualize import draw, ledger
from tensorgraph.visualize.curve import sparkline

from . import tables, training
from .check import scalar
from .target import open_target

if TYPE_CHECKING:
    from rich.console import Console

MINI, MIDDLE, LARGE, SEEING = "mini-268", "mini-11776", "llama-3.1-405b", "llava-1.5-7b"
SENTENCE = "The cat sat on a mat"
PROMPT, ANSWER = "The cat sat on a", "mat"
STEPS, RATE, SEED = 400, 0.01, 3
STAGES = ("all", "bridge+lora", "bridge-only")

# What the documents say, to be set beside what is computed here.
DOCUMENT = {"Query": 20, "Key": 20, "Value": 20, "Output": 20, "Up-Projection": 80, "Down-Projection": 68, "Head": 40}
DOCUMENT_TOTAL = 268
DOCUMENT_MIDDLE = 11_776
PLACES = {
    "Query": "layers.0.attn.q.",
    "Key": "layers.0.attn.k.",
    "Value": "layers.0.attn.v.",
    "Output": "layers.0.attn.out.",
    "Up-Projection": "layers.0.mlp.up.",
    "Down-Projection": "layers.0.mlp.down.",
    "Head": "head.",
}


@dataclass
class Tour:
    """Where the tour prints and writes, and the miniature that its steps share."""

    out: Console
    folder: Path
    files: list[Path] = field(default_factory=list)

    @cached_property
    def net(self) -> Net:
        """The miniature with fresh values, and the words it knows."""
        return fresh(presets.config(MINI), "").init(SEED)

    @cached_property
    def ids(self) -> Any:
        """The sentence as ids [1, 6]."""
        return np.array([self.net.need_tokenizer().encode(SENTENCE)], np.int32)

    @property
    def labels(self) -> Any:
        """Only the last word is to be predicted."""
        labels = np.full_like(self.ids, -100)
        labels[0, -1] = self.ids[0, -1]
        return labels

    @cached_property
    def words(self) -> list[str]:
        return SENTENCE.split()

    def say(self, text: str | Text) -> None:
        self.out.print(text, soft_wrap=not self.out.is_terminal)

    def command(self, *lines: str) -> None:
        """The commands that repeat a step."""
        for line in lines:
            self.out.print(Text(f"$ tensorgraph {line}", style="bold green"), soft_wrap=True)


def weights(tour: Tour) -> None:
    """268 weights, and 11,776"""
    book = ledger(open_target(MINI).module)
    table = tables.plain("matrix", "sizes", "weights", "the document", right=("weights", "the document"))
    counted = 0
    for name, place in PLACES.items():
        rows = [r for r in book.rows if r.name.startswith(place)]
        number = int(book.number(sum_sizes([r.count for r in rows])).replace(",", ""))
        counted += number
        table.add_row(
            name, " + ".join(f"[{book.sizes(r)}]".replace("[", r"\[") for r in rows), str(number), str(DOCUMENT[name])
        )
    table.add_row("trained", "", book.number(book.trainable), str(DOCUMENT_TOTAL), style="bold")
    tour.out.print(table)
    frozen = ", ".join(f"{r.name} [cyan]({book.sizes(r)})[/]" for r in book.rows if not r.trained)
    tour.say(f"Frozen beside them: {frozen}; with it the total is {book.number(book.total)}.")
    middle, tied = (
        ledger(open_target(MIDDLE, None, change).module) for change in (None, {"tie_word_embeddings": True})
    )
    parts = ", ".join(f"{name} {middle.number(size)}" for name, size in middle.components.items())
    tour.say(
        f"{MIDDLE}: {parts}, in all [bold]{middle.number(middle.total)}[/] (the document: {DOCUMENT_MIDDLE:,}); "
        f"with the head tied to the embedding [bold]{tied.number(tied.total)}[/]."
    )
    tour.command(f"params {MINI}", f"params {MIDDLE} --tied")


def positions(tour: Tour) -> None:
    """Where a word stands: the rows that are added to the 6 × 4 input"""
    graph = Graph(tour.net.model.outputs(**tour.net.model.inputs(["input_ids"])))
    table = next(t for t in graph.nodes if t.op.name == "take")
    total = next(t for t in graph.nodes if t.op.name == "add" and table in t.inputs)
    rows = next(t for t in total.inputs if t is not table)
    values = compute(tour, {"embedding": table, "position": rows, "input": total})
    made = tables.plain("word", "embedding", "+ position", "= input", right=("embedding", "+ position", "= input"))
    position = values["position"].reshape(-1, values["position"].shape[-1])
    for i, word in enumerate(tour.words):
        made.add_row(word, numbers(values["embedding"][0, i]), numbers(position[i]), numbers(values["input"][0, i]))
    tour.out.print(made)
    tour.say("position t, columns 2i and 2i + 1: sin and cos of t / 10000^(2i/d)")
    tour.command("demo positions", f"show {MINI} -d B=1 -d T=6")


def attention(tour: Tour) -> None:
    """Which word looks at which, the guess, and how wrong it is"""
    graph = Graph(tour.net.model.outputs(**tour.net.model.inputs(["input_ids", "labels"])))
    node = next(t for t in graph.nodes if t.op.name == "attention")
    inside = topological([expanded(node)], stop=set(node.inputs))
    probs = next(t for t in inside if t.label == "probs")
    values = compute(tour, {"probs": probs, **graph.outputs}, labels=tour.labels)
    table = tables.plain("attention in %", *tour.words, right=tuple(tour.words))
    for i, word in enumerate(tour.words):
        shares = [f"{100 * p:.1f}" if j <= i else "·" for j, p in enumerate(values["probs"][0, 0, i])]
        table.add_row(word, *shares)
    tour.out.print(table)
    place = len(PROMPT.split()) - 1
    logits = values["logits"][0, place].astype(np.float64)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    words = presets.config(MINI)["vocab"]
    tour.say("next word: " + "  ".join(f"{w} {100 * q:.1f} %" for w, q in zip(words, p, strict=True)))
    chance = float(p[words.index(ANSWER)])
    tour.say(
        f"p({ANSWER}) = [bold]{chance:.4f}[/], so the loss is −ln {chance:.4f} = {-math.log(chance):.4f}; "
        f"the graph's own: [bold]{float(values['loss']):.4f}[/]"
    )
    tour.say(
        f"(The document reads this guess from the 6th vector. “{ANSWER}” [italic]is[/] the 6th token: "
        f"position {place + 1} predicts it.)"
    )
    tour.command("demo attention")


def gradients(tour: Tour) -> None:
    """One weight nudged by hand; then all gradients checked"""
    net = fresh(presets.config(MINI), "").init(SEED)
    net.model.astype("float64")
    net = Net(net.model, net.config, {n: a.astype(np.float64) for n, a in net.state.items()})
    loss, grads = net.value_and_grad(input_ids=tour.ids, labels=tour.labels)
    h = 1e-4
    columns = (f"loss at w + {h:g}", "Δloss/Δw", "gradient")
    table = tables.plain("weight w", *columns, right=columns)
    for name in ("layers.0.attn.v.weight", "layers.0.mlp.up.weight", "head.weight"):
        at = np.unravel_index(np.abs(grads[name]).argmax(), grads[name].shape)
        net.state[name][at] += h
        then = float(net(input_ids=tour.ids, labels=tour.labels)["loss"])
        net.state[name][at] -= h
        where = Text(f"{name}[{', '.join(map(str, at))}]")
        table.add_row(where, f"{then:.6f}", f"{(then - loss) / h:+.5f}", f"{grads[name][at]:+.5f}")
    tour.say(f"loss {loss:.6f} in float64")
    tour.out.print(table)
    report = tg.check_grads(scalar(open_target(MINI)), binding="B=2,T=5")
    tour.out.print(report.table(limit=4))
    tour.command(f"check {MINI} -d B=2 -d T=5")


def culprit(tour: Tour) -> None:
    """A gradient rule broken by 1 %: the report names op, input and layer"""
    right = testing.right_rule(tg.softmax)

    def wrong(g: Any, y: Any, *inputs: Any, **attrs: Any) -> list[Any]:
        return [None if c is None else c * 1.01 for c in right(g, y, *inputs, **attrs)]

    with testing.override("softmax", vjp=wrong):
        report = tg.check_grads(scalar(open_target(MINI)))
    tour.out.print(report.table(only_wrong=True))
    tour.command("demo culprit")


def learning(tour: Tour) -> None:
    """AdamW, until it says “mat” and “.”"""
    text = tour.folder / "cat.txt"
    text.write_text(f"{SENTENCE} .\n" * 60, encoding="utf-8")
    folder = tour.folder / "mini"
    before = "".join(tour.net.stream(PROMPT, 2))
    done = training.run(
        open_target(MINI), str(text), STEPS, folder, console=tour.out, lr=RATE, seed=SEED, restart=True, quiet=True
    )
    after = "".join(tg.models.from_pretrained(folder).stream(PROMPT, 2))
    losses = [p["loss"] for p in done["curve"]]
    tour.say(f"loss {losses[0]:.3f} [cyan]{sparkline(losses)}[/] {losses[-1]:.3f} in {done['steps']} steps")
    tour.say(f"before: {PROMPT}[bold red]{before}[/]")
    tour.say(f"after:  {PROMPT}[bold green]{after}[/]")
    tour.files += [text, *sorted(p for p in folder.iterdir() if p.is_file())]
    tour.command(
        f"train {MINI} --text {text} --steps {STEPS} --lr {RATE} --seed {SEED} --out {folder}",
        f'generate {folder} "{PROMPT}" -n 2',
    )


WRONG = '''"""A feed-forward layer whose second weight is stored the other way round."""

import tensorgraph as tg

B, T, width, hidden = tg.dims("B T width hidden")


def model():
    x = tg.input("x", (B, T, width))
    up = tg.input("mlp.up", (width, hidden))
    down = tg.input("mlp.down", (width, hidden))
    return tg.gelu(x @ up) @ down
'''


def shapes(tour: Tour) -> None:
    """One wrong shape: the error comes when the graph is built"""
    file = tour.folder / "wrong.py"
    file.write_text(WRONG, encoding="utf-8")
    tour.files.append(file)
    lines = WRONG.splitlines()
    tour.out.print(Text("\n".join(f"{i:>3}  {line}" for i, line in enumerate(lines, 1) if i > 7), style="dim"))
    try:
        open_target(f"{file}:model")
    except ShapeError as error:
        tour.out.print(Text(error.report(), style="red"), soft_wrap=True)
    tour.command(f"show {file}:model")


def symbols(tour: Tour) -> None:
    """Llama-3.1-405B, all its sizes symbols"""
    model = tg.models.build(LARGE)
    start = time.perf_counter()
    loss = model.outputs(**model.inputs(["input_ids", "labels"]))["loss"]
    forward = time.perf_counter() - start
    grads = tg.grad(loss, model.parameters())
    both = time.perf_counter() - start
    graph = Graph([loss, *grads])
    count = model.config[model.fields["n"]]
    book = ledger(model, name=LARGE)
    block = [r for r in book.rows if ".layers.0." in f".{r.name}"]
    tour.say(
        f"{count} layers unrolled, forward in {1e3 * forward:.0f} ms, forward and backward in {1e3 * both:.0f} ms: "
        f"[bold]{len(graph.nodes):,}[/] nodes, every shape checked for all {', '.join(graph.symbols)}"
    )
    each = sum_sizes([r.count for r in block])
    tour.say(Text(f"one block: {book.formula(each)} = {book.number(each)} weights"))
    tour.say(Text(f"in all:    {book.formula(book.total)} = {book.number(book.total)}"))
    tour.command(f"params {LARGE}", f"check {LARGE} -d n=2")


def stages(tour: Tour) -> None:
    """LLaVA learns in stages: what is frozen costs no gradient of its own"""
    sizes = ["B=1", "T=640", "I=1"]
    columns = ("trained", "of all", "backward FLOPs", "of full", "gradients + AdamW")
    table = tables.plain("stage", *columns, right=columns)
    full: Any = None
    for mode in STAGES:
        target = open_target(SEEING, sizes).train(mode)
        assert target.module is not None
        found = cost(target.trace(gradients=True), target.binding, parameters=target.module.parameters())
        counts, backward = cast("Any", found.parameters), cast("Any", found.backward.products)
        full = full or backward
        held = cast("Any", found.bytes["gradients"]) + cast("Any", found.bytes["optimiser"])
        share = f"{100 * counts['trained'] / counts['total']:.2f} %"
        table.add_row(mode, f"{counts['trained']:,} of {counts['total']:,}", share, f"{backward:.3e}",
                      f"{100 * backward / full:.0f} %", f"{held / 1e9:.2f} GB")  # fmt: skip
    tour.out.print(table)
    tour.say(
        "one image and 64 tokens; in bridge-only gradients still flow through the frozen language model, and the "
        "tower below the bridge has no backward node at all"
    )
    tour.command(f"cost {SEEING} -d B=1 -d T=640 -d I=1 --mode bridge-only", "where")


def pictures(tour: Tour) -> None:
    """Pictures, and all files written"""
    names = [tour.folder / f"{MINI}{suffix}" for suffix in (".svg", ".png", ".mmd")]
    picture = draw(open_target(MINI))
    tour.files += [picture.save(path) for path in names]
    large = tour.folder / f"{LARGE}.svg"
    tour.files.append(draw(open_target(LARGE)).save(large))
    for path in tour.files:
        tour.out.print(Text(f"{path.stat().st_size:>9,} bytes  {path}"), soft_wrap=True)
    tour.command(f"draw {MINI} " + " ".join(f"-o {p}" for p in names), f"draw {LARGE} -o {large}")


STEPS_OF_TOUR: dict[str, Callable[[Tour], None]] = {
    f.__name__: f
    for f in (weights, positions, attention, gradients, culprit, learning, shapes, symbols, stages, pictures)
}


def run(out: Console, folder: Path, step: str | None = None) -> None:
    """All steps, or one. Raises ModelError[TG940] for a step that there is not."""
    if step is not None and step not in STEPS_OF_TOUR:
        raise ModelError("TG940", f"the tour has no step {step!r}", hint=f"its steps are {', '.join(STEPS_OF_TOUR)}")
    training.make_folder(folder)
    tour = Tour(out, folder)
    start = time.perf_counter()
    for i, (name, show) in enumerate(STEPS_OF_TOUR.items(), 1):
        if step in (None, name):
            out.print(Text(f"── {i} ─ {show.__doc__}", style="bold cyan"))
            show(tour)
            out.print()
    if step is None:
        out.print(
            f"{len(STEPS_OF_TOUR)} steps in {time.perf_counter() - start:.1f} s; files in {folder}", soft_wrap=True
        )


def compute(tour: Tour, outputs: dict[str, Tensor], **inputs: Any) -> dict[str, Any]:
    """Values inside the miniature for the sentence."""
    f = tg.compile(outputs, binding=tour.net.model.binding)
    found: dict[str, Any] = f(tour.net.values(), input_ids=tour.ids, **inputs)
    return found


def numbers(row: Any) -> str:
    return " ".join(f"{v:5.2f}" for v in row)


__all__ = ["STEPS_OF_TOUR", "run"]
