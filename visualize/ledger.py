"""The ledger: every weight of a model in a table, with totals that add up. Text, Markdown, HTML, LaTeX, CSV, JSON.

Shapes are those stored; the reading (`d → f`) stands beside. A tied weight has a row at each place where it stands and
counts once. Weights whose names differ by numbers only, and that are alike otherwise, are one row, ×N.
"""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorgraph.cost import Tally
from tensorgraph.dims import Dim, evaluate, free, mul, show
from tensorgraph.dtypes import DType
from tensorgraph.errors import GraphError
from tensorgraph.visualize import shares
from tensorgraph.visualize.escape import clean, latex_text
from tensorgraph.visualize.files import write
from tensorgraph.visualize.words import span

COMPONENTS = ("embedding", "vision", "connector", "attention", "mlp", "norm", "head")  # others follow, by name
OTHER = "other"
FORMS = (".txt", ".md", ".html", ".tex", ".csv", ".json", ".svg")
PICTURES = ("bars", "icicle")


@dataclass(frozen=True)
class Row:
    """One stored array, or one more place of it (`tied_to`), or `times` alike in as many layers.

    `count` is what the row adds to the total: nothing if it is tied. `used`: the layers that read it.
    """

    name: str
    shape: tuple[Dim, ...]
    count: Dim
    component: str
    dtype: DType
    trained: bool = True
    tied_to: str | None = None
    reading: str = ""
    used: tuple[str, ...] = ()
    times: int = 1
    repeats: Dim = 1  # of one block that is repeated a symbolic number of times
    active: Dim | None = None  # what one token uses of `count`, if it is not all

    @property
    def bytes(self) -> Dim:
        return mul(self.dtype.size, self.count)


@dataclass(frozen=True)
class Ledger:
    """The weights of a model. `binding` turns formulas into numbers where it has all sizes; `aliases` folds products.

    `buffers` are not weights: tables made of constants, such as rotary positions, and what the model stores untrained.
    `mode` names what decided which weights are trained; its table says of each whether it is.
    """

    model: str
    rows: tuple[Row, ...]
    buffers: tuple[Row, ...] = ()
    binding: Mapping[str, int] = field(default_factory=dict)
    aliases: Mapping[str, Dim] = field(default_factory=dict)
    mode: str = ""

    # -- sums
    @property
    def total(self) -> Dim:
        """All weights, tied ones once."""
        return _sum(r.count for r in self.rows)

    @property
    def trainable(self) -> Dim:
        """Those that are trained."""
        return _sum(r.count for r in self.rows if r.trained)

    @property
    def frozen(self) -> Dim:
        """Those that are not."""
        return _sum(r.count for r in self.rows if not r.trained)

    @property
    def active(self) -> Dim:
        """Those that one token uses: of experts, the ones it is routed to."""
        return _sum(r.count if r.active is None else r.active for r in self.rows)

    @property
    def components(self) -> dict[str, Dim]:
        """The total by component."""
        return {name: _sum(r.count for r in rows) for name, rows in self.by_component().items()}

    def by_component(self) -> dict[str, list[Row]]:
        """Rows by component: the usual ones first, in the order of a forward pass."""
        found: dict[str, list[Row]] = {}
        for r in self.rows:
            found.setdefault(r.component, []).append(r)
        order = [c for c in COMPONENTS if c in found] + sorted(c for c in found if c not in COMPONENTS)
        return {c: found[c] for c in order}

    def blocks(self) -> list[tuple[str, int, Dim]]:
        """Layers in a row that are alike: what they are called (`h.0…11`), how many, and the weights of one."""
        layers: dict[str, dict[int, list[Row]]] = {}
        for r in self.rows:
            if found := re.match(r"((?:[^.\d][^.]*\.)*)(\d+)\.", r.name):
                layers.setdefault(found[1], {}).setdefault(int(found[2]), []).append(r)
        out: list[tuple[str, int, Dim]] = []
        for start, numbered in layers.items():
            before: Any = None
            for number, rows in sorted(numbered.items()):
                kind = [(r.name.removeprefix(f"{start}{number}."), r.shape, r.dtype, r.trained) for r in rows]
                if kind == before:
                    name, times, size = out.pop()
                    first = name.removeprefix(start).split("…")[0]
                    out.append((f"{start}{first}…{number}", times + 1, size))
                else:
                    out.append((f"{start}{number}", 1, _sum(r.count for r in rows)))
                before = kind
        return [block for block in out if block[1] > 1]

    def folded(self) -> list[Row]:
        """Rows of layers that are alike as one: `h.0…11.ln_1.weight`, ×12."""
        groups: dict[Any, list[Row]] = {}
        for r in self.rows:
            pattern = re.sub(r"(?<![^.])\d+(?![^.])", "#", r.name)
            tied = re.sub(r"(?<![^.])\d+(?![^.])", "#", r.tied_to or "")
            key = (pattern, r.shape, r.component, r.dtype, r.trained, tied, r.reading)
            groups.setdefault(key, []).append(r)
        out = []
        for rows in groups.values():
            first = rows[0]
            name = span([r.name for r in rows])
            count = _sum(r.count for r in rows)
            tied_to = span([r.tied_to or "" for r in rows]) or None
            active = None if first.active is None else _sum(r.active for r in rows if r.active is not None)
            out.append(Row(name, first.shape, count, first.component, first.dtype, first.trained, tied_to,
                           first.reading, first.used, len(rows), first.repeats, active))  # fmt: skip
        return out

    # -- words
    def number(self, d: Dim) -> str:
        """`38,597,376`, or the formula if some size is open."""
        known = type(d) is int or free(d) <= self.binding.keys()
        return f"{evaluate(d, self.binding):,}" if known else show(d, self.aliases)

    def formula(self, d: Dim) -> str:
        return show(d, self.aliases)

    def share(self, d: Dim, places: int = 1) -> str:
        """Per cent of the total, if both are numbers."""
        whole = self.total
        if not free(d) | free(whole) <= self.binding.keys():
            return ""
        of = evaluate(whole, self.binding)
        part = 100 * evaluate(d, self.binding) / of if of else 0.0
        least = 10**-places
        return f"<{least:.{places}f} %" if 0 < part < least / 2 else f"{part:.{places}f} %"

    def table(self, every: bool = False) -> tuple[tuple[str, ...], list[tuple[str, ...]], list[tuple[str, ...]]]:
        """Header, rows and totals as text; `every`: no rows folded."""
        header = ("component", "weight", "sizes", "shape", "reading", "×", "count", "formula", "dtype", "bytes",
                  "share", "state", "used by")  # fmt: skip
        rows: list[tuple[str, ...]] = []
        order = {c: i for i, c in enumerate(self.by_component())}
        listed = list(self.rows) if every else self.folded()
        for r in sorted(listed, key=lambda r: order[r.component]):
            state = "trained" if r.trained else "frozen"
            times = mul(r.times, r.repeats)
            rows.append((
                r.component,
                r.name,
                self.sizes(r),
                self.shape(r),
                r.reading,
                "" if type(times) is int and times == 1 else show(times, self.aliases),
                self.number(r.count) if r.tied_to is None else "0",
                self.formula(r.count) if free(r.count) and r.tied_to is None else "",
                r.dtype.short,
                self.number(r.bytes),
                self.share(r.count) if r.tied_to is None else "",
                state if r.tied_to is None else f"tied to {r.tied_to}",
                ", ".join(r.used[:3]),
            ))  # fmt: skip
        blank = ("",) * 4
        for b in self.buffers:
            rows.append(("buffer", b.name, self.sizes(b), self.shape(b), *("",) * 2, "0", "", b.dtype.short, "0", "",
                         b.reading or "computed", ", ".join(b.used[:3])))  # fmt: skip
        whole, trained = self.total, self.trainable
        sums = [(f"total {c}", d) for c, d in self.components.items()]
        sums += [(f"each of {name}", size) for name, _, size in self.blocks()]
        sums += [("total", whole), ("trained", trained)]
        if not _same(whole, trained):
            sums.append(("frozen", self.frozen))
        if not _same(whole, self.active):
            sums.append(("active per token", self.active))
        totals: list[tuple[str, ...]] = [
            (name, "", *blank, self.number(d), self.formula(d) if free(d) else "", "", "", self.share(d), "", "")
            for name, d in sums
        ]
        return header, rows, totals

    def sizes(self, r: Row) -> str:
        """The stored shape in symbols: `d, 4·d`."""
        return ", ".join(show(d, self.aliases) for d in r.shape)

    def shape(self, r: Row) -> str:
        """The stored shape in numbers, if they are known."""
        known = all(free(d) <= self.binding.keys() for d in r.shape)
        return ", ".join(str(evaluate(d, self.binding)) for d in r.shape) if known else ""

    # -- forms
    def to_json(self) -> dict[str, Any]:
        """`{"model", "total", "trainable", "components", "tensors"}`; numbers where sizes are known, else formulas."""

        def number(d: Dim) -> int | str:
            known = type(d) is int or free(d) <= self.binding.keys()
            return evaluate(d, self.binding) if known else show(d, self.aliases)

        tensors = []
        for r in self.rows:
            tensor: dict[str, Any] = {
                "name": r.name,
                "shape": [number(d) for d in r.shape],
                "symbolic_shape": [show(d, self.aliases) for d in r.shape],
                "count": number(r.count),
                "component": r.component,
            }
            tensor |= {"trained": r.trained} if self.mode else {}
            tensors.append(tensor if r.tied_to is None else {**tensor, "tied_to": r.tied_to})
        active = {} if _same(self.total, self.active) else {"active_per_token": number(self.active)}
        return {
            "model": self.model,
            **({"mode": self.mode} if self.mode else {}),
            "total": number(self.total),
            "trainable": number(self.trainable),
            **active,
            "components": {c: number(d) for c, d in self.components.items()},
            "tensors": tensors,
        }

    def tree(self) -> Any:
        """A `rich` tree: components, and their weights below them."""
        from rich.table import Table
        from rich.text import Text
        from rich.tree import Tree

        _, rows, totals = self.table()
        sums = {t[0]: t for t in totals}
        whole = sums["total"]
        root = Tree(Text(" · ".join(p for p in (clean(self.model), f"{whole[6]} parameters") if p), style="bold"))
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

    @property
    def text(self) -> str:
        """The tree as plain text."""
        from rich.console import Console

        out = io.StringIO()
        Console(file=out, width=140, color_system=None, legacy_windows=False).print(self.tree())
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"

    @property
    def markdown(self) -> str:
        """A Markdown table."""
        header, rows, totals = self.table()
        right = {5, 6, 9, 10}
        lines = [
            "| " + " | ".join(header) + " |",
            "|" + "|".join("--:" if i in right else "---" for i in range(len(header))) + "|",
        ]
        lines += ["| " + " | ".join(map(_markdown, r)) + " |" for r in rows]
        lines += ["| " + " | ".join(f"**{_markdown(x)}**" if x else "" for x in r) + " |" for r in totals]
        return "\n".join(lines) + "\n"

    @property
    def html(self) -> str:
        """An HTML table, without style but for the alignment of numbers."""
        header, rows, totals = self.table()
        right = {5, 6, 9, 10}

        def line(cells: Iterable[str], tag: str) -> str:
            sides = [' style="text-align:right"' if i in right else "" for i in range(len(header))]
            parts = zip(sides, cells, strict=True)
            return "<tr>" + "".join(f"<{tag}{side}>{html.escape(clean(x))}</{tag}>" for side, x in parts) + "</tr>"

        body = "\n".join(line(r, "td") for r in rows)
        foot = "\n".join(line(r, "th") for r in totals)
        return (
            f"<table>\n<caption>{html.escape(clean(self.model))}</caption>\n<thead>{line(header, 'th')}</thead>\n"
            f"<tbody>\n{body}\n</tbody>\n<tfoot>\n{foot}\n</tfoot>\n</table>\n"
        )

    @property
    def latex(self) -> str:
        """A LaTeX `tabular` with formulas in mathematics; needs no package."""
        header, rows, totals = self.table()
        keep = [i for i, name in enumerate(header) if name in ("component", "weight", "sizes", "×", "count", "share")]
        maths = {i for i, name in enumerate(header) if name in ("sizes", "×")}

        def line(cells: tuple[str, ...]) -> str:
            return " & ".join(_maths(cells[i]) if i in maths else latex_text(cells[i]) for i in keep) + r" \\"

        names = " & ".join(latex_text(header[i]) for i in keep) + r" \\"
        lines = [r"\begin{tabular}{lllrrr}", r"\hline", names, r"\hline"]
        lines += [*(line(r) for r in rows), r"\hline", *(line(r) for r in totals), r"\hline", r"\end{tabular}"]
        return "\n".join(lines) + "\n"

    @property
    def csv(self) -> str:
        """Every weight on a line of its own, unfolded, numbers without separators."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("name", "component", "symbolic_shape", "shape", "count", "dtype", "bytes", "trained",
                         "tied_to", "reading", "used_by"))  # fmt: skip
        for r in self.rows:
            cells = (r.name, r.component, self.sizes(r), self.shape(r), self.number(r.count).replace(",", ""),
                     r.dtype.name, self.number(r.bytes).replace(",", ""), str(r.trained).lower(), r.tied_to or "",
                     r.reading, " ".join(r.used))  # fmt: skip
            writer.writerow([_cell(c) for c in cells])
        return out.getvalue()

    def bars(self, theme: str = "seed") -> str:
        """Where the parameters live, as SVG: a bar for every weight. Raises SizeError[TG016] for an open size."""
        return shares.bars(self, theme)

    def icicle(self, theme: str = "seed") -> str:
        """Where the parameters live, as SVG: the tree of names, by share. Raises SizeError[TG016] for an open size."""
        return shares.icicle(self, theme)

    def save(self, path: str | os.PathLike[str], picture: str = "bars", theme: str = "seed") -> Path:
        """Write the form of the suffix, in an SVG the `picture` "bars" or "icicle"; the path written.

        Raises GraphError: [TG386] unknown suffix or picture, [TG387] the file cannot be written; and what it draws.
        """
        path = Path(path)
        if picture not in PICTURES:
            raise GraphError("TG386", f"no picture of weights is named {picture!r}", hint=f"{' or '.join(PICTURES)}")
        made = {
            ".txt": lambda: self.text,
            ".md": lambda: self.markdown,
            ".html": lambda: self.html,
            ".tex": lambda: self.latex,
            ".csv": lambda: self.csv,
            ".json": lambda: json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n",
            ".svg": lambda: self.bars(theme) if picture == "bars" else self.icicle(theme),
        }.get(path.suffix.lower())
        if made is None:
            raise GraphError("TG386", f"no table format is named {path.suffix!r}", hint=f"one of: {' '.join(FORMS)}")
        write(path, made())
        return path

    def __str__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text, "text/html": self.html, "text/markdown": self.markdown}


def _sum(sizes: Iterable[Dim]) -> Dim:
    total = Tally()
    for d in sizes:
        total.add(d)
    return total.total()


def _same(a: Dim, b: Dim) -> bool:
    return a is b or (type(a) is int and type(b) is int and a == b)


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


__all__ = ["FORMS", "Ledger", "Row"]
