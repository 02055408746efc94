"""`where`: where the parameters of a 7B model live, as the source document has it, and as published models have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from tensorgraph.dims import evaluate
from tensorgraph.models import modes

from . import tables
from .target import open_target

MODELS = ("llama-2-7b", "mistral-7b", "llava-1.5-7b")
LARGE, SEEING = "llama-3-70b", "llava-1.5-7b"
NEAR = 0.05


@dataclass(frozen=True)
class Figure:
    """A row of the source document's table, "Where the Parameters Live": a count, or a range of counts."""

    part: str
    what: str
    low: int
    high: int
    component: str  # ours

    @property
    def text(self) -> str:
        counts = [_short(n) for n in (self.low, self.high)]
        return "~" + "–".join(dict.fromkeys(counts))

    def ratio(self, count: int) -> float:
        """A model's count over the document's; 1 within a range."""
        return count / min(max(count, self.low), self.high)


# The source document's "Typical Count (7B Model)".
DOCUMENT = (
    Figure("Embeddings", "token + position", 130_000_000, 130_000_000, "embedding"),
    Figure("Attention", "Q, K, V, output", 1_500_000_000, 1_500_000_000, "attention"),
    Figure("MLP (FFN)", "up, gate, down", 5_000_000_000, 5_000_000_000, "mlp"),
    Figure("Norms", "LayerNorm / RMSNorm", 1_000_000, 1_000_000, "norm"),
    Figure("VLM Bridge", "linear / MLP projector", 20_000_000, 50_000_000, "bridge"),
)
# Another of the source documents: "128,000 rows × 8,192 columns = ~1 billion weights, just for embeddings".
TABLE = (128_000, 8_192)


def counts(name: str, sizes: tuple[str, ...] = ()) -> dict[str, int]:
    """The parameters of a model by component, those of its bridge together as "bridge"; and their "total"."""
    target = open_target(name, sizes)
    out: dict[str, int] = {}
    for p, part in modes.parts(target.module).items():  # type: ignore[arg-type]
        key = part if part in ("bridge", "vision") else p.component
        out[key] = out.get(key, 0) + evaluate(p.count, target.binding)
    return {**out, "total": sum(out.values())}


def to_json(models: Iterable[str]) -> dict[str, Any]:
    """The table as plain data."""
    found = {name: counts(name) for name in models}
    rows = []
    for f in DOCUMENT:
        has = {name: c[f.component] for name, c in found.items() if f.component in c}
        beside = {name: {"count": n, "ratio": round(f.ratio(n), 4)} for name, n in has.items()}
        rows.append({"part": f.part, "document": [f.low, f.high], "models": beside})
    return {"rows": rows, "components": found}


def table(found: Mapping[str, Mapping[str, int]]) -> Table:
    """The document's figures, and beside them each model's with their ratios; below, what the document leaves out."""
    columns = [x for name in found for x in (name, "ratio")]
    made = tables.plain("part", "weights", "the document", *columns, right=("the document", *columns))
    for f in DOCUMENT:
        have = [c.get(f.component) for c in found.values()]
        cells = [x for n in have for x in (("", "") if n is None else (f"{n:,}", f"{f.ratio(n):.2f}"))]
        made.add_row(f.part, f.what, f.text, *cells)
    named = {f.component for f in DOCUMENT} | {"total"}
    for key in dict.fromkeys(k for c in found.values() for k in c if k not in named):
        cells = [x for c in found.values() for x in (f"{c[key]:,}" if key in c else "", "")]
        made.add_row(key.capitalize(), "", Text("left out", "dim"), *cells)
    total = sum(f.low for f in DOCUMENT if f.component != "bridge")
    cells = [x for c in found.values() for x in (f"{c['total']:,}", f"{c['total'] / total:.2f}")]
    made.add_row("Total", "", f"~{_short(total)}", *cells, style="bold")
    return made


def notes(found: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What the table does not say by itself; every figure is computed."""
    near = [
        name
        for name, c in found.items()
        if all(abs(f.ratio(c[f.component]) - 1) <= NEAR for f in DOCUMENT if f.component in c)
    ]
    bridges = [counts(SEEING, (f"n_c={n}",))["bridge"] for n in (1, 2, 3)]
    heads = ", ".join(f"{c['head']:,} in {name}" for name, c in found.items() if "head" in c)
    large = open_target(LARGE).binding
    V, d = large["V"], large["H"] * large["k"]
    rows, columns = TABLE
    return [
        f"The document rounds: {', '.join(near) or 'no model here'} has all its figures, to {100 * NEAR:.0f} %. "
        f"It leaves out the head ({heads or 'none here'}), and its total is without the bridge.",
        f"{SEEING}'s bridge has {bridges[0]:,} weights with one layer, {bridges[1]:,} with two, {bridges[2]:,} with "
        "three.",
        f"Another document's table of {rows:,} × {columns:,} ≈ 1 billion is {LARGE}'s: "
        f"{V:,} × {d:,} = {V * d:,}.",
    ]  # fmt: skip


def _short(n: int) -> str:
    return f"{n / 1e9:.3g} B" if n >= 10**9 else f"{n / 1e6:.3g} M"


__all__ = ["DOCUMENT", "MODELS", "counts", "notes", "table", "to_json"]
