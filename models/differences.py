"""What is said of tensors that do not fit a model: names that differ by numbers alone are one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ROOM = 8  # lines of an error for tensors
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


class Difference(NamedTuple):
    """One tensor that does not fit: what is wrong, its name, and more about it."""

    kind: str
    name: str
    about: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name} {self.about}".rstrip()


def summary(differences: Iterable[Difference]) -> list[str]:
    """A line per tensor, or per name but for its numbers, or per beginning of names: as many as there is room for."""
    found = sorted(differences)
    for by in (lambda d: d, lambda d: (d.kind, _pattern(d.name), d.about), lambda d: (d.kind, _start(d.name))):
        groups: dict[object, list[Difference]] = {}
        for d in found:
            groups.setdefault(by(d), []).append(d)
        if len(groups) <= ROOM:
            break
    return [_line(group) for group in groups.values()]


def _pattern(name: str) -> str:
    return NUMBER.sub("{}", name)


def _start(name: str) -> str:
    """The name up to its first number, or its first part."""
    before, hole, _ = _pattern(name).partition("{}")
    return before + hole if hole else before.partition(".")[0]


def _line(group: Sequence[Difference]) -> str:
    first, patterns = group[0], {_pattern(d.name) for d in group}
    if len(group) == 1:
        return str(first)
    if len(patterns) > 1:
        return f"{first.kind}: {_filled(_start(first.name), [d.name for d in group])}.…  ×{len(group)}"
    about = first.about if len({d.about for d in group}) == 1 else ""
    return f"{first.kind}: {_filled(patterns.pop(), [d.name for d in group])} {about}".rstrip() + f"  ×{len(group)}"


def _filled(pattern: str, names: Iterable[str]) -> str:
    """The pattern with the numbers that stand in each of its holes."""
    columns = zip(*(map(int, NUMBER.findall(name)[: pattern.count("{}")]) for name in names), strict=True)
    parts = pattern.split("{}")
    return "".join(part + hole for part, hole in zip(parts, [*map(_ranges, columns), ""], strict=True))


def _ranges(numbers: Iterable[int]) -> str:
    """{0…3,7} for 0, 1, 2, 3 and 7."""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    texts = [str(a) if a == b else f"{a}…{b}" for a, b in runs]
    if len(texts) > 6:
        texts = [*texts[:5], "…"]
    return texts[0] if texts == [str(runs[0][0])] else "{" + ",".join(texts) + "}"


__all__ = ["Difference", "summary"]
