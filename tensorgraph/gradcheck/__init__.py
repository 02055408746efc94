"""Numerical checking of gradients that names the culprit: op, input, layer, line, and why."""

from __future__ import annotations

from .check import check_grads
from .finite import Nonfinite, first_nonfinite
from .outside import check_function, check_jax, check_torch
from .report import Entry, Report

__all__ = [
    "Entry",
    "Nonfinite",
    "Report",
    "check_function",
    "check_grads",
    "check_jax",
    "check_torch",
    "first_nonfinite",
]
