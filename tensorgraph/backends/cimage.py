"""A bound program that is one call into C: its tables of pointers and sizes, and how it is called on arrays by key.

Its `Image` is plain data, without the graph it was made from: another process runs it as it is (`kept.py`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..dtypes import dtype
from ..errors import DataError
from . import cpu

Ranges: TypeAlias = "list[tuple[str, int, int, int | None]]"  # of integer inputs: key, low, high, what is ignored


def out_of_range() -> DataError:
    """For what has been overwritten in part by then."""
    error = DataError(
        "TG505", "an index computed by the graph lies outside its axis", hint='backend="numpy" says which'
    )
    error.__dict__["halfway"] = True
    return error


class Image(NamedTuple):
    """What a call into C needs. Slots are places in the table of pointers: those of `leaves` come first, in order."""

    unit: str  # the library, as the compiler's cache calls it
    leaves: list[str]
    slots: int
    placed: list[tuple[int, int]]  # slot, byte of the arena
    tables: list[tuple[int, Any]]  # slot, array
    sizes: list[int]
    arena: int  # bytes
    room: int  # bytes of scratch for each thread
    results: list[tuple[int, tuple[int, ...], tuple[int, ...], str]]  # byte of the arena, shape, strides, dtype


class Call(ctypes.Structure):
    """What a segment is given: pointers, sizes, the runtime, scratch for every thread; `bad` if an index was."""

    _fields_ = [(n, ctypes.c_void_p) for n in ("p", "s", "rt", "w")] + [
        (n, ctypes.c_int64) for n in ("room", "threads", "bad")
    ]


class Frame:
    """The arena of an image, the tables that its C reads, and the `Call` that points to them."""

    def __init__(self, image: Image, arena: Any = None) -> None:
        self.arena = np.empty(image.arena + 64, np.uint8) if arena is None else arena
        self.start = -self.arena.ctypes.data % 64
        self.pointers = np.zeros(max(1, image.slots), np.uint64)
        for slot, at in image.placed:
            self.pointers[slot] = self.arena.ctypes.data + self.start + at
        self.tables = [table for _, table in image.tables]
        for slot, table in image.tables:
            self.pointers[slot] = table.ctypes.data
        self.sizes = np.array(image.sizes or [0], np.int64)
        threads = cpu.threads()
        self.scratch = np.empty(image.room * threads + 64, np.uint8)
        w = self.scratch.ctypes.data + -self.scratch.ctypes.data % 64
        runtime = cpu.runtime() if image.unit else None
        self.call = Call(self.pointers.ctypes.data, self.sizes.ctypes.data, runtime, w, image.room, threads, 0)

    def enter(self, leaves: Sequence[str], P: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
        """Point to the arrays given. What is not contiguous is copied: all arrays as C has them, and the copies."""
        back: list[tuple[str, Any]] = []
        given = P
        for i, key in enumerate(leaves):
            array = P[key]
            if not array.flags.c_contiguous:
                given = dict(P) if given is P else given
                given[key] = np.ascontiguousarray(array)
                back.append((key, given[key]))
            self.pointers[i] = given[key].__array_interface__["data"][0]
        self.call.bad = 0
        return given, back


class Native:
    """An image and the function it calls. `donated`: keys of leaves that are overwritten.

    An interrupt comes before the call or after it, never in the middle: what is overwritten is whole.
    """

    atomic = True

    def __init__(self, image: Image, segment: Any, donated: set[str], frame: Frame | None = None) -> None:
        self.image, self.segment, self.donated = image, segment, donated
        self.frame = frame = frame or Frame(image)
        self.results = [
            np.ndarray(shape, dtype(kind).np, frame.arena, frame.start + at, strides)
            for at, shape, strides, kind in image.results
        ]

    def run(self, P: dict[str, Any]) -> tuple[Any, ...]:
        """Results, for arrays by key. Arrays that are not contiguous are copied, and copied back if overwritten."""
        _, back = self.frame.enter(self.image.leaves, P)
        if self.segment(ctypes.addressof(self.frame.call)):
            raise out_of_range()
        for key, copy in back:
            if key in self.donated:
                P[key][...] = copy
        return tuple([a.copy() if a.shape else a[()] for a in self.results])

    def repeat(self, P: dict[str, Any], given: Mapping[str, Any], ranges: Ranges) -> Repeat | None:
        """The same call again, with the arrays `given` anew each time; None if they have to be made fit."""
        leaves = self.image.leaves
        if any(k not in leaves or type(a) is not np.ndarray or a.dtype != P[k].dtype for k, a in given.items()):
            return None
        if not all(P[k].flags.c_contiguous for k in leaves):
            return None
        return Repeat(self, P, given, ranges)


class Range(ctypes.Structure):
    """An integer array and the range of its elements, for the runtime to check."""

    _fields_ = [
        ("p", ctypes.c_void_p),
        *[(n, ctypes.c_int64) for n in ("n", "size", "low", "high", "ignores", "ignored")],
    ]


class Repeat:
    """A program called again: all pointers are in place but those of the arrays given anew."""

    atomic = True

    def __init__(self, native: Native, P: dict[str, Any], given: Mapping[str, Any], ranges: Ranges) -> None:
        self.native, self.results = native, native.results
        self.pointers = native.frame.pointers.copy()
        leaves = native.image.leaves
        self.held = {k: P[k] for k in leaves if k not in given}
        self.call = Call.from_buffer_copy(native.frame.call)
        self.call.p = self.pointers.ctypes.data
        self.ranges = (Range * max(1, len(ranges)))()
        checked: dict[str, list[Range]] = {}
        for r, (key, low, high, ignored) in zip(self.ranges, ranges, strict=False):
            a = P[key]
            size = a.itemsize if a.dtype.kind == "i" else -1
            r.p, r.n, r.size, r.low, r.high = a.ctypes.data, a.size, size, low, high
            r.ignores, r.ignored = int(ignored is not None), ignored or 0
            checked.setdefault(key, []).append(r)
        slot = {k: i for i, k in enumerate(leaves)}
        self.inputs = [[k, a, a.dtype, a.shape, slot[k], checked.pop(k, [])] for k, a in given.items()]
        self.step = cpu.library().tg_step
        segment = ctypes.cast(native.segment, ctypes.c_void_p).value
        self.args = (ctypes.addressof(self.call), segment, ctypes.addressof(self.ranges), len(ranges))

    def __call__(self, given: Mapping[str, Any]) -> list[Any] | None:
        """Results; None if the arrays given are not like those of the first call, or out of range: nothing was done."""
        if len(given) != len(self.inputs):
            return None
        for entry in self.inputs:
            key, last, dtype, shape, slot, ranges = entry
            a = given.get(key)
            if type(a) is not np.ndarray or a.dtype != dtype or a.shape != shape or not a.flags.c_contiguous:
                return None
            if a is not last:
                entry[1] = a
                at = self.pointers[slot] = a.ctypes.data
                for r in ranges:
                    r.p = at
        bad = self.step(*self.args)
        if bad:
            if bad == 2:
                return None
            raise out_of_range()
        return [a.copy() if a.shape else a[()] for a in self.results]


__all__ = ["Call", "Frame", "Image", "Native", "Range", "Ranges", "Repeat", "out_of_range"]
