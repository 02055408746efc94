"""The ops: about sixty records. Importing this package attaches operators and methods to Tensor."""

from __future__ import annotations

from ..op import REGISTRY
from ..tensor import attach_methods
from . import elementwise, indexing, leaf, linalg, movement, nn, packed, random, reduce
from .elementwise import *  # noqa: F403
from .indexing import *  # noqa: F403
from .leaf import *  # noqa: F403
from .linalg import *  # noqa: F403
from .movement import *  # noqa: F403
from .nn import *  # noqa: F403
from .reduce import *  # noqa: F403

attach_methods(REGISTRY.values())

__all__ = [
    *elementwise.__all__,
    *indexing.__all__,
    *leaf.__all__,
    *linalg.__all__,
    *movement.__all__,
    *nn.__all__,
    *reduce.__all__,
    "packed",
    "random",
]
