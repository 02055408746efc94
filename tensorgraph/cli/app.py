"""The commands. Each imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .help import Command, Group

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 160  # columns where the output is no terminal: tables are then read by programs, not folded

TOUR = "weights, positions, attention, gradients, culprit, learning, shapes, symbols, stages, pictures"

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Write a model once, as a graph whose sizes may be symbols; read every other fact off that graph.",
    epilog="MODEL is a preset (see `tensorgraph list`), a checkpoint folder, a config.json, a GGUF file, or "
    "file.py:callable for your own model. Sizes are given as -d B=2 -d T=5.",
)

command = partial(app.command, cls=Command)

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Preset, checkpoint folder, config.json, GGUF file, or file.py:callable.")
]
Sizes = Annotated[
    list[str] | None, typer.Option("-d", "--dim", metavar="NAME=SIZE", help="A size; may be given several times.")
]
Freeze = Annotated[
    list[str] | None,
    typer.Option("--freeze", metavar="PATTERN", help="Weights not to train, by name (* and ?) or component."),
]
Mode = Annotated[
    str | None,
    typer.Option("--mode", metavar="NAME", help="What is trained: all, lora; of models that see: bridge-only, ..."),
]
Lora = Annotated[
    str | None,
    typer.Option("--lora", metavar="r=16,...", help="An adapter: r, alpha, targets=q_proj+v_proj, rslora=true."),
]
Backend = Annotated[str, typer.Option("--backend", metavar="NAME", help="auto, c or numpy.")]
Weights = Annotated[
    str | None, typer.Option("--weights", metavar="NAME", help="To decode with: float32, bfloat16 or int8.")
]
Theme = Annotated[str, typer.Option("--theme", metavar="NAME", help="seed, light, dark or mono.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def console(stderr: bool = False) -> Console:
    """Where results go (or progress and errors): colours and width as the terminal has them, none when piped."""
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False)
    if not found.is_terminal and "COLUMNS" not in found._environ:
        found = Console(stderr=stderr, highlight=False, width=PIPED_WIDTH)
    return found


def print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    details: Annotated[bool, typer.Option("--details", help="After an error that sums up, all of it.")] = False,
) -> None:
    if version:
        from tensorgraph import __version__

        print(f"tensorgraph {__version__}")
        raise typer.Exit


@command(epilog="Example: tensorgraph demo")
def demo(
    step: Annotated[
        str | None,
        typer.Argument(
            metavar="STEP",
            help=f"Only one of its steps: {TOUR}.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the files that the tour writes.")
    ] = Path("out/demo"),
) -> None:
    """The tour: one small model followed number by number, then a large one as symbols."""
    from . import demo as tour

    tour.run(console(), out, step)


@command("list", epilog="Example: tensorgraph list --json")
def list_(as_json: Json = False) -> None:
    """Presets, with their totals."""
    from tensorgraph import models

    from . import tables

    rows = []
    for name in models.presets.names():
        model = models.build(name, symbolic=False)
        count, trained = model.total(), model.total(True)
        cls = models.presets.config(name)["architectures"][0]
        rows.append({"model": name, "total": count, "trainable": trained, "architecture": cls})
    if as_json:
        return print_json(rows)
    console().print(tables.presets(rows))


@command(epilog="Example: tensorgraph params gpt2 -d n=24")
def params(
    model: Model,
    d: Sizes = None,
    tied: Annotated[bool, typer.Option("--tied", help="Let the head share the embedding's weight.")] = False,
    every: Annotated[
        bool, typer.Option("--all", help="A row for every layer, not one for layers that repeat.")
    ] = False,
    mode: Mode = None,
    lora: Lora = None,
    freeze: Freeze = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "-o", "--out", metavar="FILE", help="A file instead: md, html, tex, csv, json, txt; svg: where they live."
        ),
    ] = None,
    form: Annotated[
        str | None, typer.Option("--form", metavar="NAME", help="Of the svg: bars (usual) or icicle.")
    ] = None,
    theme: Annotated[
        str | None, typer.Option("--theme", metavar="NAME", help="Of the svg: seed (usual), light, dark or mono.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Every weight: name, symbolic shape, shape, count; totals by component."""
    from tensorgraph.errors import ModelError
    from tensorgraph.visualize import ledger

    from . import tables
    from .target import open_target

    given = [name for name, value in (("--form", form), ("--theme", theme)) if value is not None]
    if given and not any(path.suffix.lower() == ".svg" for path in out or ()):
        raise ModelError("TG952", f"{' and '.join(given)} is for a picture, and none is written", hint="-o FILE.svg")
    target = open_target(model, d, {"tie_word_embeddings": True} if tied else None).train(mode, lora, freeze)
    target.check_sizes(("B", "T") if target.graph is None else target.graph.symbols)
    found = ledger(target.module if target.module is not None else target.graph, target.binding, name=target.name)
    found = replace(found, mode=target.training.mode or "")
    for path in out or ():
        print(found.save(path, form or "bars", theme or "seed"))
    if as_json:
        return print_json(found.to_json())
    if not out:
        screen = console()
        screen.print(tables.weights(found, every))
        screen.print()
        screen.print(tables.totals(found))


@command(epilog="Example: tensorgraph where llama-2-7b mistral-7b")
def where(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Llama-2-7B, Mistral-7B and LLaVA-1.5 if none.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Where a 7B model's parameters live: the source document's figures, and exact ones."""
    from . import where as places

    if as_json:
        return print_json(places.to_json(models or places.MODELS))
    found = {name: places.counts(name) for name in models or places.MODELS}
    screen = console()
    screen.print(places.table(found))
    screen.print()
    for line in places.notes(found):
        screen.print(line, markup=False)


@command(epilog="Example: tensorgraph show mini-268 --backward -d B=2")
def show(
    model: Model,
    d: Sizes = None,
    backward: Annotated[bool, typer.Option("--backward", help="The loss and its gradients too.")] = False,
    mode: Mode = None,
    lora: Lora = None,
    freeze: Freeze = None,
) -> None:
    """The typed text form of the graph: a line per node with its type, layer and line."""
    from .target import open_target

    target = open_target(model, d).train(mode, lora, freeze)
    sys.stdout.write(f"{target.sized(target.trace(gradients=backward))}\n")


@command(epilog="Example: tensorgraph check gpt2 -d B=2 -d T=5")
def check(
    model: Model,
    d: Sizes = None,
    only_wrong: Annotated[bool, typer.Option("--only-wrong", help="Only what is not right.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Every kind of node, not only the worst ones.")] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the values and directions.")] = 0,
    mode: Mode = None,
    lora: Lora = None,
    freeze: Freeze = None,
    as_json: Json = False,
) -> None:
    """Shapes, obligations and gradients. Exit status 1 if a gradient is wrong.

    Gradients are compared with complex-step derivatives in float64, at small sizes unless sizes are given;
    with a mode, those of what it trains.
    """
    from .check import check_model
    from .target import open_target

    target = open_target(model, d).train(mode, lora, freeze)
    if not check_model(target, console(), seed, only_wrong=only_wrong, every=every, as_json=as_json):
        raise typer.Exit(1)


@command(epilog="Example: tensorgraph cost gpt2 -d B=1 -d T=1024")
def cost(
    model: Model,
    d: Sizes = None,
    mode: Mode = None,
    lora: Lora = None,
    freeze: Freeze = None,
    forward: Annotated[bool, typer.Option("--forward", help="Without the backward pass and the optimiser.")] = False,
    optimizer: Annotated[
        str, typer.Option("--optimizer", metavar="NAME", help="adamw, adam, momentum, sgd or none.")
    ] = "adamw",
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="NAME", help="Of all floats, in place of the model's own.")
    ] = None,
    formulas: Annotated[bool, typer.Option("--formulas", help="Formulas in all sizes.")] = False,
    as_json: Json = False,
) -> None:
    """FLOPs, bytes and parameters of a training step, before anything runs.

    The backward pass is read off the graph of gradients, so that frozen parts cost what flows through them. Numbers
    where -d gives all sizes (B, T, and those of images), else formulas in those that are left."""
    from tensorgraph.cost import cost as cost_of

    from . import tables
    from .target import open_target

    target = open_target(model, d).train(mode, lora, freeze)
    graph = target.trace(gradients=not forward)
    target.check_sizes(graph.symbols)
    graph.check_binding(target.binding, partly=True)
    stored = None if target.module is None else target.module.parameters()
    symbolic = cost_of(graph, dtype=dtype, optimiser="none" if forward else optimizer, parameters=stored)
    found = symbolic if formulas else symbolic.bind(target.binding, partly=True)
    if as_json:
        about = {"model": target.name} | ({"mode": target.training.mode} if target.training.mode else {})
        return print_json({**about, **found.to_dict(), "formulas": symbolic.to_dict()})
    screen = console()
    screen.print(tables.costs(found, symbolic))
    if found.uncounted:
        screen.print(f"not counted: {', '.join(found.uncounted)}", markup=False)
    if open_ := [n for n in graph.symbols if n not in target.binding and not formulas]:
        screen.print(f"without a value: {', '.join(open_)} (-d {open_[0]}=1)", markup=False)


@command(epilog="Example: tensorgraph draw gpt2 -o gpt2.svg -o gpt2.mmd")
def draw(
    model: Model,
    out: Annotated[
        list[Path],
        typer.Option(
            "-o", "--out", metavar="FILE", help="File; its suffix says the format: svg, png, pdf, tex, mmd, dot, txt."
        ),
    ],
    d: Sizes = None,
    level: Annotated[
        str, typer.Option("--level", metavar="NAME", help="seed, flowchart, block, ops or backward.")
    ] = "flowchart",
    block: Annotated[
        str | None, typer.Option("--block", metavar="PATTERN", help="Which one --level block opens: a path or class.")
    ] = None,
    theme: Theme = "seed",
    direction: Annotated[
        str | None,
        typer.Option("--direction", metavar="LR|TB", help="LR or TB: left to right, or top down; else as it fits."),
    ] = None,
    shapes: Annotated[bool, typer.Option("--shapes", help="Label edges with shapes.")] = False,
    unfold: Annotated[bool, typer.Option("--unfold", help="Draw every layer, not one for layers that repeat.")] = False,
    mode: Mode = None,
    lora: Lora = None,
    freeze: Freeze = None,
    links: Annotated[
        str | None,
        typer.Option(
            "--links", metavar="URL", help="{label}, {op}, {path}, {component} are filled in; or a table, .json."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Draw it however large it is.")] = False,
) -> None:
    """A picture of the graph: steps that carry weights highlighted, repeated blocks once."""
    from tensorgraph.errors import ModelError
    from tensorgraph.visualize.draw import draw as picture_of
    from tensorgraph.visualize.files import ready
    from tensorgraph.visualize.links import read_links
    from tensorgraph.visualize.picture import SUFFIXES

    from .target import open_target

    if block is not None and level != "block":
        raise ModelError("TG952", f"--block says what --level block opens, and the level is {level}")
    for path in out:
        ready(path, SUFFIXES)
    target = open_target(model, d).train(mode, lora, freeze)
    target.check_sizes(("B", "T") if target.graph is None else target.graph.symbols)
    picture = picture_of(
        target,
        level,  # type: ignore[arg-type]
        block=block,
        theme=theme,
        direction=direction and direction.upper(),  # type: ignore[arg-type]
        shapes=shapes,
        unfold=unfold,
        links=read_links(links),
        mode=target.training.mode or "",
        force=force,
    )
    for path in out:
        print(f"{picture.save(path)}")


@command(epilog='Example: tensorgraph generate checkpoint/ "Once upon a time" -n 40 --temperature 0.8')
def generate(
    model: Model,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help='The text to go on from; "-" reads it from standard input.')
    ],
    count: Annotated[int, typer.Option("-n", "--tokens", metavar="N", help="Tokens to make, at most.")] = 20,
    temperature: Annotated[
        float | None, typer.Option(metavar="X", help="Sample; 0 or none of these options: the likeliest.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(metavar="K", help="Sample among the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="P", help="Sample among the likeliest tokens that make up p.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the sampling.")] = 0,
    weights: Weights = None,
    backend: Backend = "auto",
) -> None:
    """The prompt and its continuation, printed as it is made."""
    from tensorgraph.errors import DataError, ModelError
    from tensorgraph.io.files import reachable
    from tensorgraph.models import from_pretrained, presets

    reachable(Path(model))
    if not Path(model).exists() and len(Path(model).parts) == 1 and Path(model).suffix not in (".gguf", ".json"):
        presets.config(model)  # an unknown name is answered with the nearest ones
        raise ModelError(
            "TG935",
            f"{model} is a preset: it has sizes, but no values",
            hint=f"give a checkpoint, or train one: tensorgraph train {model} --text FILE --steps 200 --out DIR",
        )
    text = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
    if not text:
        raise DataError("TG520", "the prompt is empty", hint="give at least one token to go on from")
    net = from_pretrained(model, backend=backend, weights=weights)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    pieces = net.stream(text, count, **settings)
    first = next(pieces, "")  # what is wrong with the prompt is said before anything is printed
    sys.stdout.write(text + first)
    for piece in pieces:
        sys.stdout.flush()
        sys.stdout.write(piece)
    sys.stdout.write("\n")


@command(
    epilog="Example: tensorgraph train gpt2 --text pydoc --steps 400 --lr 3e-3 --out out/pydoc "
    "-d d=64 -d H=4 -d n=2 -d T=64"
)
def train(
    model: Model,
    text: Annotated[
        str,
        typer.Option("--text", metavar="FILE", help='A text file, or "pydoc": the Python documentation inside Python.'),
    ],
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=1, help="Training steps in all.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for the model, its checkpoint and its curve.")
    ] = None,
    d: Sizes = None,
    vocab: Annotated[
        int, typer.Option(metavar="N", help="Tokens of the BPE that is trained where the model has no tokenizer.")
    ] = 512,
    lr: Annotated[float, typer.Option(metavar="RATE", help="Highest learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the first values and of the batches.")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew where --out holds an earlier run.")] = False,
    mode: Mode = None,
    lora: Lora = None,
    freeze: Freeze = None,
    as_json: Json = False,
) -> None:
    """Train on a text: batches of B windows of T tokens, AdamW, a held-out part, a loss curve.

    Stops with Ctrl-C, keeping all; the same command goes on from there. What lies in --out afterwards is a checkpoint
    that `generate`, `params` and from_pretrained read, with an adapter merged into it, and beside it in adapter/.
    """
    from .target import open_target
    from .training import run

    done = run(
        open_target(model, d).train(mode, lora, freeze),
        text,
        steps,
        out,
        vocab=vocab,
        lr=lr,
        seed=seed,
        restart=restart,
        console=console(stderr=True),
    )
    if as_json:
        print_json(done)
    if done["interrupted"]:
        raise typer.Exit(130)


@command(epilog="Example: tensorgraph bench gpt2 -d n=2 -d T=64 -o profile.svg")
def bench(
    model: Model,
    d: Sizes = None,
    backend: Backend = "auto",
    only: Annotated[str | None, typer.Option("--only", metavar="WHAT", help="train or decode; else both.")] = None,
    weights: Weights = None,
    context: Annotated[
        int, typer.Option("--context", metavar="N", min=2, help="Tokens before those that are decoded.")
    ] = 256,
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", min=1e-3, help="How long each is timed.")] = 3.0,
    out: Annotated[
        list[Path] | None,
        typer.Option("-o", "--out", metavar="FILE", help="Picture coloured by time: svg, png, pdf ..."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Speed of training and decoding, beside what the machine can do, and where the time goes."""
    from tensorgraph.errors import ModelError

    from . import bench as bench_of
    from .target import open_target

    if only not in (None, "train", "decode"):
        raise ModelError("TG952", f"--only is train or decode, not {only}")
    found = bench_of.run(
        None if as_json else console(),
        open_target(model, d),
        backend=backend,
        weights=weights,
        modes=("train", "decode") if only is None else (only,),
        context=context,
        seconds=seconds,
        out=list(out or ()),
    )
    if as_json:
        print_json(found)


@command(epilog="Example: tensorgraph digits --out out/digits")
def digits(
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for the checkpoint, its curves and a picture of answers."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the first values and of the batches.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a small model that sees, from nothing: handwritten digits, questions in words.

    LLaVA's recipe: encoder and language model by themselves, then the bridge between them, then all. Takes minutes, and
    scikit-learn. What lies in --out afterwards is a checkpoint in LLaVA's format.
    """
    from .digits import run

    done = run(console(stderr=as_json), out, seed)
    if as_json:
        print_json(done)
