"""How `--help` reads: what is to be given by its name, without Python's types, and paragraphs that fill the line."""

from __future__ import annotations

import inspect
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup


class _Readable:
    """A command whose usage and help are words of ours."""

    def __init__(self, *args: Any, help: str | None = None, **kwargs: Any) -> None:
        paragraphs = inspect.cleandoc(help or "").split("\n\n")
        filled = "\n\n".join(" ".join(p.split()) for p in paragraphs)
        super().__init__(*args, help=filled, **kwargs)  # type: ignore[call-arg]

    def get_params(self, ctx: Any) -> list[Any]:
        found: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for p in found:
            if isinstance(p, TyperArgument) or p.is_flag:  # others have a metavar
                p.display_type_rich = lambda ctx: None
        return found

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces: list[str] = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        return [piece.strip("{}") for piece in pieces]


class Command(_Readable, TyperCommand): ...


class Group(_Readable, TyperGroup): ...


__all__ = ["Command", "Group"]
