"""Is the peak predicted before running the peak of the process? memory.py [S|M|toy ...] [numpy|c ...] [remat=block ...]

For each model and backend a fresh process imports, runs one product, notes its size, trains three steps and notes its
largest size (VmHWM). One JSON line each: the growth, the prediction, and their ratio, which should be within 5 %.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BACKENDS = ("numpy", "c")


def status(key: str) -> int:
    """A size of this process in bytes, from the kernel."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def trim() -> None:
    """Give freed memory back to the system: taken again later, it would hide growth."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def one(name: str, backend: str, remat: str) -> dict[str, Any]:
    import numpy as np
    import ours

    import tensorgraph as tg

    rng = np.random.default_rng(1)
    c = ours.CONFIGS[name]
    p = ours.weights(c)  # held to the end
    shapes = {n: a.shape for n, a in p.items()}
    step = tg.compile(
        ours.loss_of(c, shapes), update=tg.optim.AdamW(3e-4, weight_decay=0.1), backend=backend, remat=remat
    )
    a = np.ones((2048, 2048), np.float32)
    a @ a
    del a
    trim()
    before = status("VmRSS")
    state = step.init(p)
    ids, labels = (rng.integers(0, c["V"], (c["B"], c["T"])).astype("int32") for _ in range(2))
    for _ in range(3):
        _, state = step(state, ids=ids, labels=labels)
    grown, predicted = status("VmHWM") - before, step.memory().peak
    return {
        "key": f"memory {name} {backend} {remat}",
        "grown_mb": grown / 1e6,
        "predicted_mb": predicted / 1e6,
        "ratio": predicted / grown,
    }


def main(words: list[str]) -> None:
    names = [w for w in words if w in ("S", "M", "toy")] or ["S", "M"]
    backends = [w for w in words if w in BACKENDS] or list(BACKENDS)
    modes = [w.removeprefix("remat=") for w in words if w.startswith("remat=")] or ["none"]
    for name in names:
        for backend in backends:
            for mode in modes:
                command = [sys.executable, __file__, "one", name, backend, mode]
                subprocess.run(command, check=True, timeout=600)


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        print(json.dumps(one(*sys.argv[2:5])), flush=True)
    else:
        main(sys.argv[1:])
