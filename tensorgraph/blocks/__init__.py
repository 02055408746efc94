"""Repeated blocks, found by structure: what is equal is kept once, with how often it occurs. The only owner of folding.

A graph is cut at its layer openings (scopes). Each opening is given a `Form`: its nodes in a canonical order, what
they are (op, attributes, shape, dtype) and what they read, every value from outside being a numbered slot. No name,
label or path enters a form. Forms are interned, so two openings are equal iff their forms are the same object. In the
sequence of a form's steps, stretches that repeat as a chain (each takes something from the one before) are folded.
"""

from __future__ import annotations

from .folding import Fold, Row, fold, unfold
from .forms import Affine, Form, Kind, Layer, Part, Repeat, Slot, Step, nodes_of, parts_of
from .words import difference, item_name, left_out, namesake, pattern_text, trait

__all__ = [
    "Affine", "Fold", "Form", "Kind", "Layer", "Part", "Repeat", "Row", "Slot", "Step", "difference", "fold",
    "item_name", "left_out", "namesake", "nodes_of", "parts_of", "pattern_text", "trait", "unfold",
]  # fmt: skip
