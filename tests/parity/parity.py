"""What the suites share: cases against transformers, in outputs, the value differentiated and every gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tensorgraph.models import from_pretrained

from . import reference as R
from .configs import BATCHES, Batch, Config, inputs
from .configs_vision import Case, arrays_of, cotangents_of

# (outputs and loss, gradients), in the measure of reference.relative_error.
BOUNDS = {"float64": (1e-9, 1e-9), "float32": (1e-5, 1e-4)}


class Texts:
    """References and nets of a table of language models, each made once."""

    def __init__(self, configs: Mapping[str, Config], folder: Callable[[str], Path]) -> None:
        self.configs = configs
        self.model = functools.cache(lambda name: R.build(*self._own(name)))
        self.folder = functools.cache(lambda name: R.save(self.model(name), folder(name)))
        self.net = functools.cache(lambda name, dtype: from_pretrained(self.folder(name), dtype=dtype))
        self.reference = functools.cache(lambda name, batch: R.run(self.model(name), self.inputs(name, BATCHES[batch])))

    def _own(self, name: str) -> tuple[str, Mapping[str, Any], int]:
        config = self.configs[name]
        return config.cls, config.settings, config.seed

    def inputs(self, name: str, batch: Batch) -> dict[str, R.Array]:
        return inputs(batch, self.configs[name].settings["vocab_size"], self.configs[name].seed)

    def check(self, net: Any, arrays: Mapping[str, Any], ref: R.Reference, dtype: str) -> set[str]:
        """All that `net` computes is the reference's, within the bounds of `dtype`; the names of its gradients."""
        output_bound, grad_bound = BOUNDS[dtype]
        R.assert_same(ref.outputs, net(**arrays), output_bound, gradients=False)
        loss, grads = net.value_and_grad(**arrays)
        R.assert_same({"loss": np.array(ref.loss)}, {"loss": np.asarray(loss)}, output_bound, gradients=False)
        R.assert_same(ref.grads, grads, grad_bound, gradients=True)
        return set(grads)

    def check_greedy(self, name: str, B: int, T: int, padding: str) -> None:
        arrays = self.inputs(name, replace(BATCHES["no-labels"], B=B, T=T, padding=padding))
        ref = R.generate(self.model(name), **arrays, max_new_tokens=9)
        np.testing.assert_array_equal(self.net(name, "float64").generate(**arrays, max_new_tokens=9), ref)

    def check_saved(self, name: str, folder: Path) -> None:
        """What is saved transformers reads back, and computes the same to the bit."""
        self.net(name, "float32").save_pretrained(folder)
        ref, again = self.reference(name, "plain"), R.run(R.load(folder), self.inputs(name, BATCHES["plain"]))
        R.assert_same(ref.outputs, again.outputs, 0.0, gradients=False)
        R.assert_same(ref.grads, again.grads, 0.0, gradients=True)


class Suite:
    """References and nets of a table of cases, each made once."""

    def __init__(self, cases: Mapping[str, Case], folder: Callable[[str], Path]) -> None:
        self.cases, self.folder = cases, functools.cache(lambda name: R.save(self.model(name), folder(name)))
        self.model = functools.cache(self._model)
        self.reference = functools.cache(self._reference)
        self.net = functools.cache(lambda name, dtype: from_pretrained(self.folder(name), dtype=dtype))

    def _model(self, name: str) -> Any:
        case = self.cases[name]
        return R.build(case.cls, case.settings, case.seed)

    def _reference(self, name: str) -> tuple[R.Reference, dict[str, R.Array] | None]:
        case, arrays = self.cases[name], arrays_of(self.cases[name])
        if not case.cotangents:
            return R.run(self.model(name), arrays, wrt_inputs=case.wrt), None
        outputs = R.run(self.model(name), arrays, gradients=False).outputs
        given = cotangents_of(case, outputs)
        return R.run(self.model(name), arrays, cotangents=given, wrt_inputs=case.wrt), given

    def check(self, name: str, dtype: str) -> None:
        """All that ours computes is the reference's, within the bounds of `dtype`, and nothing is missing or more."""
        case, (ref, given), net = self.cases[name], self.reference(name), self.net(name, dtype)
        arrays = arrays_of(case)
        arrays |= {n: a.astype(dtype) for n, a in arrays.items() if getattr(a, "dtype", None) == np.float64}
        output_bound, grad_bound = BOUNDS[dtype]
        outputs = net(**arrays)
        assert {array.dtype.name for array in outputs.values()} == {dtype}
        if dtype == "float32" and R.compare(ref.outputs, outputs, output_bound, gradients=False):
            # Some random weights round more: there we may lose no more than twice what transformers itself does.
            own = R.run(self.model(name), arrays_of(case), "float32", gradients=False)
            output_bound = 2 * R.compare(ref.outputs, own.outputs, 0.0, gradients=False)[0].error
        R.assert_same(ref.outputs, outputs, output_bound, gradients=False)
        assert set(net.state) == R.names_in(self.folder(name)) - set(ignored(self.folder(name)))
        if ref.loss is None:
            return
        cotangents = {n: r.astype(dtype) for n, r in given.items()} if given else None
        value, grads = net.value_and_grad(**arrays, cotangents=cotangents, wrt_inputs=case.wrt)
        # A sum over random signs has cancelled: its rounding is that of its terms.
        terms = sum(np.abs(r * ref.outputs[n]).sum() for n, r in given.items()) if given else abs(ref.loss)
        assert abs(value - ref.loss) <= output_bound * terms
        if dtype == "float32" and (found := R.compare(ref.grads, grads, grad_bound, gradients=True)):
            # Gates and biases whose gradient is a sum that cancels: no more than twice what transformers loses there.
            own = R.run(self.model(name), arrays_of(case), "float32", cotangents=given, wrt_inputs=case.wrt)
            lost = {v.name: v.error for v in R.compare(ref.grads, own.grads, 0.0, gradients=True)}
            found = [v for v in found if not v.error <= 2 * lost.get(v.name, 0.0)]
            assert not found, "\n".join(map(str, found))
            return
        R.assert_same(ref.grads, grads, grad_bound, gradients=True)


def ignored(folder: Path) -> list[str]:
    """Tensors of a file that are no parameters."""
    return [name for name in R.names_in(folder) if name.endswith("position_ids")]
