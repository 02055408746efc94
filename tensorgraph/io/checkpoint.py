"""Training checkpoints: one safetensors file, replaced in one step, that gives back every bit."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorgraph.io import safetensors
from tensorgraph.io.files import Array, fail, show

FILE = "checkpoint.safetensors"
FORMAT = 1


def save(path: str | os.PathLike[str], state: Mapping[str, Array], meta: Mapping[str, Any] | None = None) -> Path:
    """Save flat names -> arrays (`params/...`, `opt/m/...`) and JSON values `meta`; returns the file written.

    `path` is a `.safetensors` file, or a folder that gets `checkpoint.safetensors`. A process killed at any moment
    leaves the old checkpoint or the new one. Bits are kept, NaN payloads included; layout becomes C order.
    Raises CheckpointError: TG806 for a dtype that cannot be kept, TG807 if the system refuses, TG808 for `meta`
    that is not JSON.
    """
    try:
        text = json.dumps({"format": FORMAT, "meta": dict(meta or {})})
    except (TypeError, ValueError) as e:
        raise fail("TG808", Path(path), f"meta cannot be kept as JSON: {e}") from None
    file = _file(path)
    safetensors.write(file, state, {"tensorgraph": text})
    return file


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """What `save` was given: (state, meta), the arrays writable and in C order.

    Raises CheckpointError as `safetensors.read`, and TG808 if the file is not a checkpoint of ours.
    """
    file = _file(path)
    tensors = safetensors.open_file(file)  # once: a checkpoint saved meanwhile must not mix with this one
    text = tensors.metadata.get("tensorgraph")
    if text is None:
        raise fail(
            "TG808",
            file,
            "holds tensors, but is not a training checkpoint",
            hint="tensorgraph.io.safetensors.read reads any safetensors file",
        )
    try:
        record = json.loads(text)
        version, meta = record["format"], record["meta"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise fail("TG808", file, f"damaged checkpoint record: {show(text)}") from None
    if version != FORMAT:
        raise fail("TG808", file, f"checkpoint format {show(version)}, this version reads format {FORMAT}")
    return dict(tensors), meta


def _file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / FILE
