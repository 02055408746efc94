"""Compiled training steps on disk: a process takes up what another one compiled from the same graph.

A step is found by its key: a digest of all that its program depends on, which is the graph as passes see it, optimiser
and options, the files of this package, compiler, processor and BLAS. What cannot be told apart with certainty has no
key: ops or rules from outside the package, optimisers of the user's own, random nodes, a trace. What is kept is
what C is called with (`cimage.Image`), once for each set of shapes, and what arrays are checked against beforehand;
errors, costs and pictures come from the graph, which is at hand.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from . import autodiff, dims, dtypes, optim
from .backends import cpu
from .backends.cimage import Image, Native, Ranges
from .built import Built, MemoryReport, Options, Signature
from .dims import Dim
from .errors import TensorgraphError
from .op import REGISTRY
from .optim import Clock, Optimizer
from .passes import memory
from .passes.program import size_only
from .tensor import PICK, ROOT, Scope, Tensor, as_tensor, current_scope, topological

FEWEST = 64  # kernels below which compiling is as fast as looking it up
TABLES = 1 << 22  # bytes of tables above which they are rather computed
STEPS, SHAPES = 256, 32  # as many are kept, and of each for as many shapes; what was not used for longest goes
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, TensorgraphError)  # what bad files raise


Shapes: TypeAlias = "Mapping[str, tuple[int, ...]]"  # of all arrays of a call, by key


class _Unknown(Exception):
    """Something that a key cannot stand for."""


# ------------------------------------------------------------------------------------------------ keys


def wanted(options: Options) -> bool:
    """Whether steps compiled for this may be kept."""
    asked = options.backend == "c" and not options.debug and not options.trace
    return asked and os.environ.get("TENSORGRAPH_KEEP") != "0"


def key(outputs: Mapping[str, Tensor], tree: Any, update: Optimizer, clock: Clock, options: Options) -> str | None:
    """The name of a training step on disk; None if it is not kept."""
    if current_scope() is not ROOT or autodiff.overrides or not _as_imported(update):
        return None
    asked = options._replace(memory_limit=None, binding=dict(sorted(options.binding.items())))
    settings = {k: v for k, v in vars(update).items() if k != "lr"}
    try:
        text = _text({**outputs, "step's rate": as_tensor(clock.rate)}, [type(update).__name__, settings])
        surroundings = [_FILES, *_machine(), cpu.flags(options.strict), cpu.blas() is not None]
    except (_Unknown, OSError, TensorgraphError):
        return None
    return hashlib.blake2b(repr([text, tree, asked, surroundings]).encode(), digest_size=20).hexdigest()


def _text(outputs: Mapping[str, Tensor], more: Any) -> str:
    """All of a graph that passes look at: nodes, in which layers, in which order they were made; and something more.

    Raises _Unknown.
    """
    nodes = topological(outputs.values())
    number = {t: i for i, t in enumerate(nodes)}
    tables = size_only(nodes)  # graphs share literals: when one was first made says nothing
    made = sorted((i for i, t in enumerate(nodes) if t not in tables), key=lambda i: nodes[i].serial)
    aged = sorted(made, key=lambda i: nodes[i].age)
    lines: list[str] = [repr([(n, number[t]) for n, t in outputs.items()]), repr(made), repr(aged)]
    scopes: dict[Scope | None, int] = {None: 0}
    calls: dict[int, int] = {}
    sizes: dict[Dim, str] = {}

    def scope(s: Scope | None) -> int:
        if s not in scopes:
            assert s is not None
            if s.loop is not None or s.backward:
                raise _Unknown
            above = scope(s.parent)
            scopes[s] = len(scopes)
            call = calls.setdefault(s.call, len(calls))
            lines.append(repr((above, s.name, s.kind, s.component, s.path, s.key, call, str(s.times))))
        return scopes[s]

    def size(d: Dim) -> Any:
        if type(d) is int:
            return d
        if d not in sizes:
            sizes[d] = repr(dims.terms(d))
        return ("size", sizes[d])

    def plain(v: Any) -> Any:
        """An attribute as what has a text that tells it from all others."""
        if v is None or type(v) in (bool, int, float, str):
            return v
        if type(v) in (tuple, list):
            return type(v)([plain(x) for x in v])
        if type(v) is dict:
            return {plain(k): plain(x) for k, x in v.items()}
        if isinstance(v, dtypes.DType):
            return ("dtype", v.name)
        if isinstance(v, (np.ndarray, np.generic)) and v.dtype.kind in "biuf":
            return ("array", v.dtype.str, v.shape, v.tobytes())
        if hasattr(v, "free_symbols"):
            return size(v)
        raise _Unknown

    for t in nodes:
        if _OPS.get(t.op.name, (None,))[0] is not t.op or t.op.effect:
            raise _Unknown
        specs = [([size(d) for d in s], k.name) for s, k in t.specs or ((t.shape, t.dtype),)]
        attrs = [(k, plain(v)) for k, v in t.attrs.items()]
        of = [number[i] for i in t.inputs]
        lines.append(repr((t.op.name, of, attrs, t.specs is None, specs, scope(t.scope), t.label)))
    lines.append(repr(plain(more)))
    names = {n for d in sizes for n in dims.free(d)}
    while new := {n for d in dims.assumptions(names).values() for n in dims.free(d)} - names:
        names |= new
    assumed = dims.assumptions(sorted(names))
    lines += [repr((n, dims.minimum(n), repr(dims.terms(assumed[n])) if n in assumed else "")) for n in sorted(names)]
    return "\n".join(lines)


def _files() -> list[tuple[str, int, int, int]]:
    """This package's files, as they are on disk."""
    found: list[tuple[str, int, int, int]] = []
    folders = [str(Path(__file__).parent)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for e in entries:
                if e.name.endswith((".py", ".c", ".h")):
                    s = e.stat()
                    found.append((e.path, s.st_size, s.st_mtime_ns, s.st_ctime_ns))
                elif not e.name.startswith("__") and e.is_dir(follow_symlinks=False):
                    folders.append(e.path)
    return sorted(found)


def _fields(what: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(what).items() if k != "__slotnames__"}  # put there by copy.copy


# What keys speak of by name, as it was when it was imported.
_FILES = _files()
_OPS = {name: (record, _fields(record)) for name, record in {**REGISTRY, PICK.name: PICK}.items()}
_OPTIM = [(what, _fields(what)) for what in (optim, optim.Optimizer, optim.AdamW, optim.SGD)]


def _as_imported(update: Optimizer) -> bool:
    """Whether ops and optimisers are those of this package, with nothing put in place of their rules and methods."""
    if not any(type(update) is what for what, _ in _OPTIM):
        return False
    for what, then in [*_OPTIM, *_OPS.values()]:
        now = _fields(what)
        if now.keys() != then.keys() or any(now[k] is not v for k, v in then.items()):
            return False
    return True


@functools.cache
def _machine() -> list[str]:
    return [sys.version, np.__version__, cpu.identity(cpu.need_compiler())]


# ------------------------------------------------------------------------------------------------ the disk


class Kept:
    """A training step that was compiled before. `peak`: bytes of a call of the sizes compiled for; None if those do not
    tell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = _read(folder / "step.json")
        leaves = {k: (dtypes.dtype(d), int(rank)) for k, (d, rank) in found["leaves"].items()}
        self.signature = Signature(leaves, found["donated"], found["results"], {})
        self.peak: int | None = found["peak"]

    def bound(self, shapes: Shapes, limit: int | None) -> tuple[Native, Ranges] | None:
        """What runs on arrays of these shapes; None if that is not known, or does not fit in memory."""
        try:
            found = _read(self.folder / f"{_name(shapes)}.json")
            image = found["image"]
            image["tables"] = [
                (slot, np.frombuffer(bytearray(base64.b64decode(data)), kind).reshape(shape))
                for slot, kind, shape, data in image["tables"]
            ]
            unit = cpu.built(image["unit"])
            native = Native(Image(**image), unit, set(self.signature.donated.values()))
            need = found["peak"] - found["given"] * (limit is None)
            ranges = [(k, low, high, ignored) for k, low, high, ignored in found["ranges"]]
        except DAMAGED:
            return None
        return (native, ranges) if memory.fits(need, limit) else None


def find(key: str) -> Kept | None:
    """What is kept under a key."""
    folder = _folder() / key
    try:
        found = Kept(folder)
    except DAMAGED:
        return None
    with contextlib.suppress(OSError):
        os.utime(folder)
    return found


def keep(key: str, built: Built, shapes: Shapes, image: Image, ranges: Ranges, report: MemoryReport) -> None:
    """Write what the next process needs to run this program on arrays of these shapes; nothing where it cannot."""
    if len(built.program.kernels) < FEWEST or sum(a.nbytes for _, a in image.tables) > TABLES or _files() != _FILES:
        return
    tables = [(slot, a.dtype.str, a.shape, base64.b64encode(a.tobytes()).decode("ascii")) for slot, a in image.tables]
    signature = built.signature
    try:
        peak: int | None = built.memory(built.options.binding).peak
    except dims.SizeError:
        peak = None
    step = {
        "leaves": {k: (d.name, rank) for k, (d, rank) in signature.leaves.items()},
        "donated": signature.donated,
        "results": signature.results,
        "peak": peak,
    }
    bound = {"image": {**image._asdict(), "tables": tables}, "ranges": list(ranges), "peak": report.peak,
             "given": report.given}  # fmt: skip
    folder = _folder() / key
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(folder / f"{_name(shapes)}.json", bound)
        _write(folder / "step.json", step)
        _prune(folder, SHAPES + 1)
        _prune(_folder(), STEPS)
    except OSError:
        pass


def _folder() -> Path:
    return cpu.cache() / "steps"


def _name(shapes: Shapes) -> str:
    return hashlib.blake2b(repr(sorted(shapes.items())).encode(), digest_size=20).hexdigest()


def _read(path: Path) -> Any:
    """What `_write` wrote. Raises ValueError if it is damaged."""
    digest, _, text = path.read_bytes().partition(b"\n")
    if hashlib.blake2b(text, digest_size=20).hexdigest().encode() != digest:
        raise ValueError(path)
    return json.loads(text)


def _write(path: Path, what: Any) -> None:
    text = json.dumps(what).encode()
    digest = hashlib.blake2b(text, digest_size=20).hexdigest().encode()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # whole or not at all, whoever else writes it
        made = Path(folder, path.name)
        made.write_bytes(digest + b"\n" + text)
        os.replace(made, path)


def _prune(folder: Path, most: int) -> None:
    found = sorted(folder.iterdir(), key=lambda f: f.stat().st_mtime)
    for path in found[: max(0, len(found) - most)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


__all__ = ["Kept", "find", "keep", "key", "wanted"]
