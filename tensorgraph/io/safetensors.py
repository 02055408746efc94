"""Safetensors files, single and sharded: headers without data, tensors one at a time, crash-safe writing.

The header is parsed here, because its byte offsets allow reading in place and because an error must say what was
expected and found; the rules are those of the reference implementation (github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tensorgraph.errors import CheckpointError
from tensorgraph.io.files import (
    Array,
    Entry,
    Tensors,
    check_ranges,
    check_size,
    fail,
    missing,
    open_map,
    release,
    replacing,
    show,
)

DTYPES: dict[str, np.dtype[Any]] = {
    kind: np.dtype(dtype)
    for kind, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "C64": np.complex64,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
KINDS = {dtype: kind for kind, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes: the limit of the reference implementation
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def read_header(path: str | os.PathLike[str]) -> dict[str, Entry]:
    """Names, dtypes, shapes and byte offsets of the tensors in a file, without reading their data.

    Raises CheckpointError: TG801 no such file, TG802 truncated, TG803 damaged header, TG806 a dtype NumPy lacks.
    """
    return open_file(path).entries


def read(path: str | os.PathLike[str], names: Iterable[str] | None = None, dtype: Any = None) -> dict[str, Array]:
    """Tensors of one file, all or those of `names`, as writable arrays, converted to `dtype` if that is given.

    Raises CheckpointError as `read_header`, and TG805 for names that the file does not hold.
    """
    tensors = open_file(path)
    wanted = list(tensors if names is None else names)
    if absent := [name for name in wanted if name not in tensors]:
        raise missing(absent, tensors, Path(path))
    return {name: tensors.read(name, dtype) for name in wanted}


def open_file(path: str | os.PathLike[str]) -> Tensors:
    """The tensors of one file as a lazy mapping. Raises as `read_header`."""
    path = Path(path)
    data = open_map(path)
    entries, metadata = _parse(data, path)
    return Tensors(entries, _Reader({path: data}), path, metadata)


def open_checkpoint(path: str | os.PathLike[str]) -> Tensors:
    """The tensors of a folder (`model.safetensors` or shards under an index), or of one file, as a lazy mapping.

    Raises CheckpointError as `read_header`, TG801 if the folder holds neither, TG804 if index and shards disagree.
    """
    path = Path(path)
    if not path.is_dir():
        return open_file(path)
    if not (path / INDEX).is_file():
        if not (path / SINGLE).is_file():
            found = sorted(p.name for p in path.iterdir())
            what = f"neither {SINGLE} nor {INDEX} is there"
            raise fail("TG801", path, what, notes=[f"the folder holds {show(found, 100)}"])
        return open_file(path / SINGLE)
    entries: dict[str, Entry] = {}
    maps: dict[Path, memoryview] = {}
    for file, names in read_index(path).items():
        data = maps[path / file] = open_map(path / file)
        header, _ = _parse(data, path / file)
        if absent := [name for name in names if name not in header]:
            raise fail(
                "TG804",
                path / INDEX,
                f"{len(absent)} of the {len(names)} tensors that it places in {file} are not there",
                notes=[f"absent: {show(name)}" for name in absent],
                hint="index and shards are of different checkpoints: download all of them again",
            )
        entries |= {name: header[name] for name in names}
    return Tensors(entries, _Reader(maps), path)


def read_index(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """The shards of a folder by its index: file name -> names of the tensors in it.

    Raises CheckpointError: TG801 no index, TG803 not an index, TG804 a shard is absent or outside the folder.
    """
    folder = Path(path)
    index = folder / INDEX
    try:
        weight_map = json.loads(bytes(open_map(index)))["weight_map"]
        wrong = [k for k, v in weight_map.items() if type(v) is not str]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        if isinstance(e, CheckpointError):
            raise
        what = 'not an index: expected an object with "weight_map", tensor name -> file name'
        raise fail("TG803", index, what, notes=[f"it begins with {show(bytes(open_map(index)[:40]))}"]) from None
    if wrong:
        what = f"the file of tensor {show(wrong[0])} is {show(weight_map[wrong[0]])}, not a name"
        raise fail("TG803", index, what)
    files: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        files.setdefault(file, []).append(name)
    for file, names in files.items():
        if Path(file).name != file:
            what = f"shard {show(file)} is not a plain file name"
            raise fail("TG804", index, what, notes=["shards lie in the folder of their index"])
        if not (folder / file).is_file():
            raise fail(
                "TG804",
                index,
                f"shard {file} is absent",
                notes=[f"it should hold {len(names)} tensors, {show(names[0])} among them"],
                hint="download the missing file into the same folder",
            )
    return files


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors of any layout to one file, which appears whole or not at all (see `replacing`).

    Raises CheckpointError: TG806 for a dtype the format lacks, TG807 if the system refuses.
    """
    path = Path(path)
    dense = {}
    for name, tensor in tensors.items():
        # The library takes a pointer: anything but dense C order would be written in the wrong order.
        # (np.ascontiguousarray would do as well, if it kept 0-d arrays 0-d.)
        array = np.asarray(tensor, order="C")
        if array.dtype.newbyteorder("=") not in KINDS:
            raise fail(
                "TG806",
                path,
                f"tensor {show(name)} has dtype {array.dtype}, which safetensors files cannot hold",
                hint=f"it holds {', '.join(str(d) for d in KINDS)}",
            )
        dense[name] = array
    with replacing(path) as new:
        try:
            save_file(dense, new, metadata=dict(metadata) if metadata else None)
        except SafetensorError as e:
            raise fail("TG807", path, "cannot be written", notes=[str(e)]) from e


class _Reader:
    """Copies entries out of the maps that their headers were read from: a file replaced meanwhile is not seen."""

    def __init__(self, maps: Mapping[Path, memoryview]) -> None:
        self._maps = maps

    def __call__(self, name: str, entry: Entry, dtype: np.dtype[Any]) -> Array:
        data = self._maps[entry.file]
        raw = np.frombuffer(data[slice(*entry.offsets)], np.uint8)
        copy = np.array(raw.view(entry.dtype).reshape(entry.shape), dtype=dtype, order="C")
        release(data, *entry.offsets)
        return copy


def _parse(data: memoryview, path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    size = len(data)
    if size < 8:
        raise fail("TG802", path, f"truncated: a safetensors file has at least 8 bytes, this one {size}")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER:
        what = f"not a safetensors file: its header would have {length} bytes, the format allows {MAX_HEADER}"
        raise fail("TG803", path, what, notes=[f"the file begins with {bytes(data[:8])!r}"])
    begin = 8 + length
    if begin > size:
        what = f"truncated: its header ends at byte {begin}, the file has {size}"
        raise fail("TG802", path, what, hint="download or copy the file again")
    header = _header(bytes(data[8:begin]), path)
    metadata = header.pop("__metadata__", None)
    if metadata is not None and (type(metadata) is not dict or any(type(v) is not str for v in metadata.values())):
        raise fail("TG803", path, f"damaged header: __metadata__ is {show(metadata)}, not text by name")
    entries = {name: _entry(name, record, path, begin) for name, record in header.items()}
    check_ranges(entries, begin, size, path)
    end = begin
    for entry in sorted(entries.values(), key=lambda entry: entry.offsets):
        if entry.offsets[0] != end:
            break
        end = entry.offsets[1]
    if end != size:
        used = sum(entry.nbytes for entry in entries.values())
        what = f"damaged: the tensors take {used} bytes, but {size - begin} follow the header"
        note = f"no tensor begins at byte {end}; the format allows neither a gap nor a rest"
        raise fail("TG803", path, what, notes=[note])
    return entries, metadata or {}


def _header(text: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} occurs twice")
        return out

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:
        what = "damaged header: " + ("nested too deep" if isinstance(e, RecursionError) else str(e)[:100])
        raise fail("TG803", path, what, notes=[f"the header begins with {show(text[:40])}"]) from None
    if type(header) is not dict:
        raise fail("TG803", path, f"damaged header: expected an object, found {show(header)}")
    return header


def _entry(name: str, record: Any, path: Path, begin: int) -> Entry:
    def natural(value: Any, count: int | None = None) -> bool:
        ok = type(value) is list and all(type(n) is int and n >= 0 for n in value)
        return ok and (count is None or len(value) == count)

    record = record if type(record) is dict else {"dtype": record}
    kind, shape, offsets = (record.get(key) for key in ("dtype", "shape", "data_offsets"))
    if type(kind) is not str or not natural(shape) or not natural(offsets, 2) or offsets[0] > offsets[1]:
        raise fail(
            "TG803",
            path,
            f"damaged header: the record of tensor {show(name)} is malformed",
            notes=[f"dtype {show(kind)}, shape {show(shape)}, data_offsets {show(offsets)}"],
        )
    if kind not in DTYPES:
        raise fail(
            "TG806",
            path,
            f"tensor {show(name)} has dtype {show(kind)}, which cannot be read",
            hint=f"readable are {', '.join(DTYPES)}",
        )
    dtype = DTYPES[kind]
    check_size(name, tuple(shape), dtype.itemsize, path)
    expected = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != expected:
        what = f"damaged header: tensor {show(name)} takes {offsets[1] - offsets[0]} bytes, not {expected}"
        raise fail("TG803", path, what, notes=[f"{kind} {show(shape)} takes {expected}"])
    return Entry(path, kind, dtype, tuple(shape), (begin + offsets[0], begin + offsets[1]))
