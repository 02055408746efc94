"""What generated C stands on: the compiler, its cache on disk, the runtime (`runtime.c`) and NumPy's own BLAS."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import glob
import hashlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendError

log = logging.getLogger("tensorgraph")
WRAPPERS = ("ccache", "sccache", "distcc", "icecc")
BLAS_NAMES = [  # product, threads, whether its integers have 64 bits
    ("scipy_cblas_{}gemm64_", "scipy_openblas_{}_num_threads64_", True),
    ("cblas_{}gemm64_", "openblas_{}_num_threads64_", True),
    ("scipy_cblas_{}gemm", "scipy_openblas_{}_num_threads", False),
    ("cblas_{}gemm", "openblas_{}_num_threads", False),
]


@functools.cache
def text(name: str) -> str:
    """A C file that stands beside this one."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


@functools.cache
def compiler() -> tuple[str, ...] | None:
    """The C compiler as a command: $CC, cc, gcc, clang, or that of the package `ziglang`; None if there is none."""
    if os.name != "posix":
        return None
    given = shlex.split(os.environ.get("CC", ""))
    for name, *words in filter(None, (given, ["cc"], ["gcc"], ["clang"])):
        found = shutil.which(name)
        if found:
            return (found, *words)
        if [name, *words] == given:
            log.warning("$CC names %s, which is not found: another compiler is looked for", name)
    return (sys.executable, "-m", "ziglang", "cc") if importlib.util.find_spec("ziglang") else None


@functools.cache
def offered() -> bool:
    """Whether there is a compiler, and it works; if not, says once what that means."""
    try:
        library()
    except (BackendError, OSError) as error:
        said = str(error).partition("\n")[0][:200]
        why = "no C compiler was found" if compiler() is None else f"the C compiler does not work ({said})"
        log.warning('%s: backend="auto" runs on NumPy', why)
        return False
    return True


def need_compiler() -> tuple[str, ...]:
    """The C compiler, as a command. Raises BackendError[TG704] if there is none."""
    cc = compiler()
    if cc is None:
        raise BackendError(
            "TG704",
            "backend 'c' needs a C compiler, and none was found",
            hint='install gcc or clang, or the package ziglang, or set CC; backend="numpy" needs none',
        )
    return cc


@functools.cache
def identity(cc: tuple[str, ...]) -> str:
    """What a cached build depends on besides its source: compiler and processor."""
    zig = importlib.util.find_spec("ziglang") if "ziglang" in cc else None
    named = filter(None, [zig.origin if zig else None, *map(shutil.which, cc)])
    files = [os.path.realpath(file) for file in named]
    version = str([(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files])
    if sys.platform == "darwin" or any(Path(file).name in WRAPPERS for file in files):  # the file is not the compiler
        version += subprocess.run([*cc, "--version"], capture_output=True, text=True, check=False).stdout
    cpu = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu += "".join(sorted({x for x in lines if x.startswith(("model name", "flags", "Features", "CPU part"))}))
    except OSError:
        pass
    return f"{cc}\n{version}\n{cpu}"


@functools.cache
def cache() -> Path:
    """The folder of built code, in $TENSORGRAPH_CACHE or the user's cache.

    One that cannot be written, or that others can write, is not used, which is said; what is built lasts as long as the
    process then.
    """
    root = os.environ.get("TENSORGRAPH_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "tensorgraph"
    )
    folder = Path(root).expanduser() / "c"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
        if found.st_uid != os.getuid():
            why = "it is another user's"
        elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            why = "others can write there"
        elif not os.access(folder, os.W_OK):
            why = "it cannot be written"
        else:
            return folder
    except OSError as error:
        why = error.strerror or "it cannot be made"
    log.warning("the cache %s is not used: %s. What is compiled is lost when the process ends", folder, why)
    made = tempfile.mkdtemp(prefix="tensorgraph-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


def flags(strict: bool) -> list[str]:
    """Both modes round each operation by itself, so that a value is the same wherever it is computed again.

    Those of $TENSORGRAPH_CFLAGS come last: -O1 compiles in half the time what then runs slower.
    """
    common = [
        "-O3",
        "-march=native",
        "-std=gnu11",
        "-shared",
        "-fPIC",
        "-fopenmp-simd",
        "-fwrapv",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fno-strict-aliasing",
        "-ffp-contract=off",
        "-w",
    ]
    return [*common, *(["-DTG_STRICT"] if strict else []), *shlex.split(os.environ.get("TENSORGRAPH_CFLAGS", ""))]


def build(source: str, options: list[str]) -> str:
    """The shared library of a source, from the cache or compiled now.

    Raises BackendError[TG704] without a compiler, [TG705] if it fails.
    """
    cc = need_compiler()
    key = hashlib.blake2b("\n".join([source, *options, identity(cc)]).encode(), digest_size=20).hexdigest()
    path = cache() / f"{key}.so"
    if _whole(path):
        return str(path)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # it may have been deleted since
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        text, made = Path(folder, "unit.c"), Path(folder, "unit.so")
        text.write_text(source, encoding="utf-8")
        ran = subprocess.run(
            [*cc, *options, str(text), "-o", str(made), "-lm", "-lpthread"], capture_output=True, text=True, check=False
        )
        if ran.returncode or not made.exists():
            raise BackendError(
                "TG705",
                "the C compiler failed on generated code",
                notes=ran.stderr.splitlines()[:6],
                hint='backend="numpy" needs no compiler',
            )
        digest = _digest(made)
        os.replace(made, path)
        text.write_text(digest, encoding="ascii")
        os.replace(text, path.with_suffix(".sum"))
    _tidy()
    return str(path)


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=20).hexdigest()


def _whole(path: Path) -> bool:
    """Whether a unit is as it was built: what is cut short would end the process where it is first touched."""
    try:
        return path.with_suffix(".sum").read_text(encoding="ascii") == _digest(path)
    except (OSError, UnicodeDecodeError):
        return False


@functools.cache
def _tidy() -> None:
    """Remove what builds left behind that were killed."""
    for folder in cache().glob("tmp*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_mtime < time.time() - 3600:
                shutil.rmtree(folder)


def load(source: str, options: list[str]) -> ctypes.CDLL:
    """The library of a source, loaded; built anew if what the cache has is damaged. Raises as `build`."""
    path = build(source, options)
    try:
        return ctypes.CDLL(path)
    except OSError:
        Path(path).unlink(missing_ok=True)
        return ctypes.CDLL(build(source, options))


def built(unit: str) -> Any:
    """The function of a library that the cache has under this name. Raises OSError if it does not."""
    path = cache() / unit
    if Path(unit).name != unit or not _whole(path):
        raise OSError(f"no unit of the cache: {unit!r}")
    return segment(ctypes.CDLL(str(path)))


def segment(library: Any, number: int = 0) -> Any:
    """A function of a unit: 0 where it went well, for the address of a `Call`."""
    found = library[f"segment{number}"]
    found.argtypes = [ctypes.c_void_p]
    return found


@functools.cache
def blas() -> tuple[Any, ...] | None:
    """(sgemm, dgemm, set_threads, get_threads, 64-bit ints) of the OpenBLAS that NumPy uses; None if not found."""
    base = Path(np.__file__).parent
    paths = sorted(glob.glob(str(base.parent / "numpy.libs" / "*openblas*"))) + sorted(
        glob.glob(str(base / ".dylibs" / "*openblas*"))
    )
    core = getattr(np, "_core", None)
    paths += [getattr(getattr(core, "_multiarray_umath", None), "__file__", "") or ""]
    for path in filter(None, paths):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for name, threads, wide in BLAS_NAMES:
            try:
                found = [getattr(library, name.format(x)) for x in "sd"] + [
                    getattr(library, threads.format(x)) for x in ("set", "get")
                ]
            except AttributeError:
                continue
            return (*found, wide)
    return None


@functools.cache
def _warn(text: str) -> None:
    """Said once."""
    log.warning(text)


def threads() -> int:
    """$TENSORGRAPH_THREADS or $OMP_NUM_THREADS, or as many as the process may run on."""
    for name in ("TENSORGRAPH_THREADS", "OMP_NUM_THREADS"):
        given = os.environ.get(name, "")
        if given.isdigit() and int(given):
            return int(given)
        if given and name == "TENSORGRAPH_THREADS":
            _warn(f"$TENSORGRAPH_THREADS is {given!r}, which is no number of threads: it is left aside")
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def library() -> Any:
    """The pool's library, one per process."""
    source = text("runtime.c")
    for part in "runtime.h", "matvec.c", "differences.c":
        source = source.replace(f'#include "{part}"\n', text(part))
    made = load(source, flags(False))
    found = blas()
    address = [ctypes.cast(f, ctypes.c_void_p) for f in found[:4]] if found else [ctypes.c_void_p()] * 4
    made.tg_init.argtypes = [*[ctypes.c_void_p] * 4, ctypes.c_int]
    made.tg_init(*address, int(bool(found and found[4])))
    made.tg_step.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    made.tg_differences.argtypes = [pointer, pointer, pointer, number, ctypes.c_double, pointer, pointer]
    return made


def runtime() -> int:
    """The address of what a unit may call."""
    return ctypes.addressof(ctypes.c_char.in_dll(library(), "tg_rt"))
