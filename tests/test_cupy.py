"""backend="cupy", op by op: every sample of every op, and a training step, equal to the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph import interpret, testing
from tensorgraph.gradcheck.sampling import small_sizes
from tensorgraph.op import REGISTRY
from tensorgraph.tensor import LOOP_OPS

cupy = pytest.importorskip("cupy", reason="backend 'cupy' needs CuPy, which is not installed")


def gpu() -> bool:
    try:
        return bool(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


pytestmark = pytest.mark.skipif(not gpu(), reason="backend 'cupy' needs a GPU, and there is none")
LOOPS = LOOP_OPS
SAMPLES = [
    pytest.param(op, s, dtype, id=f"{name}-{i}-{dtype}")
    for name, op in REGISTRY.items()
    if not op.leaf and name not in LOOPS
    for i, s in enumerate(op.samples)
    for dtype in ("float32", "float64")
]


@pytest.mark.parametrize(("op", "sample", "dtype"), SAMPLES)
def test_op_equals_reference(op, sample, dtype):
    case = testing.build(op, sample, dtype=dtype)
    sizes = small_sizes(case.graph)
    values = {t: np.asarray(a, t.dtype.np) for t, a in case.values(sizes).items()}
    wanted = interpret.evaluate(case.results, values, sizes)
    f = tg.compile(case.graph, backend="cupy", binding=sizes)
    got = f(**{t.label: a for t, a in values.items()})
    for have, want in zip(got.values(), wanted, strict=True):
        assert have.shape == want.shape and have.dtype == want.dtype
        if want.dtype.kind == "f":  # reductions of a few dozen terms, each rounded once
            eps = float(np.finfo(want.dtype).eps) if want.dtype.itemsize > 2 else 2.0**-8
            np.testing.assert_allclose(have.astype("f8"), want.astype("f8"), rtol=256 * eps, atol=256 * eps)
        else:
            np.testing.assert_array_equal(have, want)


def test_gpt2_step_equals_numpy():
    model = tg.models.build("gpt2", n_embd=24, n_layer=2, n_head=3, n_positions=16, vocab_size=31)
    loss = model.outputs(**model.inputs(["input_ids", "labels"]))["loss"]
    ids = np.random.default_rng(0).integers(0, 31, (2, 9)).astype("int32")
    losses = {}
    for backend in ("numpy", "cupy"):
        step = tg.compile(loss, update=tg.optim.AdamW(1e-2, clip=1.0), binding=model.binding, backend=backend)
        state = step.init(model.init(0, model.binding))
        losses[backend] = []
        for _ in range(5):
            value, state = step(state, input_ids=ids, labels=ids)
            losses[backend].append(float(value))
    np.testing.assert_allclose(losses["cupy"], losses["numpy"], rtol=1e-5)
