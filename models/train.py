"""Training a language model on a text: corpus, fresh models for it, the loop, checkpoints that a run goes on from."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from tensorgraph import optim
from tensorgraph.built import MemoryReport
from tensorgraph.compile import compile
from tensorgraph.dims import dims
from tensorgraph.errors import BackendError, DataError, ModelError, StateError, counted
from tensorgraph.io import checkpoint
from tensorgraph.io.files import Array, reachable
from tensorgraph.nn import Module
from tensorgraph.ops.elementwise import upcast
from tensorgraph.ops.leaf import input
from tensorgraph.ops.nn import cross_entropy
from tensorgraph.passes.memory import available

from .decoder import Decoder
from .pretrained import Net
from .tokenizer import Tokenizer

PYDOC = "pydoc"
EVALUATED = 16  # windows at once in an evaluation


# ------------------------------------------------------------------------------------------------------- text


def read_text(source: str) -> str:
    """The text of a UTF-8 file; "pydoc", where no such file is, gives the documentation that comes with Python.

    Raises DataError[TG521] for a file that is not there or is no text.
    """
    path = Path(source)
    if source == PYDOC and not path.is_file():
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise DataError("TG521", f"{path} is not UTF-8 text: byte {e.start} is wrong") from None
    except OSError as e:
        hint = 'the text "pydoc" is always there' if isinstance(e, FileNotFoundError) else None
        raise DataError("TG521", f"cannot read {path}: {e.strerror or e}", hint=hint) from None


def split_text(text: str, held_out: float = 0.1) -> tuple[str, str]:
    """The beginning of a text to train on, and its end, held out; cut where a word ends."""
    at = round(len(text) * (1.0 - held_out))
    while 0 < at < len(text) and not text[at].isspace():
        at += 1
    return text[:at], text[at:]


def word_tokenizer(words: list[str]) -> Tokenizer:
    """A tokenizer of whole words and signs: the ids are their places in the list."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return Tokenizer(backend)


class Corpus(NamedTuple):
    """Ids to train on and ids held out, int32 [n] each, of a vocabulary of V."""

    train: Array
    held: Array
    V: int

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer, held_out: float = 0.1) -> Corpus:
        """Raises DataError[TG523] for a text that is too short, and as `Tokenizer.encode`."""
        parts = [encode(tokenizer, part) for part in split_text(text, held_out)]
        if min(map(len, parts)) < 2:
            lengths = f"{counted(len(parts[0]), 'token')} to train on, {len(parts[1])} held out"
            hint = "each part needs two at least, and training some thousands"
            raise DataError("TG523", f"the text is too short: {lengths}", hint=hint)
        return cls(parts[0], parts[1], tokenizer.vocab_size)

    @property
    def digest(self) -> str:
        """What tells one corpus from another."""
        return hashlib.blake2b(self.train.tobytes() + b"|" + self.held.tobytes(), digest_size=8).hexdigest()

    def batch(self, count: int, length: int, seed: int, step: int) -> tuple[Array, Array]:
        """Windows at random places, and the token after each: int32 [count, length] twice; a seed and step fix them.

        Raises DataError[TG523] if the text has no window of that length.
        """
        if len(self.train) <= length:
            raise DataError(
                "TG523",
                f"windows of {counted(length, 'token')}, and the one after each, do not fit in {len(self.train):,}",
                hint=f"a longer text, or windows of {len(self.train) - 1} at most: -d T={len(self.train) - 1}",
            )
        at = np.random.default_rng([seed, step]).integers(0, len(self.train) - length, count)
        windows = self.train[at[:, None] + np.arange(length + 1)]
        return windows[:, :-1], windows[:, 1:]

    def bigram_loss(self) -> float:
        """Nats per held-out token of the bigram model with add-one smoothing: p(b | a) = (n(ab) + 1) / (n(a) + V)."""
        pairs, counts = np.unique(self.train[:-1].astype(np.int64) * self.V + self.train[1:], return_counts=True)
        wanted = self.held[:-1].astype(np.int64) * self.V + self.held[1:]
        at = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
        seen = np.where(pairs[at] == wanted, counts[at], 0)
        contexts = np.bincount(self.train[:-1], minlength=self.V)[self.held[:-1]]
        return float(-np.log((seen + 1) / (contexts + self.V)).mean())


def encode(tokenizer: Tokenizer, text: str) -> Array:
    """Ids of a text, int32 [n]. Raises as `Tokenizer.encode`."""
    return np.array(tokenizer.encode(text, special=False), np.int32)


# ----------------------------------------------------------------------------------------------- a fresh model


def fresh(config: Mapping[str, Any], text: str, *, vocab: int = 512, length: int | None = None) -> Net:
    """A model, without values yet, for a text: words of the config's "vocab", or a byte-level BPE of `vocab` tokens.

    The BPE is trained on the part that is not held out. `length`: the positions that training sees; a table of more is
    cut to it, since its other rows would stay as drawn. Raises ModelError[TG936] for what is no language model.
    """
    from . import ARCHITECTURES, architecture

    name, found = architecture.find(config, ARCHITECTURES)
    if not isinstance(model := found.build(config), Decoder):
        raise ModelError("TG936", f"{name} is no causal language model, which training on text needs")
    words = config.get("vocab")
    tokenizer = word_tokenizer(words) if words else Tokenizer.train_bpe([split_text(text)[0]], vocab)
    config = {**config, "vocab_size": tokenizer.vocab_size, "eos_token_id": tokenizer.eos_id, "bos_token_id": None}
    if "pad_token_id" in {**found.defaults, **config}:
        config["pad_token_id"] = None
    config.setdefault("model_type", found.model_type)
    if length is not None and model.plan.positions == "learned":
        config[model.fields["P"]] = min(length, model.binding["P"])
    return Net(found.build(config), config, tokenizer=tokenizer)


# ---------------------------------------------------------------------------------------------------- the loop


@dataclass(frozen=True)
class Settings:
    """How a run trains: AdamW on `batch` windows of `length` tokens, warm-up and a cosine down to a tenth of `lr`.

    Raises ModelError[TG944] for a setting out of range.
    """

    steps: int
    batch: int = 16
    length: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "length", "seed"):
            value, least = getattr(self, name), int(name != "seed")
            if type(value) is not int or value < least:
                raise ModelError("TG944", f"{name} must be a whole number, {least} or more, not {value!r}")
        for name, value in (("lr", self.lr), ("clip", self.clip), ("weight_decay", self.weight_decay)):
            decay = name == "weight_decay"
            if type(value) not in (int, float) or not math.isfinite(value) or value < 0 or (value == 0 and not decay):
                wanted = "0 or more" if decay else "more than 0"
                raise ModelError("TG944", f"{name} must be a number, {wanted}, not {value!r}")

    def optimizer(self) -> optim.AdamW:
        rate = optim.cosine(self.lr, self.steps, warmup=max(1, self.steps // 20), floor=self.lr / 10)
        return optim.AdamW(rate, betas=(0.9, 0.95), weight_decay=self.weight_decay, clip=self.clip)

    def identity(self) -> dict[str, Any]:
        """What must not change between a run and its continuation; the number of steps may."""
        return {k: v for k, v in asdict(self).items() if k != "steps"}


class Point(NamedTuple):
    """The curve at a step: mean training loss since the point before, and the held-out loss, in nats per token."""

    step: int
    loss: float
    held_out: float


@dataclass
class Progress:
    """Where a run stands after a step; `point` where the held-out loss was just computed.

    `tokens_per_second` counts the steps alone, without the first one where there are others: it plans and compiles.
    """

    step: int
    loss: float
    tokens_per_second: float
    point: Point | None = None


@dataclass
class Trainer:
    """Trains `model`, a function from tokens [B, T] to logits [B, T, V], starting from `params` (drawn, if None).

    `state` is the training state, `done` the steps made, `curve` the points so far. A run is determined by values,
    corpus and settings: interrupted and resumed, it ends in the same bits.
    Raises ModelError[TG936] if the model does not return logits [B, T, V], BackendError[TG711] if a step needs more
    memory than there is.
    """

    model: Module
    params: Mapping[str, Array] | None
    corpus: Corpus
    settings: Settings
    binding: Mapping[str, int] = field(default_factory=dict)
    done: int = 0
    curve: list[Point] = field(default_factory=list)

    def __post_init__(self) -> None:
        B, T = dims("B T")
        tokens, targets = input("tokens", (B, T), "int32"), input("targets", (B, T), "int32")
        self.model.assign_names()
        found = self.model(tokens)
        logits: Any = found.get("logits") if isinstance(found, Mapping) else found
        if getattr(logits, "ndim", None) != 3 or not logits.dtype.is_float:
            raise ModelError(
                "TG936",
                f"{type(self.model).__name__} is no language model: tokens i32[B, T] must give logits [B, T, V]",
                notes=[f"it returns {getattr(logits, 'type_text', type(logits).__name__)}"],
            )
        loss = cross_entropy(upcast(logits), targets).named("loss")
        sizes = dict(self.binding)
        self.step = compile({"loss": loss}, update=self.settings.optimizer(), binding=self.sizes, name="train")
        self._evaluate = compile(loss, binding=sizes, name="evaluate")
        self._check_memory()
        self.state = self.step.init(self.params or self.model.init(self.settings.seed, sizes))
        self._sum, self._count = 0.0, 0

    @property
    def every(self) -> int:
        """Steps between points of the curve."""
        return max(1, self.settings.steps // 20)

    @property
    def sizes(self) -> dict[str, int]:
        """Those of the model, and of a batch."""
        return {**self.binding, "B": self.settings.batch, "T": self.settings.length}

    def memory(self) -> MemoryReport:
        """What a step needs, before anything is allocated."""
        report: MemoryReport = self.step.memory(self.sizes)
        return report

    def _check_memory(self) -> None:
        if not self.step.fits(self.sizes):
            report, free = self.memory(), available() or 0
            raise BackendError(
                "TG711",
                f"a training step needs {report.peak / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free",
                notes=[f"parameters and AdamW's moments are {report.given / 1e9:,.1f} GB of it"],
                hint="smaller sizes, for example -d n=2 -d B=4",
            )

    def run(self) -> Iterator[Progress]:
        """Train up to `settings.steps`, one step at a time: leave the loop whenever you like, the state is whole."""
        s, first = self.settings, self.done
        spent, counted = 0.0, 0
        while self.done < s.steps:
            if self.done == first + 1:  # the first step plans and compiles: it is counted only while it stands alone
                spent, counted = 0.0, 0
            start = time.perf_counter()
            tokens, targets = self.corpus.batch(s.batch, s.length, s.seed, self.done)
            value, self.state = self.step(self.state, tokens=tokens, targets=targets)
            loss = float(value["loss"])
            spent, counted = spent + time.perf_counter() - start, counted + 1
            self.done += 1
            self._sum, self._count = self._sum + loss, self._count + 1
            progress = Progress(self.done, loss, counted * s.batch * s.length / spent)
            if self.done % self.every == 0 or self.done == s.steps:
                progress.point = Point(self.done, self._sum / self._count, self.held_out())
                self.curve.append(progress.point)
                self._sum, self._count = 0.0, 0
            yield progress

    def held_out(self) -> float:
        """Nats per held-out token, each predicted once, from what precedes it in its window."""
        T, ids = self.settings.length, self.corpus.held
        whole = (len(ids) - 1) // T
        tokens, targets = ids[: whole * T].reshape(-1, T), ids[1 : whole * T + 1].reshape(-1, T)
        parts = [(tokens[i : i + EVALUATED], targets[i : i + EVALUATED]) for i in range(0, whole, EVALUATED)]
        if len(ids) - 1 > whole * T:
            parts.append((ids[None, whole * T : -1], ids[None, whole * T + 1 :]))
        params = {name: self.state[f"params/{name}"] for name in self.step.params}
        total = sum(float(self._evaluate(params, tokens=x, targets=y)) * x.size for x, y in parts)
        return total / (len(ids) - 1)

    # -- checkpoints
    def save(self, folder: Path) -> Path:
        """Write what `resume` goes on from; a process killed meanwhile leaves the old one or the new one."""
        folder.mkdir(parents=True, exist_ok=True)
        meta = {**self._identity(), "done": self.done, "curve": self.curve, "sum": self._sum, "count": self._count}
        return checkpoint.save(folder, dict(self.state), meta)

    def resume(self, folder: Path) -> bool:
        """Go on from the checkpoint in a folder, if there is one; whether there was.

        Raises StateError[TG620] if it is of a run with another text or other settings, [TG602] if of another model.
        """
        reachable(folder / checkpoint.FILE)
        if not (folder / checkpoint.FILE).is_file():
            return False
        arrays, meta = checkpoint.load(folder)
        own = self._identity()
        other = [f"{k}: {meta.get(k)!r} then, {v!r} now" for k, v in own.items() if meta.get(k) != v]
        if other:
            raise StateError(
                "TG620",
                f"{folder} holds another run",
                notes=other,
                hint="--restart begins anew there; or choose another --out",
            )
        self.state = self.step.load(arrays)
        self.done, self._sum, self._count = meta["done"], meta["sum"], meta["count"]
        self.curve = [Point(*p) for p in meta["curve"]]
        return True

    def _identity(self) -> dict[str, Any]:
        text = f"{len(self.corpus.train)} + {len(self.corpus.held)} tokens, {self.corpus.digest}"
        shapes = hashlib.blake2b(
            repr([(n, self.state[f"params/{n}"].shape) for n in self.step.params]).encode(), digest_size=8
        )
        return {**self.settings.identity(), "text": text, "model": shapes.hexdigest()}


__all__ = ["Corpus", "Point", "Progress", "Settings", "Trainer", "fresh", "read_text", "split_text", "word_tokenizer"]
