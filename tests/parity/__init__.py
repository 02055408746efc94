"""Parity with transformers: tiny models with seeded random weights, and real files, run in true float64."""
