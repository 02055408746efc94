"""Numerical checking of gradients that names the culprit: op, input, layer, line, and why."""

from __future__ import annotations

from .check import check_grads
from .finite import Nonfinite, first_nonfinite
from .report import Entry, Report

__all__ = ["Entry", "Nonfinite", "Report", "check_grads", "first_nonfinite"]
