"""A picture of a view in every format: made once, when first asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Container
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tensorgraph.errors import GraphError
from tensorgraph.visualize import engine as graphviz
from tensorgraph.visualize.dot import GAP, box_width, edge_width, titles, to_dot
from tensorgraph.visualize.escape import clean
from tensorgraph.visualize.files import write
from tensorgraph.visualize.mermaid import to_mermaid
from tensorgraph.visualize.pdf import characters, to_pdf
from tensorgraph.visualize.printable import printable
from tensorgraph.visualize.rows import Rows, broken
from tensorgraph.visualize.stack import laid_out
from tensorgraph.visualize.terminal import to_text
from tensorgraph.visualize.theme import find_theme
from tensorgraph.visualize.tikz import to_tikz
from tensorgraph.visualize.view import View

SUFFIXES = (".svg", ".png", ".pdf", ".tex", ".mmd", ".mermaid", ".dot", ".gv", ".txt")
_SCALE, _LONGEST = 2.0, 16_000  # PNG pixels per CSS pixel; no side longer than this, which viewers still open


class Picture:
    """A view in a theme: `.svg`, `.png`, `.pdf`, `.tikz`, `.mermaid`, `.dot`, `.text`, and `.save(path)`.

    `shapes` draws the labels of edges; `engine` is "auto", "dot" or "graphviz-pure" (the same bytes on every machine).
    Raises GraphError [TG381] for an unknown theme.
    """

    def __init__(
        self, view: View, *, theme: str = "seed", shapes: bool = False, engine: graphviz.Engine = "auto"
    ) -> None:
        find_theme(theme)
        self.view, self.theme, self.shapes, self.engine = view, theme, shapes, engine

    @cached_property
    def dot(self) -> str:
        """DOT text of the whole in one row; SVG and what is made of it are laid out by `rows`."""
        return to_dot(self.view, self.theme, self.shapes)

    @cached_property
    def mermaid(self) -> str:
        """Mermaid text; raises GraphError [TG385] for a graph too large for GitHub."""
        return to_mermaid(self.view, self.theme, self.shapes)

    @cached_property
    def text(self) -> str:
        """Plain text for a terminal."""
        return to_text(self.view, self.shapes)

    @cached_property
    def rows(self) -> Rows:
        """The view in rows that a page holds."""
        said: dict[str, float] = {}  # what stands on the edges before each box
        for edge in self.view.edges:
            wide = edge_width(edge, self.shapes)
            said[edge.target] = max(wide, said.get(edge.target, 0.0))
        return broken(self.view, lambda box, view: box_width(box, view) + said.get(box.id, 0.0), GAP)

    @cached_property
    def _placed(self) -> str:
        """DOT text with every place in it, if the picture has several rows; else ""."""
        return laid_out(self.rows, self.theme, self.shapes, self.engine) if len(self.rows.frames) > 1 else ""

    @cached_property
    def svg(self) -> str:
        """SVG text; raises GraphError [TG382]..[TG384] if Graphviz cannot make it."""
        raw = self._drawn("svg")
        return graphviz.finish_svg(raw, clean(self.view.title), titles(self.rows.view))

    @cached_property
    def _printable(self) -> Picture:
        """The picture in characters that PNG and PDF have."""
        view = printable(self.view, characters())
        return self if view is self.view else Picture(view, theme=self.theme, shapes=self.shapes, engine=self.engine)

    @cached_property
    def layout(self) -> bytes:
        """Graphviz's JSON: where all is; raises as `svg` does."""
        return self._drawn("json")

    def _drawn(self, form: Literal["svg", "png", "json"], dpi: float = 72) -> bytes:
        return graphviz.render(self._placed or self.dot, form, self.engine, dpi, placed=bool(self._placed))

    @cached_property
    def png(self) -> bytes:
        """PNG bytes at twice the size on screen, less for a picture over 16,000 pixels long; raises as `svg` does."""
        width, height = graphviz.svg_size(self._printable.svg)
        dpi = min(96 * _SCALE, 72 * _LONGEST / max(width, height, 1))
        return self._printable._drawn("png", dpi)

    @cached_property
    def pdf(self) -> bytes:
        """PDF bytes: vectors, text that can be selected, the fonts inside. Raises as `svg` does, and [TG394]."""
        return to_pdf(self._printable.svg, clean(self.view.title), clean(self.view.legend))

    @cached_property
    def tikz(self) -> str:
        """A LaTeX document that draws the picture with TikZ; raises as `svg` does."""
        return to_tikz(self._printable.svg)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture in the format of the suffix, at once or not at all; the path written.

        Raises GraphError: [TG386] unknown suffix, [TG387] the file cannot be written, and what the format raises.
        """
        path = Path(path)
        forms: dict[str, Callable[[], str | bytes]] = {
            ".svg": lambda: self.svg,
            ".png": lambda: self.png,
            ".pdf": lambda: self.pdf,
            ".tex": lambda: self.tikz,
            ".txt": lambda: self.text,
            ".mmd": lambda: self.mermaid,
            ".mermaid": lambda: self.mermaid,
            ".dot": lambda: self.dot,
            ".gv": lambda: self.dot,
        }
        if path.suffix.lower() not in forms:
            raise GraphError(
                "TG386",
                f"no picture format is named {path.suffix!r} ({path.name})",
                hint=f"save as one of: {' '.join(SUFFIXES)}",
            )
        write(path, forms[path.suffix.lower()]())
        return path

    def _repr_mimebundle_(
        self, include: Container[str] | None = None, exclude: Container[str] | None = None
    ) -> dict[str, Any]:
        """For notebooks: Mermaid and text, and the SVG if it has been made; no program is called to show a picture."""
        bundle = {"text/plain": self.text}
        with contextlib.suppress(GraphError):
            bundle["text/vnd.mermaid"] = self.mermaid
        if "svg" in self.__dict__:
            bundle["image/svg+xml"] = self.svg
        return {
            k: v
            for k, v in bundle.items()
            if (include is None or k in include) and (exclude is None or k not in exclude)
        }

    def __repr__(self) -> str:
        return f"Picture({self.view.title!r}, {len(self.view.boxes)} boxes, {len(self.view.edges)} edges)"
