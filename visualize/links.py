"""Where boxes lead: a URL template, or a table."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorgraph.errors import GraphError
from tensorgraph.visualize.escape import safe_link

ABOUT = ("label", "op", "path", "component")


def read_links(text: str | None) -> str | dict[str, str] | None:
    """What the command line takes as links: a URL template, or the path of a JSON file with a table of them.

    Raises GraphError[TG396] for a file that cannot be read, or holds no table.
    """
    if text is None or not text.endswith(".json"):
        return text
    try:
        table = json.loads(Path(text).read_bytes())
    except OSError as error:
        raise GraphError("TG396", f"cannot read the links in {text}: {error.strerror or error}") from error
    except ValueError as error:
        raise GraphError("TG396", f"the links in {text} are no JSON: {error}") from error
    if not isinstance(table, dict) or not all(isinstance(link, str) for link in table.values()):
        raise GraphError("TG396", f"{text} is no table of links", hint='{"label or path": "https://...", ...}')
    return table


def check_links(links: Any) -> None:
    """Raise GraphError[TG396] for what is no template or table, a placeholder that is not known, a link not drawn."""
    if links is None:
        return
    table = {"": links} if isinstance(links, str) else links
    if not isinstance(table, Mapping) or not all(isinstance(x, str) for pair in table.items() for x in pair):
        raise GraphError("TG396", f"links are a URL template or a table of them, not {links!r}")
    for link in table.values():
        if isinstance(links, str) and (unknown := set(re.findall(r"{(\w*)}", link)) - set(ABOUT)):
            said = ", ".join("{" + name + "}" for name in sorted(unknown))
            known = ", ".join("{" + name + "}" for name in ABOUT)
            raise GraphError("TG396", f"links know no {said}", hint=f"they fill in {known}")
        if safe_link(link) is None:
            raise GraphError("TG396", f"no picture leads to {link!r}", hint="https://..., http://... or a path")


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


__all__ = ["check_links", "link_for", "read_links"]
