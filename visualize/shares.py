"""Where the parameters live, as SVG: bars by component and weight, and an icicle of the names. Areas are the counts."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tensorgraph.dims import evaluate, free
from tensorgraph.errors import SizeError
from tensorgraph.visualize.escape import clean, shorten
from tensorgraph.visualize.theme import FONTS, Kind, Style, Theme, find_theme

if TYPE_CHECKING:
    from tensorgraph.visualize.ledger import Ledger, Row

_EM = 0.6  # mean width of a character in the widest fonts a reader may have, in em
_GENERIC = re.compile(r"\.(weight|bias|kernel|scale|gamma|beta)$")
_MANY = re.compile(r"(?:^|(?<=\.))(?:\d+(?:…\d+)?|\{[\d…, ]+\})(?:\.|$)")  # the numbers of layers in a name
_DASH = {"solid": "", "dashed": ' stroke-dasharray="5 2"', "dotted": ' stroke-dasharray="1 4"'}


@dataclass
class Part:
    """A weight, or what lies below one name, with its count; `kind` is how it is painted."""

    name: str
    count: int = 0
    parts: dict[str, Part] = field(default_factory=dict)
    states: set[bool] = field(default_factory=set)
    times: str = ""

    def kind(self, modes: bool) -> Kind:
        """Painted as in the flowchart: by whether it is trained, where some weights are not."""
        if not modes:
            return "weight"
        return "mixed" if len(self.states) == 2 else "trained" if True in self.states else "frozen"


def bars(ledger: Ledger, theme: str = "seed") -> str:
    """SVG: a bar for every component, and one for every kind of weight in it; all on one scale.

    Raises SizeError [TG016] if some size is open, GraphError [TG381] for an unknown theme.
    """
    paint, modes = find_theme(theme), _modes(ledger)
    groups = []
    plain = {r: _GENERIC.sub("", _MANY.sub("", r.name)) for r in ledger.folded() if r.tied_to is None}
    columns = zip(*(n.split(".")[:-1] for n in plain.values()), strict=False)
    above = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    skip = sum(len(column[0]) + 1 for column in above)  # what all names begin with says nothing
    for component, rows in ledger.by_component().items():
        parts: dict[str, Part] = {}
        for r in (r for r in plain if r.component == component):
            name = plain[r][skip:]
            part = parts.setdefault(name, Part(name, times=_times(ledger, r)))
            part.count += _count(ledger, r)
            part.states.add(r.trained)
        shown = [p for p in parts.values() if p.count]
        groups.append((Part(component, sum(_count(ledger, r) for r in rows)), shown))
    whole = sum(part.count for part, _ in groups)
    left = 24 + max([_wide(_short(p), 12) for _, parts in groups for p in parts] + [120])
    most, right = 420.0, 190
    scale = most / max([p.count for _, parts in groups for p in parts] + [1])
    page = _Page(paint, left + most + right, ledger, whole)
    for part, weights in groups:
        page.y += 26
        page.text(24, page.y, part.name, 13, bold=True)
        page.text(left + 6, page.y, f"{_human(part.count)} · {_share(part.count, whole)}", 13, bold=True)
        page.y += 8
        for p in weights:
            style = paint.boxes[p.kind(modes)]
            tip = f"{p.name}: {p.count:,} parameters, {_share(p.count, whole)}"
            page.text(left - 6, page.y + 13, _short(p), 12, anchor="end", colour=paint.muted)
            page.rect(left + 6, page.y + 1, max(p.count * scale, 0.5), 15, style, tip)
            page.text(left + 12 + p.count * scale, page.y + 13, _human(p.count), 12, colour=paint.muted)
            page.y += 20
    page.legend({p.kind(modes) for _, parts in groups for p in parts}, modes)
    return page.svg()


def icicle(ledger: Ledger, theme: str = "seed", height: float = 560) -> str:
    """SVG: the tree of names from left to right, every height the share of the whole; equal layers stand once, ×N.

    What is lower than half a pixel is left out, and the picture says of how much. Raises as `bars` does.
    """
    paint, modes = find_theme(theme), _modes(ledger)
    root = _tree(ledger)
    wide, top = 190.0, 52.0
    columns = _depth(root)
    page = _Page(paint, 48 + wide * columns, ledger, root.count)
    scale = height / max(root.count, 1)
    lost, kinds = 0, set()
    stack: list[tuple[Part, int, float]] = [(root, 0, top)]
    while stack:
        part, column, y = stack.pop()
        tall = part.count * scale
        if tall < 0.5:
            lost += part.count
            continue
        leaf, kind = not part.parts, part.kind(modes)
        kinds |= {kind} if leaf else set()
        style = paint.boxes[kind] if leaf else Style(paint.frame_fill, paint.frame, paint.text, width=0.8)
        x, tip = 24 + wide * column, f"{part.name}: {part.count:,} parameters, {_share(part.count, root.count)}"
        page.rect(x, y, wide * (columns - column if leaf else 1) - 2, max(tall - 1.5, 0.5), style, tip)
        room = wide * (columns - column if leaf else 1) - 18
        count = f"{_human(part.count)} · {_share(part.count, root.count)}"
        size = 12 if tall >= 17 else 10
        if tall >= 34:
            page.text(x + 8, y + tall / 2 - 3, _fit(_short(part), room, size), size, colour=style.text)
            page.text(x + 8, y + tall / 2 + 11, _fit(count, room, 11), 11, colour=style.text)
        elif tall >= 13:
            both = f"{_short(part)} · {_human(part.count)}"
            page.text(x + 8, y + tall / 2 + 3.5, _fit(both, room, size), size, colour=style.text)
        for child in part.parts.values():
            stack.append((child, column + 1, y))
            y += child.count * scale
    page.y = top + height
    page.legend(kinds, modes, f"too low to draw: {_share(lost, root.count)} of the parameters" if lost else "")
    return page.svg()


# -- counts and names


def _count(ledger: Ledger, r: Row) -> int:
    if not free(r.count) <= ledger.binding.keys():
        raise SizeError("TG016", f"{r.name} has open sizes: {ledger.sizes(r)}", hint="give their sizes")
    return evaluate(r.count, ledger.binding)


def _modes(ledger: Ledger) -> bool:
    return any(not r.trained for r in ledger.rows)


def _times(ledger: Ledger, r: Row) -> str:
    repeats = evaluate(r.repeats, ledger.binding) if free(r.repeats) <= ledger.binding.keys() else 1
    return f"×{r.times * repeats}" if r.times * repeats > 1 else ""


def _tree(ledger: Ledger) -> Part:
    """Names as a tree; a name with one name below it is joined with that, a weight and its bias are one."""
    root = Part(ledger.model)
    for r in ledger.folded():
        at, count = root, _count(ledger, r)
        root.count += count
        root.states.add(r.trained)
        if count:
            for name in _GENERIC.sub("", r.name).replace("{}", "*").split("."):
                at = at.parts.setdefault(
                    name, Part(name, times=_times(ledger, r) if "…" in name or "{" in name else "")
                )
                at.count += count
                at.states.add(r.trained)
    stack = [root]
    while stack:
        part = stack.pop()
        while len(part.parts) == 1:
            (child,) = part.parts.values()
            if part is not root:
                part.name = f"{part.name}.{child.name}"
            part.parts = child.parts
            part.times = part.times or child.times
        stack += part.parts.values()
    return root


def _depth(root: Part) -> int:
    deepest, stack = 1, [(root, 1)]
    while stack:
        part, depth = stack.pop()
        deepest = max(deepest, depth)
        stack += [(child, depth + 1) for child in part.parts.values()]
    return deepest


def _short(part: Part) -> str:
    """A name with its multiplicity; of a long one the end, which tells more."""
    text = f"{clean(part.name)} {part.times}".strip()
    return text if len(text) <= 44 else f"…{text[-43:]}"


def _human(n: int) -> str:
    from tensorgraph.visualize.words import human

    return human(n)


def _share(part: int, whole: int) -> str:
    percent = 100 * part / whole if whole else 0.0
    return "<0.1 %" if 0 < percent < 0.05 else f"{percent:.1f} %"


def _wide(text: str, size: float) -> float:
    return _EM * size * len(text)


def _fit(text: str, room: float, size: float) -> str:
    return shorten(text, max(int(room / (_EM * size)), 2))


# -- the page


class _Page:
    """SVG text, written downwards; `y` is where the next line begins."""

    def __init__(self, paint: Theme, width: float, ledger: Ledger, whole: int) -> None:
        from tensorgraph.visualize.words import human4

        self.paint, self.y = paint, 30.0
        self.title = f"{clean(ledger.model)} · {human4(whole)} parameters"
        self.width = max(width, 48 + _wide(self.title, 15))
        self.parts: list[str] = []
        self.text(24, self.y, self.title, 15, bold=True)

    def text(self, x: float, y: float, text: str, size: float, bold: bool = False, anchor: str = "start",
             colour: str = "") -> None:  # fmt: skip
        look = ' font-weight="bold"' if bold else ""
        look += f' text-anchor="{anchor}"' if anchor != "start" else ""
        fill = colour or self.paint.text
        said = html.escape(clean(text))
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{fill}"{look}>{said}</text>')

    def rect(self, x: float, y: float, width: float, height: float, style: Style, tip: str = "") -> None:
        said = f"<title>{html.escape(clean(tip))}</title>" if tip else ""
        line = min(style.width, height / 3)
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" fill="{style.fill}" '
            f'stroke="{style.stroke}" stroke-width="{line:.2g}"{_DASH[style.border]}>{said}</rect>'
        )

    def legend(self, kinds: Iterable[Kind], modes: bool, note: str = "") -> None:
        self.y += 24
        meaning: Mapping[Kind, str] = {"trained": "trained", "frozen": "frozen", "mixed": "partly trained"}
        for kind in (k for k in meaning if modes and k in kinds):
            self.rect(24, self.y - 9, 20, 10, self.paint.boxes[kind])
            self.text(50, self.y, meaning[kind], 11, colour=self.paint.muted)
            self.y += 17
        if note:
            self.text(24, self.y, note, 11, colour=self.paint.muted)
            self.y += 17

    def svg(self) -> str:
        said, size = html.escape(self.title), f"{self.width:.0f} {self.y:.0f}"
        width, height = size.split()
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{width}" height="{height}" '
                f'role="img" aria-label="{said}" font-family="{FONTS}">',
                f'<title>{said}</title><rect width="{width}" height="{height}" fill="{self.paint.page}"/>',
                *self.parts,
                "</svg>",
                "",
            ]
        )


__all__ = ["bars", "icicle"]
