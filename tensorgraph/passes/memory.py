"""The arena: one block of memory in which every intermediate value has its place, planned once per binding."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

from .. import dims
from ..errors import BackendError
from ..tensor import Tensor
from .program import Buffer, Program

ALIGN = 64
SHOWN = {"TB": 10**12, "GB": 10**9, "MB": 10**5, "kB": 10**3}  # the least that is shown in each unit
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


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


def shown(n: int) -> str:
    """Bytes in a unit that people read: 512 B, 1.5 kB, 64.3 MB."""
    unit = next((u for u, least in SHOWN.items() if n >= least), None)
    return f"{n:,} B" if unit is None else f"{n / UNITS[unit.upper()]:,.1f} {unit}"


def parse(text: str) -> int | None:
    """Bytes of "2GB", "100 kB", "1.5GiB" (in upper or lower case); None for anything else."""
    found = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    return int(float(found[1]) * UNITS[found[2].upper()]) if found and found[2].upper() in UNITS else None


def limit_of(given: int | str | None) -> int | None:
    """A limit in bytes, given as such or as "2GB". Raises BackendError[TG716] for anything else."""
    limit = parse(given) if isinstance(given, str) else given
    if given is None or (isinstance(limit, Integral) and not isinstance(limit, bool) and limit >= 0):
        return None if limit is None else int(limit)
    raise BackendError("TG716", f"memory_limit is a number of bytes, not {given!r}", hint='memory_limit="2GB"')


def rows(largest: Iterable[tuple[int, str, str]]) -> list[str]:
    """Lines that name the largest values: (bytes, what, where)."""
    lines = [f"{shown(size):>13}  {what}  {where}".rstrip() for size, what, where in largest]
    return ["the largest alive at once:", *lines] if lines else []


def fits(need: int, limit: int | None = None) -> bool:
    """Whether `need` bytes more may be allocated: by default what the system has free."""
    free = available() if limit is None else limit
    return free is None or need <= free


def refuse(
    name: str,
    need: int,
    largest: Iterable[tuple[int, str, str]],
    limit: int | None = None,
    hint: str = 'smaller sizes, remat="block" in training, or a lower precision: graph.astype("bfloat16")',
) -> None:
    """Raise BackendError[TG710] if `need` bytes more do not fit, before any of them is allocated.

    `limit`: what may be allocated; by default what the system has free. `largest`: (bytes, what, where).
    """
    if not fits(need, limit):
        free = (available() if limit is None else limit) or 0
        have = f"{shown(max(free, 0))} are free" if limit is None else f"the limit is {shown(limit)}"
        raise BackendError(
            "TG710",
            f"{name} needs {shown(need)}, and {have}",
            notes=rows(largest),
            hint=hint,
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
