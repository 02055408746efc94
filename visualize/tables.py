"""The forms of a ledger's table: text for a terminal, Markdown, HTML, LaTeX, CSV. No name changes their structure."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tensorgraph.visualize.escape import clean, latex_text

if TYPE_CHECKING:
    from tensorgraph.visualize.ledger import Ledger

_RIGHT = frozenset({5, 6, 9, 10})  # columns of numbers


def tree(ledger: Ledger) -> Any:
    """A `rich` tree: components, and their weights below them."""
    from rich.table import Table
    from rich.text import Text
    from rich.tree import Tree

    _, rows, totals = ledger.table()
    sums = {t[0]: t for t in totals}
    whole = sums["total"]
    root = Tree(Text(" · ".join(p for p in (clean(ledger.model), f"{whole[6]} parameters") if p), style="bold"))
    for component in dict.fromkeys(r[0] for r in rows):
        about = sums.get(f"total {component}", ("",) * 13)
        branch = root.add(Text("  ".join(p for p in (component, about[6], about[7], about[10]) if p)))
        grid = Table.grid(padding=(0, 2))
        for r in (r for r in rows if r[0] == component):
            sizes = f"[{r[2]}]" + (f" ×{r[5]}" if r[5] else "")
            state = r[11] if r[11] != "trained" else ""
            grid.add_row(*(Text(clean(x)) for x in (r[1], sizes, r[6], r[10], state)))
        branch.add(grid)
    root.add(Text(f"trained {sums['trained'][6]}" + (f", frozen {sums['frozen'][6]}" if "frozen" in sums else "")))
    return root


def to_text(ledger: Ledger) -> str:
    """The tree as plain text."""
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=140, color_system=None, legacy_windows=False).print(tree(ledger))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def to_markdown(ledger: Ledger) -> str:
    """A Markdown table."""
    header, rows, totals = ledger.table()
    lines = [
        "| " + " | ".join(header) + " |",
        "|" + "|".join("--:" if i in _RIGHT else "---" for i in range(len(header))) + "|",
    ]
    lines += ["| " + " | ".join(map(_markdown, r)) + " |" for r in rows]
    lines += ["| " + " | ".join(f"**{_markdown(x)}**" if x else "" for x in r) + " |" for r in totals]
    return "\n".join(lines) + "\n"


def to_html(ledger: Ledger) -> str:
    """An HTML table, without style but for the alignment of numbers."""
    header, rows, totals = ledger.table()

    def line(cells: Iterable[str], tag: str) -> str:
        sides = [' style="text-align:right"' if i in _RIGHT else "" for i in range(len(header))]
        parts = zip(sides, cells, strict=True)
        return "<tr>" + "".join(f"<{tag}{side}>{html.escape(clean(x))}</{tag}>" for side, x in parts) + "</tr>"

    body = "\n".join(line(r, "td") for r in rows)
    foot = "\n".join(line(r, "th") for r in totals)
    return (
        f"<table>\n<caption>{html.escape(clean(ledger.model))}</caption>\n<thead>{line(header, 'th')}</thead>\n"
        f"<tbody>\n{body}\n</tbody>\n<tfoot>\n{foot}\n</tfoot>\n</table>\n"
    )


def to_latex(ledger: Ledger) -> str:
    """A LaTeX `tabular` with formulas in mathematics; needs no package."""
    header, rows, totals = ledger.table()
    keep = [i for i, name in enumerate(header) if name in ("component", "weight", "sizes", "×", "count", "share")]
    maths = {i for i, name in enumerate(header) if name in ("sizes", "×")}

    def line(cells: tuple[str, ...]) -> str:
        return " & ".join(_maths(cells[i]) if i in maths else latex_text(cells[i]) for i in keep) + r" \\"

    names = " & ".join(latex_text(header[i]) for i in keep) + r" \\"
    lines = [r"\begin{tabular}{lllrrr}", r"\hline", names, r"\hline"]
    lines += [*(line(r) for r in rows), r"\hline", *(line(r) for r in totals), r"\hline", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def to_csv(ledger: Ledger) -> str:
    """Every weight on a line of its own, unfolded, numbers without separators."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("name", "component", "symbolic_shape", "shape", "count", "dtype", "bytes", "trained",
                     "tied_to", "reading", "used_by"))  # fmt: skip
    for r in ledger.rows:
        cells = (r.name, r.component, ledger.sizes(r), ledger.shape(r), ledger.number(r.count).replace(",", ""),
                 r.dtype.name, ledger.number(r.bytes).replace(",", ""), str(r.trained).lower(), r.tied_to or "",
                 r.reading, " ".join(r.used))  # fmt: skip
        writer.writerow([_cell(c) for c in cells])
    return out.getvalue()


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|~$])", r"\\\1", clean(text))


def _cell(text: str) -> str:
    """A CSV cell that no spreadsheet takes for a formula."""
    text = clean(text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


_POWERS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


def _maths(text: str) -> str:
    """A size as mathematics: `4·d` -> $4 \\cdot d$."""
    if not text:
        return ""
    inner = clean(text).replace("\\", "").replace("$", "").replace("{", "").replace("}", "")
    inner = re.sub(r"([⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)", lambda m: f"^{{{m[1].translate(_POWERS)}}}", inner)
    inner = re.sub(r"[^\W\d]\w+", lambda m: rf"\mathit{{{m[0]}}}".replace("_", r"\_"), inner)
    return "$" + inner.replace("·", r" \cdot ").replace("×", r"\times ").replace("#", r"\#").replace("%", r"\%") + "$"


__all__ = ["to_csv", "to_html", "to_latex", "to_markdown", "to_text", "tree"]
