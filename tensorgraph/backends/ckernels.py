"""What kernels of their own in C have in common: how they read their arrays, loop and are dealt out to threads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ..dims import Dim, Shape
from ..passes.fuse import Step
from ..passes.layout import Layout, collapse, layout, zero
from ..passes.program import Value
from .cgen import c_type

OPEN = "    const int64_t *const s = c->s; (void)s; (void)block; (void)w;"


class Kernels:
    """Statements for a step that is no region; None if C has no way to do it."""

    scratch: list[Dim]  # bytes that a step needs for each thread

    def size(self, d: Any) -> str:
        raise NotImplementedError

    def pointer(self, root: Value) -> str:
        raise NotImplementedError

    def _function(self, body: list[str]) -> str:
        raise NotImplementedError

    def special(self, step: Step) -> list[str] | None:
        piece = step.pieces[0]
        if piece.kind != "special":
            return None
        found: list[str] | None = getattr(self, "_" + piece.name)(piece, step)
        return found

    # -- parts of statements
    def _read(self, v: Value) -> tuple[str, Layout]:
        """A pointer to the first element, and the layout."""
        at = layout(v)
        text = f"({c_type(v.root.dtype)} *){self.pointer(v.root)}"
        return (text if zero(at.offset) else f"({text} + {self.size(at.offset)})"), at

    def _axes(self, at: Layout, shape: Shape) -> tuple[str, str] | None:
        """(size, stride) of some axes taken as one; None if no stride serves all."""
        axes = collapse(list(zip(shape, at.strides, strict=True)))
        if len(axes) > 1:
            return None
        return (self.size(axes[0][0]), self.size(axes[0][1])) if axes else ("1", "0")

    def _cut(self, at: Layout, shape: Shape, *cuts: int) -> list[tuple[str, str]] | None:
        """An array's axes in groups, each taken as one."""
        out: list[tuple[str, str]] = []
        for a, b in itertools.pairwise([0, *cuts, len(shape)]):
            found = self._axes(at._replace(strides=at.strides[a:b]), shape[a:b])
            if found is None:
                return None
            out.append(found)
        return out

    def _parallel(self, args: list[str], body: list[str], n: str, work: str) -> list[str]:
        f = self._function([OPEN, *["    " + x for x in body], "}"])
        return [f"{{ void *const a[] = {{{', '.join(args)}}};", f"  tg_run(c, {f}, a, {n}, tg_parts(c, {work}), 1); }}"]

    def _once(self, args: list[str], body: list[str]) -> list[str]:
        """A call of a function with this body: what is done alike in every layer is compiled once."""
        f = self._function([OPEN, *["    " + x for x in body], "}"])
        return [f"{{ void *const a[] = {{{', '.join(args)}}}; {f}(c, a, 0, 1, 0, c->w); }}"]

    def _nest(self, shape: Sequence[Dim], body: str, first: int = 0) -> str:
        """Loops over a shape from axis `first` on, indices i0, i1, ..."""
        loops = [f"for (int64_t i{n} = 0; i{n} < {self.size(shape[n])}; i{n}++)" for n in range(first, len(shape))]
        return " ".join([*loops, body])

    def _index(self, strides: Sequence[Dim]) -> str:
        return " + ".join(f"i{n} * {self.size(s)}" for n, s in enumerate(strides) if not zero(s)) or "0"


__all__ = ["OPEN", "Kernels"]
