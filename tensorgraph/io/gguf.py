"""GGUF files: metadata and tensors, dequantised one at a time.

The header is parsed here with every length checked against the file, because the `gguf` package follows the lengths a
damaged file claims; its `quants` do the dequantising. Format: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tensorgraph.errors import CheckpointError
from tensorgraph.io.files import Array, Entry, Tensors, check_ranges, check_size, fail, open_map, release, show

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
PLAIN: dict[str, np.dtype[Any]] = {
    kind: np.dtype(dtype)
    for kind, dtype in {
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F64": np.float64,
        "I8": np.int8,
        "I16": np.int16,
        "I32": np.int32,
        "I64": np.int64,
    }.items()
}
MAX_DIMS = 4
# Far above any real file, and low enough that the header of a hostile one is refused within seconds.
MAX_STRINGS = 1 << 22
MAX_RECORDS = 1 << 20
# Elements dequantised at once: the intermediate arrays stay in the cache and small beside the tensor.
CHUNK = 1 << 18


class GGUF:
    """An open GGUF file: `metadata` holds Python values by key, `tensors` maps names lazily to arrays.

    Tensors have NumPy's order of dims (the reverse of the file's), floats and quantised ones dtype float32, and the
    file's order of rows: a Llama file's q and k still need `unpermute_rope`.
    """

    def __init__(self, path: Path, metadata: dict[str, Any], entries: dict[str, Entry], data: memoryview) -> None:
        self.path = path
        self.metadata = metadata

        def read(name: str, entry: Entry, dtype: np.dtype[Any]) -> Array:
            values = _dequantise(name, entry, dtype, data)
            release(data, *entry.offsets)
            return values

        self.tensors = Tensors(entries, read, path)

    def __repr__(self) -> str:
        return f"<GGUF {self.path}: {len(self.metadata)} keys, {len(self.tensors)} tensors>"


def read(path: str | os.PathLike[str]) -> GGUF:
    """Open a GGUF file: its metadata is read, its tensors when they are asked for.

    Raises CheckpointError: TG801 no such file, TG802 truncated, TG803 damaged header, TG806 an unknown quantisation.
    """
    path = Path(path)
    data = open_map(path)
    header = _Header(data, path)
    metadata, entries = header.parse()
    return GGUF(path, metadata, entries, data)


def unpermute_rope(w: Array, heads: int) -> Array:
    """Undo the row order that GGUF gives Llama's q and k, for a weight (H·k, d) or a bias (H·k,) of `heads` heads.

    The file pairs the rows that RoPE rotates together (2i, 2i + 1); Hugging Face's layout has them half a head
    apart (i, i + k/2). Source: the inverse of `permute` in llama.cpp's convert_hf_to_gguf.py.
    Raises CheckpointError[TG803] if the rows are not whole heads of even size.
    """
    rows = w.shape[0] if w.ndim else 0
    if w.ndim == 0 or heads < 1 or rows % (2 * heads):
        raise CheckpointError("TG803", f"{show(w.shape)} cannot be {heads} heads of even size")
    return w.reshape(heads, rows // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


class _Header:
    """A cursor over the header; every read is checked against the end of the file first."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data = data
        self.path = path
        self.at = 0
        self.strings = 0

    def parse(self) -> tuple[dict[str, Any], dict[str, Entry]]:
        magic = bytes(self.data[:4])
        if magic != b"GGUF":
            raise fail("TG803", self.path, f"not a GGUF file: expected b'GGUF' first, found {magic!r}")
        self.at = 4
        version = self.scalar("I", "the version")
        if version & 0xFFFF == 0:
            raise fail("TG803", self.path, "a big-endian GGUF file", hint="convert it to little-endian")
        if version not in (2, 3):
            raise fail("TG803", self.path, f"GGUF version {version}; versions 2 and 3 can be read")
        n_tensors, n_keys = self.scalar("Q", "the number of tensors"), self.scalar("Q", "the number of keys")
        for count, least, what in ((n_keys, 12, "metadata keys"), (n_tensors, 24, "tensors")):
            self.check_count(count, least, what, MAX_RECORDS)
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self.string("a metadata key")
            if key in metadata:
                raise self.damaged(f"metadata key {show(key)} occurs twice")
            metadata[key] = self.value(self.scalar("I", f"the type of {show(key)}"), f"the value of {show(key)}")
        align = metadata.get("general.alignment", 32)
        if type(align) is not int or align < 1 or align & (align - 1):
            raise self.damaged(f"general.alignment is {show(align)}, not a power of two")
        records = [self.record() for _ in range(n_tensors)]
        begin = -(-self.at // align) * align
        entries: dict[str, Entry] = {}
        for name, kind, dtype, shape, offset, nbytes in records:
            if name in entries:
                raise self.damaged(f"tensor {show(name)} occurs twice")
            if offset % align:
                raise self.damaged(f"tensor {show(name)} lies at offset {offset}, not a multiple of {align}")
            entries[name] = Entry(self.path, kind, dtype, shape, (begin + offset, begin + offset + nbytes))
        check_ranges(entries, begin, len(self.data), self.path)
        return metadata, entries

    def record(self) -> tuple[str, str, np.dtype[Any], tuple[int, ...], int, int]:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self.string("a tensor name")
        ndim = self.scalar("I", f"the number of dims of {show(name)}")
        if ndim > MAX_DIMS:
            raise self.damaged(f"tensor {show(name)} has {ndim} dims; the format allows {MAX_DIMS}")
        shape = tuple(self.scalar("Q", f"a dim of {show(name)}") for _ in range(ndim))[::-1]
        number = self.scalar("I", f"the type of {show(name)}")
        offset = self.scalar("Q", f"the offset of {show(name)}")
        try:
            quant = GGMLQuantizationType(number)
            block, size = GGML_QUANT_SIZES[quant]
        except (ValueError, KeyError):
            raise fail(
                "TG806", self.path, f"tensor {show(name)} has quantisation type {number}, which is unknown"
            ) from None
        check_size(name, shape, 8, self.path)
        row = shape[-1] if shape else 1
        if row % block:
            what = f"tensor {show(name)} has rows of {row} elements; {quant.name} has blocks of {block}"
            raise self.damaged(what)
        dtype = PLAIN.get(quant.name, np.dtype(np.float32))
        dtype = np.dtype(np.float32) if quant.name in ("F16", "BF16") else dtype
        return name, quant.name, dtype, shape, offset, math.prod(shape) // block * size

    def value(self, kind: int, what: str) -> Any:
        if kind in SCALARS:
            return self.scalar(SCALARS[kind], what)
        if kind == STRING:
            return self.string(what)
        if kind != ARRAY:
            raise self.damaged(f"{what} has type {kind}, which is unknown")
        kind, count = self.scalar("I", what), self.scalar("Q", what)
        if kind == STRING:
            self.check_count(count, 8, f"strings in {what}", MAX_STRINGS - self.strings)
            self.strings += count
            return [self.string(what) for _ in range(count)]
        if kind not in SCALARS:
            problem = "nested arrays are not supported" if kind == ARRAY else f"elements of unknown type {kind}"
            raise self.damaged(f"{what}: {problem}")
        self.check_count(count, struct.calcsize("<" + SCALARS[kind]), f"elements in {what}", 1 << 62)
        first = self.take(count * struct.calcsize("<" + SCALARS[kind]), what)
        return np.frombuffer(self.data, "<" + SCALARS[kind], count, first).tolist()

    def scalar(self, code: str, what: str) -> Any:
        first = self.take(struct.calcsize("<" + code), what)
        return struct.unpack_from("<" + code, self.data, first)[0]

    def string(self, what: str) -> str:
        length = self.scalar("Q", f"the length of {what}")
        first = self.take(length, what)
        try:
            return str(self.data[first : self.at], "utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"{what} is not UTF-8: {show(bytes(self.data[first : self.at][:40]))}") from None

    def take(self, length: int, what: str) -> int:
        """Step over `length` bytes; returns where they begin."""
        first, left = self.at, len(self.data) - self.at
        if length > left:
            message = f"truncated or damaged: {what} takes {length} bytes at byte {first}, {left} are left"
            raise fail("TG802", self.path, message, hint="download or copy the file again")
        self.at += length
        return first

    def check_count(self, count: int, least: int, what: str, limit: int) -> None:
        """Refuse at once a count of things, each of at least `least` bytes, that the rest of the file cannot hold."""
        left = len(self.data) - self.at
        if count * least > left:
            message = f"truncated or damaged: {count} {what} cannot fit into the {left} bytes left"
            raise fail("TG802", self.path, message, hint="download or copy the file again")
        if count > limit:
            raise self.damaged(f"{count} {what}; no real file has more than {limit}")

    def damaged(self, what: str) -> CheckpointError:
        return fail("TG803", self.path, f"damaged header: {what}")


def _dequantise(name: str, entry: Entry, dtype: np.dtype[Any], data: memoryview) -> Array:
    raw = np.frombuffer(data, np.uint8, entry.nbytes, entry.offsets[0])
    if entry.kind in PLAIN:
        return np.array(raw.view(PLAIN[entry.kind]).reshape(entry.shape), dtype=dtype, order="C")
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    quant = GGMLQuantizationType[entry.kind]
    block, size = GGML_QUANT_SIZES[quant]
    blocks = raw.reshape(-1, size)
    out: Array = np.empty(entry.shape, dtype)
    flat = out.reshape(-1, block)
    step = max(1, CHUNK // block)
    try:
        for i in range(0, len(blocks), step):
            # As one long row: the library goes through an array in groups of 16 rows.
            flat[i : i + step] = dequantize(blocks[i : i + step].reshape(1, -1), quant).reshape(-1, block)
    except NotImplementedError:
        what = f"tensor {show(name)} is quantised as {entry.kind}, which cannot be read"
        raise fail("TG806", entry.file, what, hint="convert the model to Q8_0, Q4_K_M or F16") from None
    return out
