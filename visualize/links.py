"""Where boxes lead: a URL template, or a table."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path

from tensorgraph.errors import GraphError


def read_links(text: str | None) -> str | dict[str, str] | None:
    """What the command line takes as links: a URL template, or the path of a JSON file with a table of them.

    Raises GraphError[TG396] for a file that holds no table.
    """
    if text is None or not text.endswith(".json"):
        return text
    try:
        table = json.loads(Path(text).read_bytes())
    except (OSError, ValueError) as error:
        raise GraphError("TG396", f"cannot read the links in {text}: {error}") from error
    if not isinstance(table, dict) or not all(isinstance(link, str) for link in table.values()):
        raise GraphError("TG396", f"{text} is no table of links", hint='{"label or path": "https://...", ...}')
    return table


def link_for(links: str | Mapping[str, str] | None, **about: str) -> str | None:
    """A box's link: from a table by label or path (with `*`), or a template with {label}, {op}, {path}, {component}."""
    if links is None:
        return None
    if isinstance(links, str):
        for key, value in about.items():
            links = links.replace("{" + key + "}", value)
        return links
    for key, value in links.items():
        if key == about["label"] or fnmatch.fnmatchcase(about["path"], key):
            return value
    return None


__all__ = ["link_for", "read_links"]
