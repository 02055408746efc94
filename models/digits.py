"""A model that sees, trained from nothing: handwritten digits on a canvas, questions and answers in words.

LLaVA's recipe (Liu et al. 2023) in small. The encoder learns to tell digits apart, by number and without words; the
language model to answer questions about texts, without images; then the bridge alone is trained on images with
questions, encoder and language model frozen; then all of it. Progress is watched on digits put aside for that; those
held out take part in no stage, and are asked about once, at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np

from tensorgraph import optim
from tensorgraph.compile import compile
from tensorgraph.errors import DataError
from tensorgraph.io.files import Array
from tensorgraph.nn import Linear
from tensorgraph.ops.leaf import input
from tensorgraph.ops.nn import cross_entropy
from tensorgraph.tensor import Tensor

from . import llava, modes
from .pretrained import Net
from .tokenizer import Tokenizer
from .train import word_tokenizer

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PAD, IMAGE, END = 0, 1, 2
WORDS = ["<pad>", "<image>", "<end>", *NUMBERS, "what", "which", "digit", "is", "this", "on", "the"]
WORDS += ["left", "right", "a", "."]
ID = {word: i for i, word in enumerate(WORDS)}
# A question's last word is what it asks for; beside it: how many digits the canvas holds, and which of them is meant.
QUESTIONS = {
    "what digit is this": (1, 0),
    "which digit is on the left": (2, 0),
    "which digit is on the right": (2, 1),
}
CANVAS, SIDE, PATCH = 20, 8, 4
PATCHES = (CANVAS // PATCH) ** 2
NOTHING = len(NUMBERS)  # what the encoder says of a patch without a digit
HELD_OUT, VALIDATION = 360, 180  # of 1,797 digits

CONFIG: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "image_token_index": IMAGE,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "vision_feature_layer": -1,  # the encoder learns on the features that the bridge reads
    "initializer_range": 0.08,
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_channels": 1,
        "image_size": CANVAS,
        "patch_size": PATCH,
        "hidden_act": "gelu",
        "projection_dim": 64,
    },
    "text_config": {
        "model_type": "llama",
        "vocab_size": len(WORDS),
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": END,
    },
}

# ------------------------------------------------------------------------------------------------------- data


class Digits(NamedTuple):
    """Images [n, 8, 8] from 0 to 1, float32, and the number that each shows [n]."""

    images: Array
    numbers: Array


class Data(NamedTuple):
    """Digits to train on, to watch progress on, and held out."""

    train: Digits
    validation: Digits
    held: Digits


def load() -> Data:
    """scikit-learn's handwritten digits (Alpaydin and Kaynak 1998).

    Raises DataError[TG524] without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("TG524", "the digits come with scikit-learn", hint="pip install scikit-learn") from None
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    every = Digits((found.images / 16).astype(np.float32), found.target.astype(np.int32))
    held, validation, train = np.split(order, [HELD_OUT, HELD_OUT + VALIDATION])
    return Data(*(Digits(every.images[part], every.numbers[part]) for part in (train, validation, held)))


class Canvases(NamedTuple):
    """Images [B, 1, h, w], the numbers on each from left to right, and which number each patch mostly shows [B, P]."""

    pixels: Array
    numbers: list[list[int]]
    patches: Array


def paste(digits: Digits, counts: Array, rng: np.random.Generator) -> Canvases:
    """One or two digits, drawn at random, at random places of a canvas; two never share a column."""
    B, free = len(counts), CANVAS - SIDE
    pixels = np.zeros((B, 1, CANVAS, CANVAS), np.float32)
    shown = np.full((B, CANVAS, CANVAS), NOTHING)
    numbers: list[list[int]] = [[] for _ in range(B)]
    for b, count in enumerate(counts):
        left = rng.integers(0, free - SIDE * (count - 1) + 1)
        columns = [left, rng.integers(left + SIDE, free + 1)] if count == 2 else [left]
        for x, i in zip(columns, rng.integers(0, len(digits.numbers), count), strict=True):
            y = rng.integers(0, free + 1)
            place = slice(y, y + SIDE), slice(x, x + SIDE)
            pixels[b, 0, *place], shown[b, *place] = digits.images[i], digits.numbers[i]
            numbers[b].append(int(digits.numbers[i]))
    grid = shown.reshape(B, CANVAS // PATCH, PATCH, CANVAS // PATCH, PATCH).swapaxes(2, 3).reshape(B, PATCHES, -1)
    most = (grid[..., None] == np.arange(NOTHING + 1)).sum(2).argmax(-1)
    return Canvases(pixels, numbers, most.astype(np.int32))


def seen(digits: Digits, questions: list[str], rng: np.random.Generator) -> tuple[Array, list[str], list[str]]:
    """Canvases for questions: pixels, prompts, answers."""
    made = paste(digits, np.array([QUESTIONS[q][0] for q in questions]), rng)
    answers = [NUMBERS[n[QUESTIONS[q][1]]] for n, q in zip(made.numbers, questions, strict=True)]
    return made.pixels, ["<image> " * PATCHES + q for q in questions], answers


def told(questions: list[str], rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Texts that say what a canvas would show, the question at their end; and the answers."""
    prompts, answers = [], []
    for question in questions:
        count, asked = QUESTIONS[question]
        words = [NUMBERS[i] for i in rng.integers(0, len(NUMBERS), count)]
        facts = [f"{side} {word}" for side, word in zip(("left", "right"), words, strict=False)]
        text = " ".join(facts[:: rng.choice([1, -1])]) if count == 2 else f"a {words[0]}"
        prompts.append("<pad> " * int(rng.integers(0, 5)) + f"{text} . {question}")
        answers.append(words[asked])
    return prompts, answers


def rows(prompts: list[str], answers: list[str]) -> dict[str, Array]:
    """Ids and labels [B, T] of prompts with their answers; nothing but the answer and the end has a label."""
    both = [([ID[w] for w in p.split()], [ID[a], END]) for p, a in zip(prompts, answers, strict=True)]
    shape = len(both), max(len(p) + len(a) for p, a in both)
    ids, labels = np.full(shape, PAD, np.int32), np.full(shape, -100, np.int32)
    for b, (p, a) in enumerate(both):
        ids[b, : len(p) + len(a)] = p + a
        labels[b, len(p) : len(p) + len(a)] = a
    return {"input_ids": ids, "labels": labels}


# --------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Stage:
    """A stage of training: the mode of the whole model, or the part that learns by itself; steps; the highest rate."""

    name: str
    mode: str
    steps: int
    lr: float

    @property
    def sees(self) -> bool:
        """It learns from images with questions."""
        return self.mode in modes.MODES


VISION, LLM = "vision", "llm"
STAGES = (
    Stage("encoder, on digits", VISION, 1500, 5e-3),
    Stage("language model, on texts", LLM, 500, 2e-3),
    Stage("stage 1: bridge", "bridge-only", 500, 3e-3),
    Stage("stage 2: all", modes.ALL, 800, 1e-3),
)
BATCH, ASKED, POINTS = 32, 1000, 10  # canvases of a step; of a question in an evaluation; evaluations of a stage
LONGEST = 3  # tokens of an answer


class Progress(NamedTuple):
    """Where a run stands; `accuracy`, of questions about validation digits, from time to time and after a stage."""

    stage: Stage
    step: int
    loss: float
    accuracy: float | None = None


class Result(NamedTuple):
    """After a stage with images: the share of right answers about held-out digits, and of the same model with blank
    images, by question.

    `kept`: how many tensors were frozen and are equal to the bit; `moved`: how many were frozen and are not.
    """

    right: dict[str, float]
    blank: dict[str, float]
    kept: int
    moved: int


@dataclass
class Run:
    """All stages, one after another; the seed fixes first values and batches. `results`: by mode, when all are done."""

    data: Data
    seed: int = 0
    stages: tuple[Stage, ...] = STAGES
    batch: int = BATCH
    asked: int = ASKED
    backend: str = "auto"
    results: dict[str, Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = cast("llava.Llava", llava.build(CONFIG))
        self.net = Net(self.model, CONFIG, tokenizer=tokenizer(), backend=self.backend).init(self.seed)
        self.reader = Linear(self.model.vision.plan.layers.d, NOTHING + 1)  # what the encoder learns through
        self.values = {**self.net.values(), **self.reader.init(self.seed, self.model.binding)}

    def run(self) -> Iterator[Progress]:
        """Train, one step at a time; then ask what each stage with images left about held-out digits."""
        done = []
        for number, stage in enumerate(self.stages):
            before = self.values
            yield from self._learn(stage, number)
            if stage.sees:
                frozen = [name for name, p in self.model.named_parameters().items() if not p.trained]
                same = sum(before[name].tobytes() == self.values[name].tobytes() for name in frozen)
                done.append((stage.mode, self.values, same, len(frozen) - same))
        last = self.values
        for mode, values, kept, moved in done:
            self._hold(values)
            right, blank = self.ask(self.data.held, self.asked), self.ask(self.data.held, self.asked, blank=True)
            self.results[mode] = Result(right, blank, kept, moved)
        self._hold(last)

    def _hold(self, values: dict[str, Array]) -> None:
        self.values = values
        self.net.state = {name: values[name] for name in self.net.state}

    def _learn(self, stage: Stage, number: int) -> Iterator[Progress]:
        model = self.model
        modes.apply(model, stage.mode if stage.sees else modes.ALL)
        rate = optim.cosine(stage.lr, stage.steps, warmup=max(1, stage.steps // 20), floor=stage.lr / 20)
        adamw = optim.AdamW(rate, betas=(0.9, 0.98), weight_decay=0.05, clip=1.0)
        loss = {"loss": self._loss(stage)}
        step = compile(loss, update=adamw, binding=model.binding, backend=self.backend, name=stage.mode)
        state = step.init({name: self.values[name] for name in step.params})
        every = max(1, stage.steps // POINTS)
        for i in range(1, stage.steps + 1):
            found, state = step(state, **self._batch(stage, np.random.default_rng([self.seed, number, i])))
            accuracy = None
            if i == stage.steps or (stage.sees and i % every == 0):
                self._hold({**self.values, **state.params})
                accuracy = mean(self.ask(self.data.validation, self.asked // 5)) if stage.sees else None
            yield Progress(stage, i, float(found["loss"]), accuracy)

    def _loss(self, stage: Stage) -> Tensor:
        model = self.model
        if stage.mode != VISION:
            names = ["input_ids", "labels", *(["pixel_values"] if stage.sees else [])]
            return model.outputs(**model.inputs(names))["loss"]
        pixels = input("pixel_values", *model.specs(())["pixel_values"])
        features = model.vision(pixels)["hidden_states"][-1][:, 1:]
        return cross_entropy(self.reader(features), input("patches", (pixels.shape[0], PATCHES), "int32"), ignore=None)

    def _batch(self, stage: Stage, rng: np.random.Generator) -> dict[str, Array]:
        questions = [str(q) for q in rng.choice(list(QUESTIONS), self.batch)]
        if stage.mode == VISION:
            made = paste(self.data.train, np.array([QUESTIONS[q][0] for q in questions]), rng)
            return {"pixel_values": made.pixels, "patches": made.patches}
        if not stage.sees:
            return rows(*told(questions, rng))
        pixels, prompts, answers = seen(self.data.train, questions, rng)
        return {"pixel_values": pixels, **rows(prompts, answers)}

    def ask(self, digits: Digits, count: int, blank: bool = False) -> dict[str, float]:
        """The share of right answers to `count` times each question about digits; `blank`: on canvases that are."""
        out = {}
        for number, question in enumerate(QUESTIONS):
            pixels, prompts, answers = seen(digits, [question] * count, np.random.default_rng([1, number]))
            out[question] = float(np.mean(np.array(self.answer(pixels * (not blank), prompts)) == answers))
        return out

    def answer(self, pixels: Array, prompts: list[str]) -> list[str]:
        """What the model says, greedily and to its end, after prompts of one length, each about one canvas."""
        out: list[str] = []
        for at in range(0, len(prompts), 250):
            ids = np.array([[ID[w] for w in p.split()] for p in prompts[at : at + 250]])
            said = self.net.generate(ids, LONGEST, pixel_values=pixels[at : at + 250])[:, ids.shape[1] :]
            out += [" ".join(WORDS[i] for i in row if i not in (PAD, END)) for row in said]
        return out

    def examples(self, count: int) -> list[Example]:
        """The first `count` held-out canvases of a fixed order, the questions in turn, with answers and truth."""
        rng, out = np.random.default_rng(2), []
        for question in (list(QUESTIONS) * count)[:count]:
            pixels, prompts, truth = seen(self.data.held, [question], rng)
            out.append(Example(pixels[0, 0], question, self.answer(pixels, prompts)[0], truth[0]))
        return out


class Example(NamedTuple):
    """A canvas [h, w], a question, the model's answer and the right one."""

    pixels: Array
    question: str
    answer: str
    truth: str


def mean(shares: Mapping[str, float]) -> float:
    """Of all questions, each asked as often."""
    return float(np.mean(list(shares.values())))


def tokenizer() -> Tokenizer:
    """Words as tokens, ids their places; those in angle brackets are no text."""
    made = word_tokenizer(WORDS)
    made.backend.add_special_tokens(WORDS[: END + 1])
    made.eos_id = END
    return made


__all__ = ["CONFIG", "QUESTIONS", "STAGES", "Data", "Digits", "Example", "Progress", "Result", "Run", "Stage", "load"]
