"""A view in characters that a font has: what it lacks is given as its code, `U+65E5`, so that nothing is lost unseen.

An SVG leaves the choice of a font to its reader; PNG and PDF bring their own, of Latin, Greek, Cyrillic and symbols.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from tensorgraph.visualize.escape import clean
from tensorgraph.visualize.view import Box, View


def printable(view: View, has: Container[int]) -> View:
    """The view with every text in the characters whose code points the font `has`; itself if it is so already."""

    def shown(text: str) -> str:
        return "".join(c if ord(c) in has else f"U+{ord(c):04X}" for c in clean(text))

    def boxed(box: Box) -> Box:
        weights = tuple(
            replace(w, name=shown(w.name), shape=shown(w.shape), tied_to=w.tied_to and shown(w.tied_to))
            for w in box.weights
        )
        return replace(box, label=shown(box.label), lines=tuple(map(shown, box.lines)), weights=weights)

    texts = [view.title, view.legend, view.values_label]
    texts += [text for b in view.boxes for text in (b.label, *b.lines, *(x for w in b.weights for x in w.texts))]
    texts += [text for b in view.blocks for text in (b.title, b.times, b.note)] + [e.label for e in view.edges]
    if all(ord(c) in has for text in texts for c in clean(text)):
        return view
    return replace(
        view,
        title=shown(view.title),
        legend=shown(view.legend),
        values_label=shown(view.values_label),
        boxes=tuple(map(boxed, view.boxes)),
        blocks=tuple(replace(b, title=shown(b.title), times=shown(b.times), note=shown(b.note)) for b in view.blocks),
        edges=tuple(replace(e, label=shown(e.label)) for e in view.edges),
    )


__all__ = ["printable"]
