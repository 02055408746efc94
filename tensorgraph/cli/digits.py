"""`digits`: train the small model that sees, with a progress bar; accuracies, the checkpoint, curves, answers drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tensorgraph.dims import evaluate
from tensorgraph.models.digits import QUESTIONS, STAGES, Progress, Run, Stage, load, mean
from tensorgraph.models.modes import ALL, parts
from tensorgraph.visualize.canvases import canvases
from tensorgraph.visualize.curve import curve
from tensorgraph.visualize.files import write

from .tables import plain
from .training import make_folder

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

BRIDGE = "bridge-only"
EXAMPLES = 15
WATCHED = "validation digits"


def run(console: Console, out: Path | None, seed: int = 0, stages: tuple[Stage, ...] = STAGES) -> dict[str, Any]:
    """Train all stages and write; what was reached, as plain data. Raises as `digits.load` and what writing raises."""
    if out is not None:
        make_folder(out)
    learner = Run(load(), seed, stages)
    _announce(console, learner)
    points = _train(console, learner)
    console.print(_table(learner))
    bridge = learner.results[BRIDGE]
    console.print(f"\nafter stage 1 {bridge.kept} of {bridge.kept + bridge.moved} frozen tensors are equal to the bit")
    if out is not None:
        _write(out, learner, points)
        console.print(f"wrote {out}: {', '.join(sorted(p.name for p in out.iterdir() if p.is_file()))}", soft_wrap=True)
    return {
        "seed": seed,
        "weights": sum(a.size for a in learner.net.state.values()),
        "results": {mode: {**r._asdict(), "accuracy": mean(r.right)} for mode, r in learner.results.items()},
        "out": str(out) if out is not None else None,
    }


def _announce(console: Console, learner: Run) -> None:
    model = learner.net.model
    counts: dict[str, int] = {}
    for p, part in parts(model).items():
        counts[part] = counts.get(part, 0) + evaluate(p.count, model.binding)
    own = ", ".join(f"{name} {counts[name]:,}" for name in ("vision", "bridge", "llm"))
    console.print(f"LLaVA in small: {sum(counts.values()):,} weights ({own})", soft_wrap=True)
    train, validation, held = (f"{len(digits.numbers):,}" for digits in learner.data)
    console.print(f"handwritten digits: {train} to train on, {validation} to watch progress on, {held} held out\n")


def _train(console: Console, learner: Run) -> dict[str, list[Progress]]:
    """All stages with a bar for each; loss and accuracy by stage, losses as means since the point before."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
    )
    points: dict[str, list[Progress]] = {}
    losses: list[float] = []
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks = {s.name: bars.add_task(s.name, total=s.steps, start=False, said="") for s in learner.stages}
        for p in learner.run():
            if p.step == 1:
                bars.start_task(tasks[p.stage.name])
            losses.append(p.loss)
            bars.update(tasks[p.stage.name], completed=p.step, said=f"loss {p.loss:.3f}")
            if p.step % max(1, p.stage.steps // 20) == 0:
                points.setdefault(p.stage.name, []).append(p._replace(loss=float(np.mean(losses))))
                losses.clear()
            if p.step == p.stage.steps:
                said = "" if p.accuracy is None else f"  {100 * p.accuracy:.1f} % right about the {WATCHED}"
                last = points[p.stage.name][-1].loss
                console.print(f"{p.stage.name:<24}  {p.step:>5,} steps  loss {last:.3f}{said}", soft_wrap=True)
    return points


def _table(learner: Run) -> Table:
    blank, heads = learner.results[BRIDGE].blank, ("blank images", "stage 1: bridge", "stage 2: all")
    table = plain(f"{learner.asked:,} × each, held-out digits", *heads, right=heads)
    columns = [blank, *(learner.results[mode].right for mode in (BRIDGE, ALL))]
    for question in QUESTIONS:
        table.add_row(question, *(f"{100 * c[question]:.1f} %" for c in columns))
    table.add_row("all", *(f"{100 * mean(c):.1f} %" for c in columns), style="bold")
    return table


def _write(out: Path, learner: Run, points: dict[str, list[Progress]]) -> None:
    learner.net.save_pretrained(out)
    losses, right, at, before = {}, {}, 0, 0  # stages follow each other; of those without images nothing is asked
    for stage in learner.stages:
        own = points[stage.name]
        losses[stage.name] = [(at + p.step, p.loss) for p in own]
        if stage.sees:
            right[stage.name] = [(before + p.step, 100 * p.accuracy) for p in own if p.accuracy is not None]
            before += stage.steps
        at += stage.steps
    write(out / "loss.svg", curve("Loss while training, nats", losses))
    bridge, every = learner.results[BRIDGE], learner.results[ALL]
    held = {"held out, at the end": 100 * mean(every.right), "stage 1, blank images": 100 * mean(bridge.blank)}
    write(out / "accuracy.svg", curve(f"Right answers about {WATCHED}, %", right, held, places=1))
    write(out / "answers.svg", canvases(learner.examples(EXAMPLES)))


__all__ = ["run"]
