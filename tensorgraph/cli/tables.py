"""Tables of the command line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from tensorgraph.dims import Dim, free, mul, show

if TYPE_CHECKING:
    from tensorgraph.cost import Cost
    from tensorgraph.visualize import Ledger
    from tensorgraph.visualize.ledger import Row


def plain(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table without lines; `right` names the columns of numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=name in right)
    return table


def presets(rows: list[dict[str, Any]]) -> Table:
    """A row per preset."""
    table = plain("preset", "parameters", "architecture", right=("parameters",))
    for row in rows:
        frozen = "" if row["trainable"] == row["total"] else f" ({row['trainable']:,} of them trained)"
        table.add_row(row["model"], f"{row['total']:,}", row["architecture"] + frozen)
    return table


def broken(name: str, most: int = 36) -> str:
    """A long name in lines, broken before a dot."""
    lines, indent = [name], " " * (len(name) - len(name.lstrip()) + 2)
    while len(lines[-1]) > most and (at := lines[-1].rfind(".", len(indent) + 1, most)) > 0:
        lines[-1:] = [lines[-1][:at], indent + lines[-1][at:]]
    return "\n".join(lines)


def weights(ledger: Ledger, every: bool = False) -> Table:
    """A row per weight; layers that are alike are one row, ×N, below their name, unless `every`.

    Of a mode, with what it trains.
    """
    told = ("state",) if ledger.mode else ()
    table = plain("weight", "sizes", "shape", "×", "count", "component", *told, right=("×", "count"))
    table.columns[0].no_wrap = True
    rows = list(ledger.rows) if every else ledger.folded()
    groups: dict[str, list[Row]] = {}
    for r in rows:
        layers = re.match(r".*?\d+…\d+\.", r.name)
        groups.setdefault(r.name if every or layers is None else layers[0], []).append(r)
    above = ""
    for group, r in ((g, r) for g, rs in groups.items() for r in rs):
        if r.name != group and group != above:
            table.add_row(Text(broken(group.rstrip("."))))
        above = group if r.name != group else ""
        times = ledger.formula(mul(r.times, r.repeats))
        state = r.component + ("" if r.trained or told else ", frozen")
        trained = Text("trained", "bold") if r.trained else Text("frozen", "dim")
        table.add_row(
            Text(broken("  " * bool(above) + r.name.removeprefix(above))),
            Text(f"[{ledger.sizes(r)}]", style="cyan"),
            Text(f"[{ledger.shape(r)}]" if ledger.shape(r) or not r.shape else ""),
            "" if times == "1" else times,
            "tied" if r.tied_to else ledger.number(r.count),
            Text(f"= {r.tied_to}" if r.tied_to else state),
            *([trained] if told else []),
        )
    return table


def totals(ledger: Ledger) -> Table:
    """Totals by component, with share and formula; then of all, and of those that are trained."""
    table = plain("component", "count", "share", "formula", right=("count", "share"))

    def row(name: str, size: Dim, style: str = "", places: int = 1) -> None:
        formula = Text(ledger.formula(size) if free(size) else "", style="cyan")
        table.add_row(Text(name), ledger.number(size), ledger.share(size, places), formula, style=style)

    for name, size in ledger.components.items():
        row(name, size)
    for name, _, size in ledger.blocks():
        row(broken(f"{name}, each"), size, "dim")
    row("total", ledger.total, "bold")
    if ledger.number(ledger.trainable) != ledger.number(ledger.total):
        row("trainable", ledger.trainable, "bold", 2)
        row("frozen", ledger.frozen)
    if ledger.number(ledger.active) != ledger.number(ledger.total):
        row("active per token", ledger.active, "bold")
    return table


def costs(found: Cost, symbolic: Cost | None = None) -> Table:
    """What a graph costs: counts, FLOPs, bytes; numbers or formulas, and numbers beside the formulas of `symbolic`."""
    known = all(type(d) is int for _, _, d in found.rows())
    formulas = [d for _, _, d in symbolic.rows()] if symbolic is not None and known else []
    both = ("formula",) if any(free(d) for d in formulas) else ()
    table = plain("", "what", "amount", *both, right=("amount",) if known else ())
    above = ""
    for i, (group, what, size) in enumerate(found.rows()):
        amount = f"{size:,}" if type(size) is int else show(size, found.aliases)
        formula = [Text(show(d, found.aliases) if free(d) else "", style="cyan") for d in formulas[i : i + 1] if both]
        table.add_row(Text(group if group != above else "", style="bold"), Text(what), Text(amount), *formula)
        above = group
    return table


__all__ = ["costs", "plain", "presets", "totals", "weights"]
