"""Published configurations by name: data, in presets.json."""

from __future__ import annotations

import difflib
import functools
import json
from pathlib import Path
from typing import Any

from tensorgraph.errors import ModelError


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    text = Path(__file__).with_name("presets.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = json.loads(text)
    return table


def names() -> list[str]:
    """The names of all presets."""
    return list(_table())


def config(name: str) -> dict[str, Any]:
    """The config of a preset: "architectures" and what differs from that architecture's defaults.

    Raises ModelError[TG910] with the nearest names.
    """
    table = _table()
    if name not in table:
        near = difflib.get_close_matches(name, table, 3, 0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "`tensorgraph list` and models.presets.names() say which"
        raise ModelError("TG910", f"unknown model {name!r}", hint=hint)
    return dict(table[name])


__all__ = ["config", "names"]
