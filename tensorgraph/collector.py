"""Python's garbage collector, held back where large graphs are made."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def uncollected(f: Callable[P, R]) -> Callable[P, R]:
    """`f` without collections while it runs.

    It makes many objects that live on and next to no cycles: walking all of them each time that a quarter more are
    there is half the time at 100,000 nodes, and finds nothing.
    """

    @functools.wraps(f)
    def quietly(*args: P.args, **kwargs: P.kwargs) -> R:
        if not gc.isenabled():
            return f(*args, **kwargs)
        gc.disable()
        try:
            return f(*args, **kwargs)
        finally:
            gc.enable()

    return quietly
