"""The ledger: every weight of a model in a table, with totals that add up.

Shapes are those stored; the reading (`d → f`) stands beside. Of a module, a tied weight has a row at each place where
it stands, and counts once; a graph knows one name of it, and who reads it. Weights whose names differ by numbers only,
and that are alike otherwise, are one row, ×N.
"""

from __future__ import annotations

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
from tensorgraph.visualize import shares, tables
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
        """Layers in a row whose weights are alike: their name (`h.0…11`), how many they are, and the weights of one."""
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
        return tables.tree(self)

    @property
    def text(self) -> str:
        """The tree as plain text."""
        return tables.to_text(self)

    @property
    def markdown(self) -> str:
        """A Markdown table."""
        return tables.to_markdown(self)

    @property
    def html(self) -> str:
        """An HTML table, without style but for the alignment of numbers."""
        return tables.to_html(self)

    @property
    def latex(self) -> str:
        """A LaTeX `tabular` with formulas in mathematics; needs no package."""
        return tables.to_latex(self)

    @property
    def csv(self) -> str:
        """Every weight on a line of its own, unfolded, numbers without separators."""
        return tables.to_csv(self)

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
            ".json": lambda: json.dumps(self.to_json(), indent=1) + "\n",
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


__all__ = ["FORMS", "Ledger", "Row"]
