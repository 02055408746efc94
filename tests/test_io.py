"""Tensor files: what is written is read to the bit, what is damaged is refused in words, what is killed leaves no half.

Outside oracle: the safetensors library.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors as library
from safetensors.numpy import save_file

from tensorgraph.errors import CheckpointError, DTypeError
from tensorgraph.io import checkpoint, safetensors
from tensorgraph.io.files import replacing

Array = np.ndarray[Any, Any]


def bits(a: Array) -> tuple[str, tuple[int, ...], bytes]:
    return str(a.dtype), a.shape, a.tobytes()


def assert_same(a: dict[str, Array], b: dict[str, Array]) -> None:
    assert {k: bits(v) for k, v in a.items()} == {k: bits(v) for k, v in b.items()}


def tensors_of_every_kind() -> dict[str, Array]:
    """Every dtype with random bits (so NaN payloads and infinities occur), every awkward layout."""
    rng = np.random.default_rng(0)
    out: dict[str, Array] = {}
    for dtype in safetensors.KINDS:
        raw = rng.integers(0, 2 if dtype.kind == "b" else 256, 24 * dtype.itemsize, dtype=np.uint8)
        out[f"dtype/{dtype}"] = raw.view(dtype).reshape(2, 3, 4)
    base = rng.standard_normal((6, 5, 4)).astype(np.float32)
    out |= {
        "layout/transposed": base.T,
        "layout/fortran": np.asfortranarray(base),
        "layout/strided": base[::2, ::-1, 1:3],
        "layout/broadcast": np.broadcast_to(base[0, 0], (7, 4)),
        "layout/big-endian": base.astype(">f4"),
        "layout/bf16 transposed": base.astype(ml_dtypes.bfloat16).T,
        "shape/0-d": np.array(3, np.int64),
        "shape/0-d strided": base[1, 2, 3:4].reshape(()),
        "shape/empty": np.zeros((3, 0, 2), ml_dtypes.bfloat16),
        "shape/none": np.zeros(0, bool),
        "shape/32 dims": np.zeros((1,) * 32, np.int8),
        'name/µ \n "quoted" \x1b': np.arange(3, dtype=np.uint8),
        "": np.ones(1),
    }
    out["nan payloads"] = np.array([0x7FC00001, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)
    return out


def native(tensors: dict[str, Array]) -> dict[str, Array]:
    """What files hold: C order, little-endian."""
    return {k: np.asarray(v, v.dtype.newbyteorder("="), order="C") for k, v in tensors.items()}


# --- safetensors ------------------------------------------------------------------------------------------------------


def test_safetensors_gives_back_every_bit(tmp_path: Path) -> None:
    tensors = tensors_of_every_kind()
    safetensors.write(tmp_path / "a.safetensors", tensors, {"format": "pt"})
    assert_same(safetensors.read(tmp_path / "a.safetensors"), native(tensors))
    assert safetensors.open_file(tmp_path / "a.safetensors").metadata == {"format": "pt"}


def test_safetensors_agrees_with_the_library_both_ways(tmp_path: Path) -> None:
    tensors = {k: v for k, v in native(tensors_of_every_kind()).items() if "float8" not in k}  # the library reads none
    safetensors.write(tmp_path / "ours", tensors)
    save_file(tensors, tmp_path / "theirs")
    for file in ("ours", "theirs"):
        with library.safe_open(tmp_path / file, "numpy") as f:
            assert_same({k: f.get_tensor(k) for k in f.keys()}, tensors)  # noqa: SIM118
        assert_same(safetensors.read(tmp_path / file), tensors)


def test_safetensors_header_says_where_the_bytes_are(tmp_path: Path) -> None:
    file = tmp_path / "a"
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    safetensors.write(file, {"w": w, "s": np.array(1, np.int8)})
    header = safetensors.read_header(file)
    w_entry = header["w"]
    assert (w_entry.kind, w_entry.dtype, w_entry.shape, w_entry.nbytes) == (
        "F32",
        np.float32,
        (2, 3),
        24,
    )
    assert file.read_bytes()[slice(*w_entry.offsets)] == w.tobytes()
    assert header["s"].shape == ()


def test_safetensors_reads_chosen_names_in_a_chosen_dtype(tmp_path: Path) -> None:
    w = np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16)
    safetensors.write(tmp_path / "a", {"w": w, "v": w})
    out = safetensors.read(tmp_path / "a", ["w"], "float32")
    assert list(out) == ["w"] and out["w"].dtype == np.float32 and np.array_equal(out["w"], np.arange(6))
    out["w"][0] = 7  # ours: writable, and not the file
    assert safetensors.read(tmp_path / "a", ["w"], "float32")["w"][0] == 0
    with pytest.raises(DTypeError):
        safetensors.read(tmp_path / "a", dtype="float33")


def shards(folder: Path) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    tensors = {f"layers.{i}.w": rng.standard_normal((4, 3)).astype(ml_dtypes.bfloat16) for i in range(5)}
    names = {
        f"model-0000{i}-of-00002.safetensors": [n for j, n in enumerate(tensors) if j % 2 == i - 1] for i in (1, 2)
    }
    for file, held in names.items():
        save_file({n: tensors[n] for n in held}, folder / file)
    index = {"metadata": {}, "weight_map": {n: file for file, held in names.items() for n in held}}
    (folder / safetensors.INDEX).write_text(json.dumps(index))
    return tensors


def test_a_sharded_checkpoint_is_one_mapping(tmp_path: Path) -> None:
    expected = shards(tmp_path)
    tensors = safetensors.open_checkpoint(tmp_path)
    assert_same(dict(tensors), expected)
    assert tensors.entries["layers.1.w"].file.name == "model-00002-of-00002.safetensors"
    assert "absent" not in tensors and tensors.get("absent") is None and len(tensors) == 5
    assert {file: len(names) for file, names in safetensors.read_index(tmp_path).items()} == {
        "model-00001-of-00002.safetensors": 3,
        "model-00002-of-00002.safetensors": 2,
    }


def test_a_checkpoint_is_read_one_tensor_at_a_time(tmp_path: Path) -> None:
    """Going through 64 tensors of 8 MB never holds more than a few: the anonymous memory of the process tells."""
    safetensors.write(tmp_path / "model.safetensors", {f"w{i}": np.ones((2, 1 << 20), np.float32) for i in range(64)})
    code = """
import sys, resource
from tensorgraph.io import safetensors
def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) / 1024
tensors = safetensors.open_checkpoint(sys.argv[1])
before, peak, total = anonymous(), 0, 0.0
for w in tensors.values():
    peak, total = max(peak, anonymous() - before), total + float(w[1, 5])
print(total, peak)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc/self/status to see the memory of the process")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    total, peak = map(float, done.stdout.split())
    assert total == 64 and peak < 3 * 8 + 8  # MB: one kept by the loop, one being made, one to spare; 512 in the file


# Each is (what is done to the file's header and data, the full message).
Record = dict[str, Any]


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


GOOD: Record = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
LONG = b'{"w":' + b"[" * 200_000
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "[TG802] m: truncated: a safetensors file has at least 8 bytes, this one 0"),
    "hostile length": (
        struct.pack("<Q", 1 << 62) + b"{}",
        "[TG803] m: not a safetensors file: its header would have 4611686018427387904 bytes, the format allows "
        "100000000\n  the file begins with b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00@'",
    ),
    "cut header": (
        raw(GOOD, bytes(8))[:30],
        "[TG802] m: truncated: its header ends at byte 69, the file has 30\n  hint: download or copy the file again",
    ),
    "cut data": (
        raw(GOOD, bytes(7)),
        "[TG802] m: truncated: tensor 'w' ends at byte 77, the file has 76\n  hint: download or copy the file again",
    ),
    "no JSON": (
        raw(b"{'w'}"),
        "[TG803] m: damaged header: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)\n"
        "  the header begins with b\"{'w'}\"",
    ),
    "deep JSON": (
        raw(LONG),
        "[TG803] m: damaged header: nested too deep\n"
        "  the header begins with b'{\"w\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[['",
    ),
    "a list": (raw([1]), "[TG803] m: damaged header: expected an object, found [1]"),
    "twice": (
        raw(b'{"w":1,"w":2}'),
        "[TG803] m: damaged header: 'w' occurs twice\n  the header begins with b'{\"w\":1,\"w\":2}'",
    ),
    "malformed": (
        raw({"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, True]}}),
        "[TG803] m: damaged header: the record of tensor 'w' is malformed\n"
        "  dtype 'F32', shape [-2], data_offsets [0, True]",
    ),
    "no record": (
        raw({"w": 5}),
        "[TG803] m: damaged header: the record of tensor 'w' is malformed\n  dtype 5, shape None, data_offsets None",
    ),
    "dtype": (
        raw({"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, bytes(1)),
        "[TG806] m: tensor 'w' has dtype 'F4', which cannot be read\n"
        "  hint: readable are F64, F32, F16, BF16, F8_E4M3, F8_E5M2, "
        "F8_E4M3FNUZ, F8_E5M2FNUZ, F8_E8M0, C64, I64, I32, I16, I8, U64, U32, U16, U8, BOOL",
    ),
    "size": (
        raw({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)),
        "[TG803] m: damaged header: tensor 'w' takes 8 bytes, not 12\n  F32 [3] takes 12",
    ),
    "impossible": (
        raw({"w": {"dtype": "F32", "shape": [0, 1 << 40, 1 << 40], "data_offsets": [0, 0]}}),
        "[TG803] m: tensor 'w' has the impossible shape [0, 1099511627776, 1099511627776]",
    ),
    "overlap": (
        raw(
            {
                "a": {"dtype": "U8", "shape": [6], "data_offsets": [0, 6]},
                "b": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]},
            },
            bytes(8),
        ),
        "[TG803] m: damaged header: tensors 'a' and 'b' overlap\n  'a' ends at byte 134\n  'b' begins at byte 132",
    ),
    "rest": (
        raw(GOOD, bytes(9)),
        "[TG803] m: damaged: the tensors take 8 bytes, but 9 follow the header\n"
        "  no tensor begins at byte 77; the format allows neither a gap nor a rest",
    ),
    "metadata": (
        raw({"__metadata__": {"a": 1}}),
        "[TG803] m: damaged header: __metadata__ is {'a': 1}, not text by name",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_safetensors_are_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    content, message = DAMAGED[case]
    monkeypatch.chdir(tmp_path)  # short paths in the texts
    Path("m").write_bytes(content)
    with pytest.raises(CheckpointError) as e:
        safetensors.read_header("m")
    assert str(e.value) == message


def test_absent_files_and_names_are_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def message(call: Callable[[], object]) -> str:
        with pytest.raises(CheckpointError) as e:
            call()
        return str(e.value)

    monkeypatch.chdir(tmp_path)
    assert message(lambda: safetensors.read("absent")) == "[TG801] absent: no such file"
    assert message(lambda: safetensors.read(".")) == "[TG801] .: is a directory, not a file"
    safetensors.write("m", {"wte.weight": np.ones(2), "wpe.weight": np.ones(2)})
    assert message(lambda: safetensors.read("m", ["wte.wieght"])) == (
        "[TG805] m: no tensor 'wte.wieght' among the 2 of the file\n"
        "  hint: nearest to 'wte.wieght': 'wte.weight', 'wpe.weight'"
    )
    assert message(lambda: safetensors.read("m", ["x", "y"])) == (
        "[TG805] m: 2 tensors are missing among the 2 of the file\n  missing: 'x'\n  missing: 'y'"
    )
    assert message(lambda: safetensors.open_file("m")["x"]) == "[TG805] m: no tensor 'x' among the 2 of the file"
    assert message(lambda: safetensors.open_checkpoint(".")) == (
        "[TG801] .: neither model.safetensors nor model.safetensors.index.json is there\n  the folder holds ['m']"
    )
    assert message(lambda: safetensors.write("c", {"z": np.zeros(2, complex)})).startswith(
        "[TG806] c: tensor 'z' has dtype complex128, which safetensors files cannot hold\n  hint: it holds float64, "
    )
    assert message(lambda: safetensors.write("m/x", {})) == "[TG807] x: cannot be written: File exists\n  in m"


def test_a_wrong_index_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shards(tmp_path)
    index = Path(safetensors.INDEX)
    good = json.loads(index.read_text())["weight_map"]

    def message(content: object) -> str:
        index.write_text(content if isinstance(content, str) else json.dumps({"weight_map": content}))
        with pytest.raises(CheckpointError) as e:
            safetensors.open_checkpoint(".")
        return str(e.value)

    assert message(good | {"lm_head.weight": "model-00001-of-00002.safetensors"}) == (
        "[TG804] model.safetensors.index.json: 1 of the 4 tensors that it places in model-00001-of-00002.safetensors "
        "are not there\n  absent: 'lm_head.weight'\n"
        "  hint: index and shards are of different checkpoints: download all of them again"
    )
    assert message(good | {"w": "model-00003.safetensors"}) == (
        "[TG804] model.safetensors.index.json: shard model-00003.safetensors is absent\n"
        "  it should hold 1 tensors, 'w' among them\n  hint: download the missing file into the same folder"
    )
    assert message({"w": "../../etc/passwd"}) == (
        "[TG804] model.safetensors.index.json: shard '../../etc/passwd' is not a plain file name\n"
        "  shards lie in the folder of their index"
    )
    assert message({"w": 5}) == "[TG803] model.safetensors.index.json: the file of tensor 'w' is 5, not a name"
    for content in ("", "[]", '{"weight_map": []}', "{"):
        assert message(content) == (
            '[TG803] model.safetensors.index.json: not an index: expected an object with "weight_map", tensor name -> '
            f"file name\n  it begins with {content.encode()!r}"
        )


def test_any_damage_gets_the_verdict_of_the_library(tmp_path: Path) -> None:
    """Random bytes of the header changed or cut: we accept what the reference reader accepts, and nothing else."""
    rng = np.random.default_rng(0)
    file = tmp_path / "f"
    save_file({"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 3), np.int8), "c": np.ones(())}, file)
    good = file.read_bytes()
    size = 8 + int.from_bytes(good[:8], "little")
    accepted = refused = 0
    for _ in range(3000):
        content = bytearray(good)
        for _ in range(rng.integers(1, 3)):
            at = int(rng.integers(0, size))
            content[at] = int(rng.choice([*b'0123456789{}[]",:- ', content[at] ^ 1 << int(rng.integers(0, 8))]))
        if rng.random() < 0.2:
            content = content[: rng.integers(0, len(content))]
        file.write_bytes(content)
        try:
            with library.safe_open(file, "numpy") as f:
                theirs: dict[str, Array] | None = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        except (library.SafetensorError, OSError):
            theirs = None
        try:
            ours = safetensors.read(file)
        except CheckpointError:
            assert theirs is None, bytes(content)
            refused += 1
        else:
            assert theirs is not None, bytes(content)
            assert_same(ours, theirs)
            accepted += 1
    assert accepted > 20 and refused > 1000


# --- writing without leaving half a file ------------------------------------------------------------------------------

WRITER = """
import sys, numpy as np
from tensorgraph.io import checkpoint
step = 0
while True:
    step += 1
    checkpoint.save(sys.argv[1], {"params/w": np.full(500_000, step, np.int64), "step": np.array(step)}, {"step": step})
    print(step, flush=True)
"""


def test_a_killed_writer_leaves_the_old_checkpoint_or_the_new(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            said = int(writer.stdout.readline())
            time.sleep(float(rng.uniform(0, 0.05)))
            os.kill(writer.pid, signal.SIGKILL)
            said = max([said, *map(int, writer.stdout.read().split())])
        state, meta = checkpoint.load(tmp_path)
        step = meta["step"]
        assert step in (said, said + 1)  # what was reported as saved is there; the next may be
        assert state["step"] == step and (state["params/w"] == step).all()
    checkpoint.save(tmp_path, {}, {})
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.FILE]  # and leftovers are gone with the next save


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("old")
    code = """
import os, signal, sys
from tensorgraph.io.files import replacing
with replacing(sys.argv[1]) as new:
    new.write_text("half")
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    print("ready", flush=True)
    sys.stdin.readline()
"""
    assert subprocess.run([sys.executable, "-c", code, str(file), "die"]).returncode == -signal.SIGKILL
    assert file.read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    arguments = [sys.executable, "-c", code, str(file), "live"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as slow:
        assert slow.stdout is not None and slow.stdout.readline() == "ready\n"
        assert len(list(tmp_path.iterdir())) == 2  # the dead writer's is gone,
        with replacing(file) as new:
            new.write_text("new")
        assert file.read_text() == "new" and len(list(tmp_path.iterdir())) == 2  # the living one's is not
        slow.communicate("\n")
    assert file.read_text() == "half" and list(tmp_path.iterdir()) == [file]


def test_a_failing_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """The system refuses to write beyond 100 kB, as a full disk would."""
    checkpoint.save(tmp_path, {"w": np.ones(3)}, {"step": 1})
    code = """
import sys, resource, numpy as np
from tensorgraph.errors import CheckpointError
from tensorgraph.io import checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(sys.argv[1], {"w": np.ones(1 << 20)}, {"step": 2})
except CheckpointError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"[TG807] checkpoint.safetensors: cannot be written\n  in {tmp_path}\n"
        "  Error while serializing: I/O error: File too large (os error 27)\n"
    )
    state, meta = checkpoint.load(tmp_path)
    assert meta == {"step": 1} and np.array_equal(state["w"], np.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.FILE]


def test_two_writers_never_mix(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline()
        for _ in range(20):
            state, meta = checkpoint.load(tmp_path)
            assert (state["params/w"] == meta["step"]).all() and state["step"] == meta["step"]
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()


def test_replacing_keeps_permissions_and_follows_links(tmp_path: Path) -> None:
    def replace(path: Path, text: str) -> None:
        with replacing(path) as new:
            new.write_text(text)

    replace(tmp_path / "new" / "folder" / "a", "1")
    plain = tmp_path / "plain"
    plain.write_text("")
    assert (tmp_path / "new/folder/a").stat().st_mode == plain.stat().st_mode
    plain.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(plain)
    replace(link, "2")
    assert link.is_symlink() and plain.read_text() == "2" and plain.stat().st_mode & 0o777 == 0o640
    with pytest.raises(ZeroDivisionError), replacing(plain) as new:
        new.write_text("half")
        raise ZeroDivisionError
    assert plain.read_text() == "2" and sorted(p.name for p in tmp_path.iterdir()) == ["link", "new", "plain"]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_gives_back_every_bit_and_its_meta(tmp_path: Path) -> None:
    state = tensors_of_every_kind()
    meta = {"step": 10**12, "lr": 0.1, "names": ["a", "µ"], "nested": {"none": None, "yes": True}}
    assert checkpoint.save(tmp_path, state, meta) == tmp_path / "checkpoint.safetensors"
    assert checkpoint.save(tmp_path / "b.safetensors", state, meta) == tmp_path / "b.safetensors"
    for path in (tmp_path, tmp_path / "b.safetensors"):
        loaded, said = checkpoint.load(path)
        assert_same(loaded, native(state))
        assert said == meta and all(a.flags.writeable for a in loaded.values())


def test_a_wrong_checkpoint_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def message(call: Callable[[], object]) -> str:
        with pytest.raises(CheckpointError) as e:
            call()
        return str(e.value)

    assert message(lambda: checkpoint.load("run")) == "[TG801] checkpoint.safetensors: no such file\n  in run"
    assert message(lambda: checkpoint.save("run", {}, {"a": {1, 2}})) == (
        "[TG808] run: meta cannot be kept as JSON: Object of type set is not JSON serializable"
    )
    safetensors.write("m.safetensors", {"w": np.ones(2)})
    assert message(lambda: checkpoint.load("m.safetensors")) == (
        "[TG808] m.safetensors: holds tensors, but is not a training checkpoint\n"
        "  hint: tensorgraph.io.safetensors.read reads any safetensors file"
    )
    safetensors.write("m.safetensors", {}, {"tensorgraph": '{"format": 2, "meta": {}}'})
    assert message(lambda: checkpoint.load("m.safetensors")) == (
        "[TG808] m.safetensors: checkpoint format 2, this version reads format 1"
    )
    safetensors.write("m.safetensors", {}, {"tensorgraph": "{}"})
    assert message(lambda: checkpoint.load("m.safetensors")) == "[TG808] m.safetensors: damaged checkpoint record: '{}'"
