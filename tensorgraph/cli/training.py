"""`train`: the loop of tensorgraph.models.train with a progress bar, files, and an orderly end at Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorgraph.errors import ModelError, counted
from tensorgraph.io import safetensors
from tensorgraph.io.files import fail, replacing
from tensorgraph.models import from_pretrained
from tensorgraph.models.decoder import Decoder
from tensorgraph.models.pretrained import Net
from tensorgraph.models.tokenizer import Tokenizer
from tensorgraph.models.train import Corpus, Settings, Trainer, fresh, read_text, split_text
from tensorgraph.passes.memory import shown
from tensorgraph.visualize.curve import curve

from .target import Target

if TYPE_CHECKING:
    from rich.console import Console

CURVE = "curve.svg"
ADAPTER = "adapter"
SAVED_EVERY = 30.0  # seconds between checkpoints
BATCH, LENGTH = 16, 64  # where -d gives no B and T


def run(
    target: Target,
    source: str,
    steps: int,
    out: Path | None,
    *,
    console: Console,
    vocab: int = 512,
    lr: float = 1e-3,
    seed: int = 0,
    restart: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train and write; what was reached, as plain data. `quiet`: no lines, only the bar.

    Raises ModelError[TG937] for a graph without a module, and what reading, building and writing raise.
    """
    target.check_sizes()
    text = read_text(source)
    net, tokenizer = _net(target, text, vocab)
    if net is not None:
        target.prepare(net)
    model = net.model if net is not None else target.module
    assert model is not None
    if net is not None and not isinstance(net.model, Decoder):
        raise ModelError("TG936", f"{target.name} is no causal language model, which training on text needs")
    longest = net.model.plan.longest if net is not None else None
    settings = Settings(
        steps, target.given.get("B", BATCH), target.given.get("T", min(LENGTH, longest or LENGTH)), lr=lr, seed=seed
    )
    if longest is not None and settings.length > longest:
        raise ModelError(
            "TG938",
            f"windows of {counted(settings.length, 'token')}, and {target.name} has {counted(longest, 'position')}",
            hint=f"-d T={longest}",
        )
    corpus = Corpus.of(text, tokenizer)
    binding = dict(net.model.binding) if net is not None else dict(target.binding)
    if "V" in target.sizes:
        binding.setdefault("V", tokenizer.vocab_size)
    params = net.values() if net is not None and net.state else None
    trainer = Trainer(model, params, corpus, settings, {k: v for k, v in binding.items() if k not in ("B", "T")})
    resumed = out is not None and not restart and trainer.resume(out)
    bigram = corpus.bigram_loss()
    if not quiet:
        _announce(console, target, trainer, bigram, resumed)
    if out is not None:
        make_folder(out)
        tokenizer.save(out)
    interrupted = _loop(trainer, console, out, quiet)
    held = trainer.held_out()
    if out is not None:
        _write(out, target, trainer, net, bigram)
    if not quiet:
        _conclude(console, trainer, held, bigram, out, interrupted)
    return {
        "model": target.name,
        "steps": trainer.done,
        "interrupted": interrupted,
        "held_out": held,
        "bigram": bigram,
        "held_out_tokens": len(corpus.held) - 1,
        "curve": [p._asdict() for p in trainer.curve],
        "out": str(out) if out is not None else None,
    }


def _net(target: Target, text: str, vocab: int) -> tuple[Net | None, Tokenizer]:
    """The model, with its checkpoint's values if it has any, and a tokenizer; no model for one's own Module."""
    if target.graph is not None:
        raise ModelError(
            "TG937",
            f"{target.name} gives a graph, and training needs a Module",
            hint="return the Module: tokens [B, T] -> logits [B, T, V]",
        )
    vocab = target.given.get("V", vocab)
    if target.config is None:
        return None, Tokenizer.train_bpe([split_text(text)[0]], vocab)
    if target.path is not None:
        net = from_pretrained(target.path)
        if net.state:
            if own := [n for n in target.given if n not in ("B", "T")]:
                raise ModelError("TG939", f"{target.name} has its values, so its sizes cannot change: {', '.join(own)}")
            return net, net.need_tokenizer()
        if net.tokenizer is not None:
            return net, net.tokenizer
    length = target.given.get("P", target.given.get("T", LENGTH))
    net = fresh(target.config, text, vocab=vocab, length=length)
    return net, net.need_tokenizer()


def _announce(console: Console, target: Target, trainer: Trainer, bigram: float, resumed: bool) -> None:
    s, corpus = trainer.settings, trainer.corpus
    sizes = {p: trainer.state[f"params/{n}"].size for n, p in trainer.step.params.items()}
    count, learns = sum(sizes.values()), sum(k for p, k in sizes.items() if p.attrs.get("trained", True))
    trained = "" if learns == count else f", {learns:,} of them trained"
    console.print(
        f"[bold]{target.name}[/]  {counted(count, 'parameter')}{trained}, vocabulary {corpus.V:,}", soft_wrap=True
    )
    console.print(
        f"text  {counted(len(corpus.train), 'token')} to train on, {len(corpus.held):,} held out; "
        f"add-one bigram {bigram:.3f} nats",
        soft_wrap=True,
    )
    console.print(
        f"step  {counted(s.batch, 'window')} of {counted(s.length, 'token')}, needs {shown(trainer.memory().peak)}",
        soft_wrap=True,
    )
    if resumed:
        console.print(f"goes on from step {trainer.done}" + (", which is all" if trainer.done >= s.steps else ""))


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM ask for an end after the step that is running; a second Ctrl-C ends at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(*_: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _loop(trainer: Trainer, console: Console, out: Path | None, quiet: bool) -> bool:
    """Train to the end or until stopped; whether it was stopped. Checkpoints are written now and then."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
    )
    saved = time.monotonic()
    with (
        _stoppable() as stop,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("", total=trainer.settings.steps, completed=trainer.done, said="")
        for p in trainer.run():
            bar.update(task, completed=p.step, said=f"loss {p.loss:.3f}  {p.tokens_per_second:,.0f} tokens/s")
            if p.point is not None and not quiet:
                figures = f"loss {p.point.loss:.3f}  held-out {p.point.held_out:.3f}"
                console.print(f"step {p.step:>6}  {figures}  {p.tokens_per_second:,.0f} tokens/s", soft_wrap=True)
            if out is not None and time.monotonic() - saved > SAVED_EVERY:
                trainer.save(out)
                saved = time.monotonic()
            if stop.is_set():
                return trainer.done < trainer.settings.steps
    return False


def make_folder(out: Path) -> None:
    """Raise CheckpointError[TG807] now rather than after the training."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise fail("TG807", out, f"cannot make this folder: {e.strerror or e}") from None


def _write(out: Path, target: Target, trainer: Trainer, net: Net | None, bigram: float) -> None:
    trainer.save(out)
    params = trainer.state.params
    if net is not None:
        net.state = params
        if net.adapter is not None:
            net.save_adapter(out / ADAPTER)
        (net if net.adapter is None else net.merged()).save_pretrained(out)
    else:  # one's own module: no config describes it
        safetensors.write(out / safetensors.SINGLE, params, {"format": "pt"})
    lines = {
        "training": [(p.step, p.loss) for p in trainer.curve],
        "held out": [(p.step, p.held_out) for p in trainer.curve],
    }
    said = curve(f"{target.name}: nats per token", lines, {"add-one bigram": bigram})
    with replacing(out / CURVE) as new:
        new.write_text(said, encoding="utf-8")


def _conclude(
    console: Console, trainer: Trainer, held: float, bigram: float, out: Path | None, interrupted: bool
) -> None:
    tokens = counted(len(trainer.corpus.held) - 1, "token")
    verdict = "below" if held < bigram else "not below"
    console.print(
        f"held-out loss [bold]{held:.3f}[/] nats per token, {verdict} the add-one bigram's [bold]{bigram:.3f}[/] "
        f"({tokens})",
        soft_wrap=True,
    )
    if interrupted:
        console.print(f"stopped at step {trainer.done}" + ("; the same command goes on from there" if out else ""))
    if out is None:
        console.print("nothing was kept: --out DIR writes the model, its checkpoint and its curve")
    else:
        console.print(
            f"wrote {out}: {', '.join(sorted(p.name for p in out.iterdir() if p.is_file()))}",
            soft_wrap=True,
            markup=False,
        )


__all__ = ["make_folder", "run"]
