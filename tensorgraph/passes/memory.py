"""The arena: one block of memory in which every intermediate value has its place, planned once per binding."""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import dims
from ..errors import BackendError
from ..tensor import Tensor
from .program import Buffer, Program

ALIGN = 64
HUGE = 1 << 22  # bytes from which NumPy asks for huge pages


class Plan(NamedTuple):
    """Byte offsets of all buffers, the arena's size, and what is alive where most is."""

    offsets: list[int]
    arena: int
    peak: int
    peak_at: int
    live: list[tuple[int, Tensor]]


def nbytes(b: Buffer, binding: Mapping[str, int]) -> int:
    size = dims.evaluate(b.size, binding) * b.dtype.size
    return size if b.rows is None else size * b.rows(binding)


def plan(program: Program, binding: Mapping[str, int]) -> Plan:
    """Best fit with coalescing: a buffer takes the smallest gap that holds it at birth, and frees it at death."""
    sizes = [max(ALIGN, -(-nbytes(b, binding) // ALIGN) * ALIGN) for b in program.buffers]
    offsets = [0] * len(sizes)
    born: dict[int, list[int]] = {}
    dies: dict[int, list[int]] = {}
    for b in program.buffers:
        born.setdefault(b.first, []).append(b.index)
        dies.setdefault(b.last, []).append(b.index)
    gaps: list[tuple[int, int]] = []  # (offset, size), by offset
    top = now = peak = peak_at = 0
    for n in range(len(program.kernels) + 1):
        for i in born.get(n, ()):
            fit = min(((size, at) for at, size in gaps if size >= sizes[i]), default=None)
            if fit is not None:
                size, at = fit
                j = bisect.bisect_left(gaps, (at, size))
                gaps[j : j + 1] = [(at + sizes[i], size - sizes[i])] if size > sizes[i] else []
            elif gaps and gaps[-1][0] + gaps[-1][1] == top:  # stretch the last gap
                at, size = gaps.pop()
                top = at + sizes[i]
            else:
                at, top = top, top + sizes[i]
            offsets[i] = at
            now += sizes[i]
        if now > peak:
            peak, peak_at = now, n
        for i in dies.get(n, ()):
            now -= sizes[i]
            _free(gaps, offsets[i], sizes[i])
    live = [b for b in program.buffers if b.first <= peak_at <= b.last]
    named = sorted(((sizes[b.index], b.node) for b in live), key=lambda x: -x[0])
    return Plan(offsets, top, peak, peak_at, named)


def zeros(n: int) -> Any:
    """`n` bytes of zeros, in pages of the system's usual size that come as they are first written.

    NumPy asks for huge pages where it can. They suit an arena, which is walked again and again; state is walked once in
    a step, and of a virtual machine that has to find two megabytes for each of them its first step would wait longest.
    """
    if n < HUGE or not hasattr(mmap, "MAP_PRIVATE"):
        return np.zeros(n, np.uint8)
    return np.frombuffer(mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


def available() -> int | None:
    """Bytes that may still be allocated, by the system and by the control group of this process; None if unknown."""
    found: list[int] = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        pass
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{n}").read_text(encoding="ascii").strip() for n in ("max", "current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        found += [int(limit) - int(used) + int(stat["inactive_file"])] if limit != "max" else []
    except (OSError, ValueError, KeyError):
        pass
    return min(found, default=None)


def rows(largest: Iterable[tuple[int, str, str]]) -> list[str]:
    """Lines that name the largest values: (bytes, what, where)."""
    lines = [f"{size / 1e6:10,.1f} MB  {what}  {where}".rstrip() for size, what, where in largest]
    return ["the largest alive at once:", *lines]


def refuse(name: str, need: int, largest: Iterable[tuple[int, str, str]], limit: int | None = None) -> None:
    """Raise BackendError[TG710] if `need` bytes more do not fit, before any of them is allocated.

    `limit`: what may be allocated; by default what the system has free. `largest`: (bytes, what, where).
    """
    free = available() if limit is None else limit
    if free is not None and need > free:
        have = f"{max(free, 0) / 1e6:,.1f} MB are free" if limit is None else f"the limit is {limit / 1e6:,.1f} MB"
        raise BackendError(
            "TG710",
            f"{name} needs {need / 1e6:,.1f} MB, and {have}",
            notes=rows(largest),
            hint='smaller sizes, remat="block" in training, or a lower precision: graph.astype("bfloat16")',
        )


def _free(gaps: list[tuple[int, int]], at: int, size: int) -> None:
    """Add a gap, joined to its neighbours."""
    i = bisect.bisect(gaps, (at, size))
    if i < len(gaps) and gaps[i][0] == at + size:
        size += gaps.pop(i)[1]
    if i and gaps[i - 1][0] + gaps[i - 1][1] == at:
        at, size = gaps[i - 1][0], gaps[i - 1][1] + size
        gaps[i - 1] = (at, size)
    else:
        gaps.insert(i, (at, size))
