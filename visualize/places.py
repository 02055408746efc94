"""Where everything is: read from Graphviz's JSON, moved, and given back as attributes of DOT."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tensorgraph.visualize.view import View

Point = tuple[float, float]
Rect = tuple[float, float, float, float]  # left, bottom, right, top: y grows upwards, as in Graphviz

MARGIN, BETWEEN = 12.0, 20.0  # points around what lies in a frame, and between rows


@dataclass
class Places:
    """Boxes, edges (by any key) and frames of a picture; `headings`: of each frame, from its upper left corner."""

    boxes: dict[str, Point] = field(default_factory=dict)
    sizes: dict[str, Point] = field(default_factory=dict)
    curves: dict[Any, list[Point]] = field(default_factory=dict)
    tips: dict[Any, Point] = field(default_factory=dict)  # where an arrow ends
    labels: dict[Any, Point] = field(default_factory=dict)
    frames: dict[str, Rect] = field(default_factory=dict)
    headings: dict[str, Point] = field(default_factory=dict)
    title: Point = (0.0, 0.0)  # width and height
    legend: Point = (0.0, 0.0)

    def left(self, box: str) -> float:
        """The left border of a box."""
        return self.boxes[box][0] - self.sizes[box][0] / 2

    def extent(self) -> Rect:
        """The rectangle that holds everything but title and legend."""
        rects = [*self.frames.values()]
        rects += [(x, y, x, y) for curve in self.curves.values() for x, y in curve]
        for box, (x, y) in self.boxes.items():
            w, h = self.sizes[box]
            rects.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        left, bottom, right, top = zip(*rects, strict=True)
        return min(left), min(bottom), max(right), max(top)

    def moved(self, dx: float, dy: float) -> Places:
        """The same, elsewhere."""

        def at(p: Point) -> Point:
            return p[0] + dx, p[1] + dy

        return replace(
            self,
            boxes={k: at(p) for k, p in self.boxes.items()},
            curves={k: [at(p) for p in c] for k, c in self.curves.items()},
            tips={k: at(p) for k, p in self.tips.items()},
            labels={k: at(p) for k, p in self.labels.items()},
            frames={
                k: (left + dx, low + dy, right + dx, top + dy) for k, (left, low, right, top) in self.frames.items()
            },
        )

    def add(self, other: Places) -> None:
        """Take in what another picture holds; a frame in both becomes one that holds both parts."""
        for name in ("boxes", "sizes", "curves", "tips", "labels"):
            getattr(self, name).update(getattr(other, name))
        for frame, rect in other.frames.items():
            self.widen(frame, rect)
            self.headings.setdefault(frame, other.headings.get(frame, (0.0, 0.0)))

    def widen(self, frame: str, rect: Rect) -> None:
        """Make a frame hold a rectangle as well."""
        a = self.frames.get(frame, rect)
        self.frames[frame] = min(a[0], rect[0]), min(a[1], rect[1]), max(a[2], rect[2]), max(a[3], rect[3])

    def attributes(self, view: View) -> dict[str, dict[str, str]]:
        """DOT's attributes for the names of a view's DOT text; the page's lower left corner is the origin."""
        left, bottom, right, top = self.extent()
        (tw, th), (lw, lh) = self.title, self.legend
        p = self.moved(-left, lh + BETWEEN - bottom)
        wide, high = max(right - left, tw, lw), lh + BETWEEN + top - bottom + BETWEEN + th
        out = {
            "": {"bb": _text((0, 0, wide, high)), "lp": _text((lw / 2, lh / 2))},
            "cluster_page": {"bb": _text((0, lh, wide, high)), "lp": _text((tw / 2, high - th / 2))},
        }
        for i, box in enumerate(view.boxes):
            w, h = p.sizes[box.id]
            out[f"n{i}"] = {"pos": _text(p.boxes[box.id]), "width": f"{w / 72:.4f}", "height": f"{h / 72:.4f}"}
        for i, curve in p.curves.items():
            tip = f"e,{_text(p.tips[i])} " if i in p.tips else ""
            out[f"e{i}"] = {"pos": tip + " ".join(map(_text, curve))}
            if i in p.labels:
                out[f"e{i}"]["lp"] = _text(p.labels[i])
        for i, block in enumerate(view.blocks):
            if block.id in p.frames:
                rect, (dx, dy) = p.frames[block.id], p.headings[block.id]
                out[f"cluster_b{i}"] = {"bb": _text(rect), "lp": _text((rect[0] + dx, rect[3] - dy))}
        return out


def read_places(made: bytes, view: View, keys: Sequence[Any]) -> Places:
    """What Graphviz's JSON says of a view; `keys`: what each edge is known by, None for one that only held places."""
    data: Mapping[str, Any] = json.loads(made)
    out = Places(legend=_size(data))
    for o in data["objects"]:
        name = o["name"]
        if name == "cluster_page":
            out.title = _size(o)
        elif "pos" in o and name.startswith("n"):
            box = view.boxes[int(name[1:])].id
            (out.boxes[box],) = _points(o["pos"])
            out.sizes[box] = 72 * float(o["width"]), 72 * float(o["height"])
        elif name.startswith("cluster_b"):
            block = view.blocks[int(name[9:])].id
            left, bottom, right, top = map(float, o["bb"].split(","))
            out.frames[block] = left, bottom, right, top
            for x, y in _points(o["lp"]) if "lp" in o else ():
                out.headings[block] = x - left, top - y
    for e in data.get("edges", ()):
        key = keys[int(e["id"][1:])]
        if key is None:
            continue
        curve = e["pos"]
        if curve.startswith("e,"):
            tip, _, curve = curve.partition(" ")
            (out.tips[key],) = _points(tip[2:])
        out.curves[key] = _points(curve)
        if "lp" in e:
            (out.labels[key],) = _points(e["lp"])
    return out


def _size(o: Mapping[str, Any]) -> Point:
    return 72 * float(o.get("lwidth", 0)), 72 * float(o.get("lheight", 0))


def _points(text: str) -> list[Point]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split(" "))]


def _text(numbers: Iterable[float]) -> str:
    return ",".join(f"{x:.2f}" for x in numbers)


__all__ = ["BETWEEN", "MARGIN", "Places", "Point", "Rect", "read_places"]
