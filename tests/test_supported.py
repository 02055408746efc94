"""The README says which architectures there are and what each was compared with; every one has its configurations."""

from __future__ import annotations

from supported import OURS, README, compared, written

from tensorgraph.models import ARCHITECTURES


def test_the_table_in_the_readme_is_fresh():
    text = README.read_text(encoding="utf-8")
    assert written(text) == text, "run `python tests/supported.py`"


def test_every_architecture_is_compared():
    assert {cls: n for cls, n in compared().items() if n < 3} == {}
    assert set(compared()) == ARCHITECTURES.keys() - set(OURS)
