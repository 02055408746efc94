"""Stretches of a form's steps that repeat as a chain: longest first, each run reading something of the one before."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .forms import Affine, Form, Kind, Ref, Repeat, Slot, Source, Step

MAX_WORK = 400_000_000  # comparisons of kinds, in NumPy, when periods are sought in one sequence


def fold_steps(form: Form) -> Iterator[Step | Repeat]:
    """Steps in order; the stretch that saves most is folded first, then what lies left and right of it."""
    numbers: dict[Any, int] = {}
    kinds = np.array([numbers.setdefault((s.what, s.times), len(numbers)) for s in form.steps], np.int64)
    offsets = [0]
    for s in form.steps:
        offsets.append(offsets[-1] + s.size)
    chosen: dict[int, tuple[int, Repeat]] = {}
    pending = [(0, len(form.steps))]
    while pending:
        low, high = pending.pop()
        for start, period, times in _candidates(kinds[low:high]):
            found = _chain(form, offsets, low + start, period, times)
            if found is not None:
                start, repeat = found
                end = start + repeat.period * repeat.times
                chosen[start] = (end, repeat)
                pending += [(low, start), (end, high)]
                break
    i = 0
    while i < len(form.steps):
        if i in chosen:
            i, repeat = chosen[i]
            yield repeat
        else:
            yield form.steps[i]
            i += 1


def _candidates(kinds: Any) -> Iterator[tuple[int, int, int]]:
    """(start, period, times) of stretches whose kinds repeat, those that save most first, short periods before long."""
    n = len(kinds)
    if n < 2:
        return
    found = []
    for period in range(1, min(n // 2, max(64, MAX_WORK // n)) + 1):
        same = kinds[:-period] == kinds[period:]
        if not same.any():
            continue
        edges = np.flatnonzero(np.diff(same.astype(np.int8), prepend=0, append=0))
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            if end - start >= period:
                times = (end - start) // period + 1
                found.append((-(times - 1) * period, period, start, times))
        if found and -min(found)[0] >= n - period - 1:
            break
    for _, period, start, times in sorted(found)[:256]:
        yield start, period, times


def _chain(form: Form, offsets: list[int], start: int, period: int, times: int) -> tuple[int, Repeat] | None:
    """The longest stretch in which equal bodies follow each other, each reading something of the one before."""
    views = [_body(form, offsets, start + t * period, period) for t in range(times)]
    best: tuple[int, int] = (0, 1)
    first = 0
    for t in range(1, times + 1):
        if t == times or not _follows(form, views[t - 1], views[t], offsets, start + (t - 1) * period, period):
            if t - first > best[1]:
                best = (first, t - first)
            first = t
    first, length = best
    if length < 2:
        return None
    at = start + first * period
    runs = views[first : first + length]
    sources = tuple(_source([run[1][s] for run in runs]) for s in range(len(runs[0][1])))
    only = form.steps[at].what
    if period == 1 and isinstance(only, Form):
        body = only
        wide = [form.steps[at + t].refs for t in range(length)]
        sources = tuple(_source([refs[s] for refs in wide]) for s in range(len(wide[0])))
    else:
        body = _body_form(form, offsets, at, period)
    return at, Repeat(body, length, period, sources)


def _body(form: Form, offsets: list[int], at: int, period: int) -> tuple[Any, list[Ref]]:
    """One period seen alone: its steps with references renumbered, and what it takes from outside, by slot."""
    low, high = offsets[at], offsets[at + period]
    outside: dict[Ref, int] = {}
    steps = []
    for s in form.steps[at : at + period]:
        refs = tuple(r + low if r < 0 and low <= -1 - r < high else outside.setdefault(r, len(outside)) for r in s.refs)
        steps.append(Step(s.what, refs, s.times))
    return tuple(steps), list(outside)


def _follows(form: Form, before: Any, now: Any, offsets: list[int], at: int, period: int) -> bool:
    """Whether a run equals the one before, which begins at step `at`, and reads a node of it.

    Equal are the kinds of what both take from outside too: constants with their values, weights with their training.
    """
    low, high = offsets[at], offsets[at + period]
    if before[0] != now[0] or not any(r < 0 and low <= -1 - r < high for r in now[1]):
        return False
    return all(form.slots[a] == form.slots[b] for a, b in zip(before[1], now[1], strict=True) if a >= 0 and b >= 0)


def _source(refs: list[Ref]) -> Source:
    step = refs[2] - refs[1] if len(refs) > 2 else 0
    if all(b - a == step for a, b in itertools.pairwise(refs[1:])):
        return Affine(refs[0], refs[1], step)
    return tuple(refs)


def _body_form(form: Form, offsets: list[int], at: int, period: int) -> Form:
    steps, outside = _body(form, offsets, at, period)
    types = _node_types(form, outside)
    return Form(tuple(types), steps)


def _node_types(form: Form, refs: Iterable[Ref]) -> list[Slot]:
    """The types of references of a form."""
    starts: list[int] = []
    at = 0
    for s in form.steps:
        starts.append(at)
        at += s.size
    out = []
    for r in refs:
        inner, ref = form, r
        while ref < 0:
            place = starts if inner is form else _starts(inner)
            i = int(np.searchsorted(place, -1 - ref, side="right")) - 1
            step = inner.steps[i]
            if isinstance(step.what, Kind):
                types = step.what.types
                shape, dtype = types if len(types) == 2 and not isinstance(types[1], tuple) else (types, None)
                out.append(Slot("value", shape, dtype))
                break
            inner, ref = step.what, ref + place[i]
        else:
            out.append(inner.slots[ref])
    return out


def _starts(form: Form) -> list[int]:
    out, at = [], 0
    for s in form.steps:
        out.append(at)
        at += s.size
    return out
