"""Writing a file at once or not at all."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from pathlib import Path

from tensorgraph.errors import GraphError


def ready(path: Path, suffixes: Collection[str]) -> None:
    """Raise what writing a file would raise, before what goes into it is made.

    GraphError: [TG386] a suffix that is none of these, [TG387] no folder to write in.
    """
    if path.suffix.lower() not in suffixes:
        hint = f"save as one of: {' '.join(suffixes)}"
        raise GraphError("TG386", f"no picture format is named {path.suffix!r} ({path.name})", hint=hint)
    if not path.parent.is_dir():
        raise GraphError("TG387", f"cannot write {path}: there is no folder {path.parent}")


def write(path: Path, made: str | bytes) -> None:
    """Write text or bytes to a file, which is whole or not there. Raises GraphError[TG387] where it cannot be."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            part.write_bytes(made.encode() if isinstance(made, str) else made)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        if not path.parent.is_dir():
            raise GraphError("TG387", f"cannot write {path}: there is no folder {path.parent}") from error
        raise GraphError("TG387", f"cannot write {path}: {error.strerror or error}") from error


__all__ = ["ready", "write"]
