"""The gallery is what the graphs say today: picture, Mermaid and totals of every preset, byte for byte."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import gallery
import merman
import pytest

SAMPLE = ("gpt2", "llama-3.1-405b", "mixtral-8x7b", "clip-vit-l-14-336", "mini-268", "llama-2-7b, lora")
STALE = "the gallery is stale: make gallery"


@pytest.fixture(scope="module")
def page() -> str:
    return gallery.PAGE.read_text(encoding="utf-8")


def test_every_preset_has_its_section_and_picture(page: str) -> None:
    assert page.startswith(gallery.HEAD)
    assert re.findall("^##+ (.*)$", page, re.MULTILINE) == [gallery.title(*f) for f in gallery.figures()], STALE
    assert {p.name for p in gallery.FOLDER.iterdir()} == {gallery.file(*f) for f in gallery.figures()}, STALE


@pytest.mark.parametrize(
    "figure",
    [pytest.param(f, marks=() if gallery.title(*f) in SAMPLE else pytest.mark.slow) for f in gallery.figures()],
    ids=lambda f: gallery.title(*f),
)
def test_nothing_in_the_gallery_is_stale(figure: tuple[str, str | None], page: str) -> None:
    drawn = gallery.picture(*figure)
    assert gallery.section(drawn, *figure) in page, STALE
    assert (gallery.FOLDER / gallery.file(*figure)).read_text(encoding="utf-8") == drawn.svg, STALE


def test_the_first_picture_suits_dark_pages() -> None:
    assert gallery.DARK.read_text(encoding="utf-8") == gallery.dark().svg, STALE


def test_github_can_read_the_page(page: str) -> None:
    """Oracles: Mermaid's grammar, an XML parser; and no path or line of code of the machine that drew it."""
    charts = re.findall("```mermaid\n(.*?)```", page, re.DOTALL)
    client = merman.Merman()
    assert len(charts) == len(gallery.figures()) and all(client.validate(c, None).valid for c in charts)
    for path in gallery.FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        ET.fromstring(text)
        assert not re.search(r"\.py:\d", text)
