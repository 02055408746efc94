"""Text generation: cached decoding, one token at a time, greedy or sampled."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from operator import is_
from typing import TYPE_CHECKING, Any

import numpy as np

from tensorgraph.backends import cpu
from tensorgraph.compile import compile
from tensorgraph.dims import dim, evaluate
from tensorgraph.errors import DataError, ModelError
from tensorgraph.ops.leaf import input
from tensorgraph.tensor import Tensor

from . import packed
from .architecture import log
from .decoder import Decoder
from .model import Spec, array_of, used, zero_or_one
from .parts import Cache
from .room import Room

if TYPE_CHECKING:
    from .pretrained import Net

Array = np.ndarray[Any, np.dtype[Any]]
WORTH = 1 << 23  # weights from which on each token in C wins back enough of the second or so that C compiles


class Session:
    """Decoding of one batch: holds keys and values of the positions fed so far, `capacity` of them at most.

    `feed` takes any number of positions at once; where they exceed the capacity it grows, the only time that
    buffers are planned anew. `masked`: some positions are padding. `images`: what goes with the first positions fed,
    which are then the whole prompt.
    """

    def __init__(
        self,
        net: Net,
        batch: int,
        *,
        masked: bool = False,
        capacity: int = 64,
        images: Mapping[str, Array] | None = None,
    ) -> None:
        self.net, self.batch, self.masked = net, batch, masked
        self.position = 0
        self.capacity = capacity
        self._images = dict(images or {})
        self._again: tuple[Any, list[Array]] = None, []  # the last call, made again; the arrays that it was made on
        specs = net.model.specs(tuple(self._images))
        held = self._compile({name: specs[name] for name in self._images})
        room = Room()
        self._cache = {label: room.zeros(self._shape(t), t.dtype.np) for label, t in held.items()}
        self._mask = np.zeros((batch, capacity), np.int32)

    def feed(self, ids: Array, mask: Array | None = None, positions: Array | None = None) -> Array:
        """Logits [B, V] after ids [B, T] that follow those fed before.

        `mask` [B, T] is 0 at padding; `positions` [B, T] default to the number of positions fed before, and so on.
        Raises DataError[TG504] for an id out of range, [TG510] beyond the positions that the model has.
        """
        T = ids.shape[1]
        if positions is None:
            positions = np.arange(self.position, self.position + T, dtype=np.int32)[None].repeat(len(ids), 0)
        check_length(self.net, int(positions.max(initial=0)) + 1)
        self._reserve(self.position + T)
        arrays = {"input_ids": ids, "position_ids": positions}
        if self.masked:
            self._mask[:, self.position : self.position + T] = 1 if mask is None else mask
            arrays["attention_mask"] = self._mask
        looks = self.net.model.looks
        if looks in self._images:
            self._images[looks] = longer(self._images[looks], T)
        arrays |= {**self._images, "position": np.array(self.position, np.int32)}
        found = self._call(used(self._step, arrays))
        if self.position == 0 and self._images:
            self._look_back(found, T)
        self.position += T
        return found["logits"][:, -1]

    def values(self) -> dict[str, Array]:
        """What the step reads, by parameter: the net's values, packed if that is wanted."""
        return self.net.values() if self._weights is None else self._weights.values(self.net.source())

    def _call(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """What the step makes of these. The next call on the same weights and caches goes to the backend at once."""
        values = self.values()
        step, leaves, held = self._step, self._step.signature.leaves, [*values.values(), *self._cache.values()]
        given = {name: exact(a, leaves[name][0].np) for name, a in inputs.items() if name in leaves}
        repeat, before = self._again
        if repeat is not None and len(held) == len(before) and all(map(is_, held, before)):
            with step._lock:
                results = repeat(given)
            if results is not None:
                return dict(zip(step.signature.results, results, strict=True))
        P = step.arrays({**values, **self._cache}, given)
        found: dict[str, Array] = step.run(P)
        self._again = step.repeat(P, {name: P[name] for name in given}), held
        return found

    def _compile(self, extra: Mapping[str, Spec]) -> dict[str, Any]:
        """Take the step that has these inputs, too; the inputs that hold its cache."""
        key = ("decode", self.masked, self.net.weights, tuple(extra))
        made = self.net.compiled(key, lambda: _decoder(self.net, self.masked, extra))
        self._step, held, self._weights, self._features = made
        self._again = None, []
        return held

    def _look_back(self, found: Mapping[str, Array], T: int) -> None:
        """From now on what the images were made into stands for them; new tokens see what the prompt's last one did."""
        looks, specs, images = self.net.model.looks, {}, {}
        if self._features is not None:
            specs["features"], images["features"] = self._features, found["features"]
            if looks in self._images:
                specs[looks] = self.net.model.specs((looks,))[looks]
                images[looks] = self._images[looks][:, -1:]
        self._images = images
        self._compile(specs)

    def _shape(self, held: Any) -> tuple[int, ...]:
        sizes = {**self.net.model.binding, "B": self.batch, "C": self.capacity}
        return tuple(evaluate(d, sizes) for d in held.shape)

    def _reserve(self, length: int) -> None:
        """Room for `length` positions."""
        old = self.capacity
        if length <= old:
            return
        self.capacity = _capacity(length)
        self._mask = np.pad(self._mask, ((0, 0), (0, self.capacity - old)))
        room = Room()
        for label, a in self._cache.items():
            self._cache[label] = room.zeros((*a.shape[:2], self.capacity, *a.shape[3:]), a.dtype)
            self._cache[label][:, :, :old] = a


def exact(a: Array, dtype: Any) -> Array:
    """Whole numbers in this dtype and in one piece, as a backend takes them; `a` itself where that changes them."""
    if a.dtype.kind not in "iu" or (a.dtype == dtype and a.flags.c_contiguous):
        return a
    found = np.ascontiguousarray(a, dtype).reshape(a.shape)
    return found if (found == a).all() else a


def longer(looks: Array, T: int) -> Array:
    """Rows [B, T, ..] for T tokens: the last one is that of all that follow, and of one alone that of all."""
    return looks[:, np.minimum(np.arange(T), looks.shape[1] - 1)]


def _decoder(
    net: Net, masked: bool, extra: Mapping[str, Spec]
) -> tuple[Any, dict[str, Any], packed.Weights | None, Spec | None]:
    """The compiled step, the inputs that hold the cache (its outputs overwrite them in place), its packed weights, and
    what stands for images in later steps, if there are any that it looks at again.
    """
    B, C = dim("B"), dim("C")
    cache = Cache(C, input("position", (), "int32"))
    specs = net.model.specs(())
    inputs = {name: input(name, *spec) for name, spec in extra.items()}
    inputs |= {name: input(name, *specs[name]) for name in ("input_ids", "position_ids")}
    if masked:
        inputs["attention_mask"] = input("attention_mask", (B, C), "int32")
    net.model.assign_names()
    found = net.model(**inputs, cache=cache)
    logits, features = (found, None) if isinstance(found, Tensor) else (found["logits"], found.get("features"))
    outputs = {"logits": logits, **cache.outputs}
    if features is not None and "features" not in extra:
        outputs["features"] = features
    donate = {label: label for label in cache.outputs}
    weights = packed.weights(net, outputs)
    outputs = outputs if weights is None else weights.outputs
    step = compile(outputs, binding=net.model.binding, donate=donate, backend=_backend(net), name="decode")
    return step, cache.inputs, weights, None if features is None else (features.shape, features.dtype)


def _backend(net: Net) -> str:
    """The net's; for "auto", C where it makes the products (of float32, of float64 as it is) and there are enough."""
    made = net.dtype == "float32" or (net.dtype == "float64" and packed.kind_of(net) is None)
    if net.backend == "auto" and made and evaluate(net.model.total(), net.model.binding) >= WORTH and cpu.offered():
        return "c"
    return net.backend


def check_length(net: Net, length: int) -> None:
    """Raise DataError[TG510] if the model has fewer positions than `length`; rotated ones go on, and that is said."""
    longest = net.model.plan.longest
    if longest is not None and length > longest:
        text = f"{length} positions are asked for, and the model has {longest}"
        raise DataError("TG510", text, hint="give a shorter prompt, or fewer new tokens")
    warn_length(net, length)


def warn_length(net: Net, length: int) -> None:
    """Say in the log, once, that `length` is beyond the positions that a model with rotated ones is made for."""
    if net.warned:
        return
    plan = net.model.plan
    for rope in getattr(getattr(plan, "text", plan), "ropes", {}).values():
        if length > rope["max_position_embeddings"]:
            said = "%s positions are asked for, and the model is made for max_position_embeddings = %s"
            log.warning(said, f"{length:,}", f"{rope['max_position_embeddings']:,}")
            net.warned = True
            return


def prompt_of(input_ids: Any) -> Array:
    """Ids as [B, T]. Raises DataError[TG511] if they are not whole numbers in that shape, or none at all."""
    ids = array_of("input_ids", input_ids)
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
        raise DataError(
            "TG511",
            f"input_ids must be whole numbers [B, T], not {ids.dtype} {list(ids.shape)}",
            hint="net.tokenizer.encode(text)",
        )
    return ids


def mask_of(attention_mask: Any, ids: Array) -> Array:
    """0 at padding and 1 elsewhere, int32 of the shape of ids [B, T]. Raises DataError: TG502 another shape, TG503."""
    mask = array_of("attention_mask", attention_mask)
    mask = mask[None] if mask.ndim == 1 else mask
    if mask.shape != ids.shape:
        text = f"attention_mask must have the shape of input_ids, {list(ids.shape)}, not {list(mask.shape)}"
        raise DataError("TG502", text)
    return zero_or_one("attention_mask", mask)


def tokens(
    net: Net,
    input_ids: Any,
    max_new_tokens: int = 20,
    *,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    do_sample: bool | None = None,
    attention_mask: Any = None,
    eos_token_id: Any = None,
    pad_token_id: int | None = None,
    **images: Any,
) -> Iterator[Array]:
    """The next ids [B], step by step, until every row has ended or there are `max_new_tokens`.

    Greedy unless a temperature, top_k or top_p is given; temperature 0 is greedy too. A row that has ended goes on with
    `pad_token_id`. eos and pad default to the model's. Where the prompt has padding and no mask is given, the mask
    is read off it, and positions go on from the prompt's last column, as in transformers: padding belongs on the left.
    `images`: the inputs with images that the model's forward takes; what they are made into is computed once.
    Raises as `Session.feed`, DataError: TG511 a malformed prompt, TG502 and TG503 a malformed mask; ModelError: TG917
    a setting of the wrong kind or out of range, TG919 a model that is no decoder.
    """
    if not isinstance(net.model, Decoder) and not net.model.seen:
        raise ModelError("TG919", f"generation is for decoders alone, not for {type(net.model).__name__}")
    check_settings(locals())
    check_names(net, images)
    ids = prompt_of(input_ids)
    B, T = ids.shape
    images = {name: array_of(name, value) for name, value in images.items() if value is not None}
    net.model.check({"input_ids": ids, **images})
    check_id(net, "pad_token_id", pad_token_id)
    sampled = any(v is not None for v in (temperature, top_k, top_p)) if do_sample is None else do_sample
    ends = net.token_ids("eos_token_id") if eos_token_id is None else np.atleast_1d(eos_token_id).tolist()
    pads = net.token_ids("pad_token_id") if pad_token_id is None else [pad_token_id]
    if attention_mask is not None:
        mask = mask_of(attention_mask, ids)
    elif pads and pads[0] not in ends and (ids == pads[0]).any():
        mask = (ids != pads[0]).astype(np.int32)
    else:
        mask = np.ones((B, T), np.int32)
    positions = np.where(mask == 1, mask.cumsum(1) - 1, 0) + net.model.first
    check_length(net, int(mask.sum(1).max(initial=0)) + max(0, max_new_tokens - 1))
    rng = np.random.default_rng(seed)
    masked, capacity = not mask.all(), _capacity(T + min(int(max_new_tokens), 64))
    session, renewed_after = (
        Session(net, B, masked=masked, capacity=capacity, images=images),
        net.model.plan.renewed_after,
    )
    running = np.ones(B, bool)
    for _ in range(max_new_tokens):
        if renewed_after is not None and 0 < session.position <= renewed_after < ids.shape[1]:
            session = Session(net, B, masked=masked, capacity=session.capacity, images=images)
        first = session.position
        logits = session.feed(ids[:, first:], mask[:, first:], positions[:, first:])
        new = choose(logits, rng, temperature, top_k, top_p) if sampled else logits.argmax(-1)
        if ends:
            new = np.where(running, new, (pads or ends)[0])
            running &= ~np.isin(new, ends)
        yield new
        if not running.any():
            return
        ids = np.concatenate([ids, new[:, None]], axis=1)
        mask = np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1)
        positions = np.concatenate([positions, positions[:, -1:] + 1], axis=1)


def _capacity(length: int) -> int:
    """Room for `length` positions and up to a quarter more: all of it is read for each token."""
    part = max(16, (1 << (length - 1).bit_length()) // 8)
    return -(-length // part) * part


def generate(net: Net, input_ids: Any, max_new_tokens: int = 20, **settings: Any) -> Array:
    """Prompt and continuation, int64 [B, T + new], as transformers' `generate` returns them. Settings: see `tokens`."""
    check_names(net, settings)
    ids = prompt_of(input_ids).astype(np.int64)
    new = [t.astype(np.int64)[:, None] for t in tokens(net, ids, max_new_tokens, **settings)]
    return np.concatenate([ids, *new], axis=1)


def stream(net: Net, text: str, max_new_tokens: int = 20, **settings: Any) -> Iterator[str]:
    """The continuation of a text, piece by piece as it is made; ends at an end-of-text id. Settings: see `tokens`."""
    check_names(net, settings)
    tokenizer = net.need_tokenizer()
    ids = tokenizer.encode(text)
    pieces = tokenizer.stream(ids)
    ends = net.token_ids("eos_token_id")
    for new in tokens(net, [ids], max_new_tokens, **settings):
        if int(new[0]) in ends:
            break
        if piece := pieces.push(int(new[0])):
            yield piece
    if piece := pieces.end():
        yield piece


Check = tuple[str, Callable[[Any], bool]]


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, Integral) and not isinstance(v, bool) and int(v) >= least


def _real(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, Real) and not isinstance(v, bool) and math.isfinite(v) and holds(v)


def _ids(value: Any) -> bool:
    several = value if isinstance(value, (list, tuple)) else np.ravel(value).tolist()
    return all(isinstance(v, Integral) and not isinstance(v, bool) for v in several)


# What each setting may be. Those whose default is None may be None, too.
SETTINGS: dict[str, Check] = {
    "max_new_tokens": ("a whole number, 0 or more", _whole(0)),
    "temperature": ("a number, 0 or more", _real(lambda v: v >= 0)),
    "top_k": ("a whole number, 1 or more", _whole(1)),
    "top_p": ("a number, more than 0 and at most 1", _real(lambda v: 0 < v <= 1)),
    "seed": ("a whole number, 0 or more", _whole(0)),
    "do_sample": ("True or False", lambda v: isinstance(v, bool)),
    "eos_token_id": ("an id or several", _ids),
    "pad_token_id": ("an id", _whole(0)),
}
ALWAYS = ("max_new_tokens", "seed")


def check_settings(given: Mapping[str, Any]) -> None:
    """Raise ModelError[TG917] for a setting of the wrong kind or out of range."""
    for name, (wanted, holds) in SETTINGS.items():
        value = given[name]
        if not (value is None and name not in ALWAYS) and not holds(value):
            raise ModelError("TG917", f"{name} must be {wanted}, not {value!r}")


def check_names(net: Net, settings: Mapping[str, Any]) -> None:
    """Raise ModelError[TG917] for settings that there are not."""
    known = (*SETTINGS, "attention_mask", *net.model.seen)
    if unknown := [name for name in settings if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, 3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise ModelError("TG917", f"generation has no setting {unknown[0]!r}", hint=hint)


def check_id(net: Net, name: str, value: Any) -> None:
    """Raise ModelError[TG917] for an id beyond the vocabulary."""
    V = evaluate(getattr(net.model.plan, "text", net.model.plan).V, net.model.binding)
    if value is not None and value >= V:
        raise ModelError("TG917", f"{name} = {value} is not in the vocabulary of {V}")


def choose(
    logits: Array, rng: np.random.Generator, temperature: float | None, top_k: int | None, top_p: float | None
) -> Array:
    """One id per row of logits [B, V], drawn from softmax(logits / temperature) cut to `top_k` and then to `top_p`.

    top_p keeps the fewest ids whose probabilities sum to at least that (Holtzman et al. 2020). Temperature 0: argmax.
    """
    if temperature == 0:
        return logits.argmax(-1)
    z = logits.astype(np.float64) / (1.0 if temperature is None else temperature)
    if top_k is not None and top_k < z.shape[-1]:
        least = np.partition(z, -top_k, axis=-1)[:, [-top_k]]
        z = np.where(z < least, -np.inf, z)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    if top_p is not None and top_p < 1:
        order = np.argsort(-p, axis=-1, kind="stable")
        ranked = np.take_along_axis(p, order, -1)
        before = ranked.cumsum(-1) - ranked
        np.put_along_axis(p, order, np.where(before < top_p, ranked, 0.0), -1)
        p /= p.sum(-1, keepdims=True)
    drawn = rng.random((len(p), 1))
    return (p.cumsum(-1) <= drawn).sum(-1).clip(max=p.shape[-1] - 1)


__all__ = ["Session", "choose", "generate", "stream", "tokens"]
