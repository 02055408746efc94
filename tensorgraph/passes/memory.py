"""The arena: one block of memory in which every intermediate value has its place, planned once per binding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .. import dims
from ..tensor import Tensor
from .program import Buffer, Program

ALIGN = 64


class Plan(NamedTuple):
    """Byte offsets of all buffers, the arena's size, and what is alive where most is."""

    offsets: list[int]
    arena: int
    peak: int
    peak_at: int
    live: list[tuple[int, Tensor]]


def nbytes(b: Buffer, binding: Mapping[str, int]) -> int:
    return dims.evaluate(b.size, binding) * b.dtype.size


def plan(program: Program, binding: Mapping[str, int]) -> Plan:
    """Best fit with coalescing: a buffer takes the smallest gap that holds it when it is born, and gives it back when it dies."""
    sizes = [max(ALIGN, -(-nbytes(b, binding) // ALIGN) * ALIGN) for b in program.buffers]
    offsets = [0] * len(sizes)
    born: dict[int, list[int]] = {}
    dies: dict[int, list[int]] = {}
    for b in program.buffers:
        born.setdefault(b.first, []).append(b.index)
        dies.setdefault(b.last, []).append(b.index)
    gaps: list[tuple[int, int]] = []  # (offset, size), by offset
    top = now = peak = peak_at = 0
    alive: set[int] = set()
    live: list[int] = []
    for n in range(len(program.kernels) + 1):
        for i in born.get(n, ()):
            fit = min(((size, at) for at, size in gaps if size >= sizes[i]), default=None)
            if fit is not None:
                size, at = fit
                gaps.remove((at, size))
                if size > sizes[i]:
                    gaps.append((at + sizes[i], size - sizes[i]))
                    gaps.sort()
            elif gaps and gaps[-1][0] + gaps[-1][1] == top:  # stretch the last gap
                at, size = gaps.pop()
                top = at + sizes[i]
            else:
                at, top = top, top + sizes[i]
            offsets[i] = at
            now += sizes[i]
            alive.add(i)
        if now > peak:
            peak, peak_at, live = now, n, list(alive)
        for i in dies.get(n, ()):
            now -= sizes[i]
            alive.discard(i)
            gaps = _freed(gaps, offsets[i], sizes[i])
    named = sorted(((sizes[i], program.buffers[i].node) for i in live), key=lambda x: -x[0])
    return Plan(offsets, top, peak, peak_at, named)


def _freed(gaps: list[tuple[int, int]], at: int, size: int) -> list[tuple[int, int]]:
    """The gaps with one more, joined to its neighbours."""
    out: list[tuple[int, int]] = []
    for a, s in sorted([*gaps, (at, size)]):
        if out and out[-1][0] + out[-1][1] == a:
            out[-1] = (out[-1][0], out[-1][1] + s)
        else:
            out.append((a, s))
    return out
