"""Writing a file at once or not at all."""

from __future__ import annotations

import secrets
from pathlib import Path

from tensorgraph.errors import GraphError


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
        raise GraphError("TG387", f"cannot write {path}: {error.strerror or error}") from error


__all__ = ["write"]
