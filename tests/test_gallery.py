"""The gallery is what the graphs say today: picture, Mermaid and totals of every preset, byte for byte."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import gallery
import merman
import pytest

from tensorgraph.models import presets

SAMPLE = ("gpt2", "llama-3.1-405b", "mixtral-8x7b", "clip-vit-l-14-336", "mini-268")
STALE = "the gallery is stale: make gallery"


@pytest.fixture(scope="module")
def page() -> str:
    return gallery.PAGE.read_text(encoding="utf-8")


def test_every_preset_has_its_section_and_picture(page: str) -> None:
    assert page.startswith(gallery.HEAD)
    assert re.findall("^## (.*)$", page, re.MULTILINE) == presets.names(), STALE
    assert {p.name for p in gallery.FOLDER.iterdir()} == {f"{name}.svg" for name in presets.names()}, STALE


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.slow) for n in presets.names()]
)
def test_nothing_in_the_gallery_is_stale(name: str, page: str) -> None:
    drawn = gallery.picture(name)
    assert gallery.section(name, drawn) in page, STALE
    assert (gallery.FOLDER / f"{name}.svg").read_text(encoding="utf-8") == drawn.svg, STALE


def test_github_can_read_the_page(page: str) -> None:
    """Oracles: Mermaid's grammar, an XML parser; and no path or line of code of the machine that drew it."""
    charts = re.findall("```mermaid\n(.*?)```", page, re.DOTALL)
    client = merman.Merman()
    assert len(charts) == len(presets.names()) and all(client.validate(c, None).valid for c in charts)
    for path in gallery.FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        ET.fromstring(text)
        assert not re.search(r"\.py:\d", text)
