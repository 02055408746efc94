"""tg.compile: what is asked for, checked, and made a function of arrays or a training step."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import dims
from .backends import cpu
from .built import Options, Source
from .compiled import Compiled, flatten
from .errors import BackendError, GraphError
from .graph import Graph
from .optim import Optimizer
from .passes import memory, rewrite
from .passes import remat as remats
from .step import Step
from .tensor import Tensor, _hooks

BACKENDS = ("auto", "numpy", "c", "cupy")


def compile(
    outputs: Any,
    *,
    update: Optimizer | None = None,
    backend: str = "auto",
    binding: Any = None,
    capture: Any = (),
    donate: Mapping[str, str] | None = None,
    debug: str | None = None,
    trace: str | Path | None = None,
    strict: bool = False,
    remat: str = "none",
    memory_limit: int | str | None = None,
    name: str = "graph",
) -> Any:
    """A function of arrays that computes `outputs` (a tensor, a list or a dict of tensors, or a Graph).

    `f(params, **inputs)` or `f(**inputs)` returns arrays in the structure of `outputs`; sizes are read off the arrays,
    the rest comes from `binding`. With `update=` an optimiser it is a training step of the scalar output (the first, or
    the one called "loss"): see Step. `capture`: patterns of named values returned as well, under "captured".
    `donate`: {output: input} pairs; that input's array is overwritten with the output, in place where possible.
    `debug="nonfinite"`: the first node that produces nan or inf is an error. `trace`: a folder for each pass.
    `backend`: "auto" is generated C for a training step where a compiler is found, and NumPy otherwise.
    `strict`: generated C takes exp, tanh and erf of float32 from libm, small products round twice per element, and any
    number of threads gives the same bits; else exp, tanh and erf are polynomials, and large products are cut by the
    number of threads: the same bits from run to run.
    `remat`: forward values that backward reads are kept ("none"; but generated C makes scores of attention again that
    are 16 MB or more by `binding`) or computed again, layer by layer ("block"), also the layers' own inputs ("full"),
    or for as few layers as bring the peak under "budget=2GB" (which needs `binding`).
    `memory_limit`: bytes that a call may need in all, or "2GB"; by default what the system has free.
    Raises BackendError[TG700] for an unknown backend, [TG704] for "c" without a C compiler, [TG712] for an unknown
    `remat`, [TG713] for a budget that cannot be met, [TG716] for what is no limit; the call, [TG710] where it would not
    fit in memory.
    """
    if backend not in BACKENDS:
        raise BackendError("TG700", f"unknown backend {backend!r}", hint="one of " + ", ".join(BACKENDS))
    if debug not in (None, "nonfinite"):
        raise BackendError("TG700", f"unknown debug mode {debug!r}", hint='debug="nonfinite"')
    if backend == "c":
        cpu.need_compiler()
    chosen = _chosen(update is not None) if backend == "auto" else backend
    remats.mode(remat)
    sizes = dims.binding(binding) if binding else {}
    options = Options(chosen, sizes, debug, trace, name, strict, remat, memory.limit_of(memory_limit))
    if isinstance(outputs, Graph):
        outputs, options = outputs.outputs, options._replace(name=outputs.name)
    tree, flat = flatten(outputs)
    if not flat:
        raise GraphError("TG313", "nothing to compile: there are no outputs")
    if capture:
        patterns = [capture] if isinstance(capture, str) else list(capture)
        # what has no kernel of its own is inlined first, so that values inside it (attention's probs) are found too
        opened = Graph(rewrite.inline(dict(flat), lambda t: t.op.forward_fn is not None))
        captured = {t.path: t for p in patterns for t in opened.find(p)}
        flat.update({f"captured/{k}": t for k, t in captured.items()})
        tree = {"value": tree, "captured": {k: f"captured/{k}" for k in captured}}
    if update is not None:
        if not isinstance(update, Optimizer):
            text = f"update must be an optimiser, not {type(update).__name__}"
            raise GraphError("TG314", text, hint="update=tg.optim.AdamW(lr=3e-4)")
        return Step(flat, tree, update, options)
    return Compiled(lambda: Source(flat, dict(donate or {}), {}), tree, options)


def _chosen(repeated: bool) -> str:
    """What "auto" means: C for what is called again and again, if there is a compiler; NumPy for one evaluation."""
    return "c" if repeated and cpu.offered() else "numpy"


def eval_tensor(y: Tensor, backend: str, arrays: Mapping[str, Any]) -> Any:
    """`y.eval(x=..., w=...)`: inputs and parameters by name; the last few compilations are kept."""
    return _compiled(y, backend)(None, **arrays)


@functools.lru_cache(maxsize=8)
def _compiled(y: Tensor, backend: str) -> Any:
    return compile(y, backend=backend)


_hooks["eval"] = eval_tensor
