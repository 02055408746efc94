"""What all tensor files share: entries, lazy reading, and replacing a file without ever leaving half of one."""

from __future__ import annotations

import difflib
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from tensorgraph.dtypes import dtype as to_dtype
from tensorgraph.errors import CheckpointError

try:
    import fcntl
except ImportError:  # not a POSIX system: leftovers of killed writers then stay
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
Array = np.ndarray[Any, np.dtype[Any]]

# NumPy refuses to make an array beyond either, even an empty one.
MAX_NDIM = 64
MAX_BYTES = 2**63 - 1


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: `kind` is the format's name of its dtype, `dtype` what reading it gives by default.

    `offsets` are absolute byte positions, first and one past the last.
    """

    file: Path
    kind: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offsets: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes in the file."""
        return self.offsets[1] - self.offsets[0]


Reader = Callable[[str, Entry, "np.dtype[Any]"], Array]


class Tensors(Mapping[str, Array]):
    """A lazy mapping name -> array: each look-up reads that one tensor into an array of its own.

    `entries` gives shapes and dtypes without reading, `metadata` the file's free text. Nothing is kept, so going
    through the mapping holds one tensor at a time. Raises CheckpointError[TG805] for a name that is not there.
    """

    def __init__(
        self, entries: dict[str, Entry], read: Reader, where: Path, metadata: Mapping[str, str] | None = None
    ) -> None:
        self.entries = entries
        self.metadata = dict(metadata or {})
        self._read = read
        self._where = where

    def read(self, name: str, dtype: Any = None) -> Array:
        """The tensor `name`, writable and C-contiguous, converted to `dtype` if that is given.

        Raises CheckpointError[TG805] for an absent name, DTypeError[TG200] for an unknown dtype.
        """
        if name not in self.entries:
            raise missing([name], self.entries, self._where)
        entry = self.entries[name]
        return self._read(name, entry, entry.dtype if dtype is None else to_dtype(dtype).np)

    def __getitem__(self, name: str) -> Array:
        return self.read(name)

    @overload
    def get(self, name: str, /) -> Array | None: ...
    @overload
    def get(self, name: str, /, default: Array | T) -> Array | T: ...
    def get(self, name: str, /, default: Any = None) -> Any:
        return self.read(name) if name in self.entries else default

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"<{len(self)} tensors of {self._where}>"


def fail(
    code: str,
    path: Path,
    what: str,
    *,
    notes: Iterable[str] = (),
    hint: str | None = None,
    details: Iterable[str] = (),
) -> CheckpointError:
    """The error about a file: its name first, its folder, which may be long, on a line of its own."""
    folder = [] if path.parent == Path(".") else [f"in {path.parent}"]
    return CheckpointError(code, f"{path.name or path}: {what}", notes=[*folder, *notes], hint=hint, details=details)


def reachable(path: Path) -> None:
    """Raise CheckpointError[TG801] where the system refuses even to look whether something is there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return
    except OSError as e:
        raise fail("TG801", path, f"cannot be opened: {e.strerror}") from None


def missing(names: Iterable[str], known: Iterable[str], where: Path) -> CheckpointError:
    """The error for tensors that a file does not hold, with the nearest names it does hold."""
    names, known = sorted(names), list(known)
    near = difflib.get_close_matches(names[0], known, n=3)
    hint = f"nearest to {show(names[0])}: {', '.join(map(show, near))}" if near else None
    what = f"no tensor {show(names[0])}" if len(names) == 1 else f"{len(names)} tensors are missing"
    notes = [] if len(names) == 1 else [f"missing: {show(name)}" for name in names]
    return fail("TG805", where, f"{what} among the {len(known)} of the file", notes=notes, hint=hint)


def open_map(path: Path) -> memoryview:
    """A file's bytes, read-only and memory-mapped.

    Raises CheckpointError[TG801] if it is absent, not a file or may not be read.
    """
    try:
        if path.is_file():
            with open(path, "rb") as f:
                return memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b"")
        problem = "is a directory, not a file" if path.is_dir() else "no such file"
    except OSError as e:
        problem = f"cannot be read: {e.strerror or e}"
    raise fail("TG801", path, problem)


def release(data: memoryview, first: int, last: int) -> None:
    """Give back the memory of bytes of a map that were copied out of it: the system reads them again if need be."""
    if isinstance(data.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        start = first - first % mmap.PAGESIZE
        data.obj.madvise(mmap.MADV_DONTNEED, start, last - start)


def check_size(name: str, shape: tuple[int, ...], itemsize: int, path: Path) -> None:
    """Refuse a shape that no array can have. Raises CheckpointError[TG803]."""
    size = itemsize
    for dim in shape:
        size *= max(dim, 1)
    if len(shape) > MAX_NDIM or size > MAX_BYTES:
        raise fail("TG803", path, f"tensor {show(name)} has the impossible shape {show(shape)}")


def check_ranges(entries: Mapping[str, Entry], begin: int, size: int, path: Path) -> None:
    """Every tensor lies inside its file's data (from `begin` to `size`) and shares no byte with another.

    Raises CheckpointError[TG802] past the end of the file, [TG803] for an overlap.
    """
    end, owner = begin, ""
    for name, entry in sorted(entries.items(), key=lambda item: item[1].offsets):
        first, last = entry.offsets
        if last > size:
            what = f"truncated: tensor {show(name)} ends at byte {last}, the file has {size}"
            raise fail("TG802", path, what, hint="download or copy the file again")
        if first < end and last > first:
            raise fail(
                "TG803",
                path,
                f"damaged header: tensors {show(owner)} and {show(name)} overlap",
                notes=[f"{show(owner)} ends at byte {end}", f"{show(name)} begins at byte {first}"],
            )
        if last > end:
            end, owner = last, name


def show(value: object, limit: int = 60) -> str:
    """A foreign value as a message shows it: `repr`, shortened; a tuple as a list."""
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except (ValueError, RecursionError):  # an int of more digits than Python prints, a list nested too deep
        text = f"a {type(value).__name__} too large to print"
    return text if len(text) <= limit else text[: limit - 3] + "..."


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a name to write to; on leaving, that file takes the place of `path` in one step.

    File and folder are synced: after a kill or a power cut `path` is the old file or the new one, whole. Any failure
    leaves the old one. What a killed writer left behind is removed by the next.
    Raises CheckpointError[TG807] if the system refuses.
    """
    target = Path(os.path.realpath(path))
    folder = target.parent
    prefix = f".{target.name}."
    private: Path | None = None
    lock = -1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        turn = _lock(folder, wait=True)  # or another writer takes the new folder, not yet locked, for a leftover
        try:
            _remove_leftovers(folder, prefix)
            private = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=folder))
            lock = _lock(private)
        finally:
            if turn >= 0:
                os.close(turn)
        new = private / target.name
        yield new
        with open(new, "rb+") as f:
            os.fsync(f.fileno())
        os.chmod(new, _mode(target, private))
        os.replace(new, target)
        _sync_folder(folder)
    except OSError as e:
        raise fail("TG807", Path(path), f"cannot be written: {e.strerror or e}") from e
    finally:
        if private is not None:
            shutil.rmtree(private, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def _mode(target: Path, private: Path) -> int:
    """Permissions of the old file, or of any new one: only making one tells the umask without changing it."""
    if not target.exists():
        target = private / "mode"
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o666))
    return target.stat().st_mode & 0o777


def _lock(folder: Path, wait: bool = False) -> int:
    """An open descriptor that holds a lock on `folder` until closed; -1 if another holds it, or there are no locks."""
    if fcntl is None:
        return -1
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor


def _remove_leftovers(folder: Path, prefix: str) -> None:
    for old in folder.iterdir() if fcntl is not None else ():
        if old.name.startswith(prefix) and old.name.endswith(".tmp") and old.is_dir() and not old.is_symlink():
            lock = _lock(old)
            if lock >= 0:
                shutil.rmtree(old, ignore_errors=True)
                os.close(lock)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
