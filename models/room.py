"""Room for arrays that are read at the speed of memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
LINE = 64  # bytes that are read at once
PAGE = 1 << 21  # bytes of a large page


class Room:
    """Arrays side by side in blocks of `size` bytes: the system maps those in large pages, which are faster to read.

    A block is kept as long as one of its arrays is.
    """

    def __init__(self, size: int = 16 * PAGE) -> None:
        self.size, self._block, self._used = size, np.empty(0, np.uint8), 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array that starts at a cache line."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if self._used + size > self._block.size:
            block = np.empty(max(self.size, size) + PAGE, np.uint8)
            self._block, self._used = block, -block.ctypes.data % PAGE
        at = slice(self._used, self._used + size)
        self._used += -(-size // LINE) * LINE
        return self._block[at].view(dtype).reshape(shape)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        found = self.empty(shape, dtype)
        found.fill(0)
        return found

    def copy(self, a: Array) -> Array:
        found = self.empty(a.shape, a.dtype)
        found[...] = a
        return found


__all__ = ["Room"]
