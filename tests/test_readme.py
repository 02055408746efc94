"""The README's outputs are what its commands print today."""

from __future__ import annotations

import pytest
from readme import DURATION, ROOT, fresh, pictures, stale, stale_pictures


@pytest.mark.slow
def test_readme_is_fresh(tmp_path):
    old = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not stale(old, fresh(old, tmp_path)), "run `python tests/readme.py` and read what changed"
    made = pictures(old, tmp_path)
    assert made and not stale_pictures(made)


def test_durations_are_compared_as_durations():
    assert DURATION.sub("#", "built in 293 ms, 1.5s") == "built in # ms, #s"
    assert stale("a 3 ms\nb 4", "a 5 ms\nb 4") == []
    assert stale("a 3 nodes", "a 5 nodes") == ["- a 3 nodes\n+ a 5 nodes"]


def test_blocks_are_run(tmp_path):
    text = "```python\nprint(6 * 7)\n```\n\n```text\nold\n```\n\n```console\n$ echo hello\nold\n```\n"
    assert (
        fresh(text, tmp_path)
        == "```python\nprint(6 * 7)\n```\n\n```text\n42\n```\n\n```console\n$ echo hello\nhello\n```\n"
    )


def test_pictures_of_examples_are_compared(tmp_path):
    (tmp_path / "gpt2.svg").write_text('<svg><rect fill="red"/><text>gpt2</text></svg>', encoding="utf-8")
    made = pictures("![GPT-2](visualize/gallery/gpt2.svg) and ![another](visualize/gallery/none.svg)", tmp_path)
    assert list(made) == [ROOT / "visualize/gallery/gpt2.svg"]
    assert stale_pictures(made) == ["visualize/gallery/gpt2.svg shows something else"]
    right = (ROOT / "visualize/gallery/gpt2.svg").read_text(encoding="utf-8")
    assert stale_pictures({ROOT / "visualize/gallery/gpt2.svg": right}) == []
