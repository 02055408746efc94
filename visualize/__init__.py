"""Pictures of graphs: a projection makes a `View`, a `Picture` draws it as SVG, PNG, Mermaid, DOT or text."""

from __future__ import annotations

from tensorgraph.visualize.draw import LEVELS, draw
from tensorgraph.visualize.ledger import Ledger
from tensorgraph.visualize.picture import Picture
from tensorgraph.visualize.theme import THEMES
from tensorgraph.visualize.view import SEED_LEGEND, Block, Box, Edge, View, Weight
from tensorgraph.visualize.weights import ledger

__all__ = [
    "LEVELS",
    "SEED_LEGEND",
    "THEMES",
    "Block",
    "Box",
    "Edge",
    "Ledger",
    "Picture",
    "View",
    "Weight",
    "draw",
    "ledger",
]
