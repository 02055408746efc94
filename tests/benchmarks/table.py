"""The README's table: ours and the peers' scripts, A B A B in one run, so that a ratio holds when the machine drifts.

    python tests/benchmarks/table.py --peers FOLDER --python PEERS_PYTHON [--rounds 3] [--only train,decode]
    python tests/benchmarks/table.py --print results.json [--write]

FOLDER holds peer_torch.py, peer_jax.py and peer_numpy.py, which take the words that ours.py takes and print JSON lines.
What is absent or fails is left out, with a line saying so; results are kept after every run, and --resume goes on.
--write puts the table into the README.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
MARK = "<!-- table.py -->"
KINDS = ("float32", "bfloat16", "int8")
CACHES = ("TENSORGRAPH_CACHE", "TORCHINDUCTOR_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR")
KEEP_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


class Run(NamedTuple):
    """One side of a row: a label, whose script it is, its words; and of which of several runs in one folder of caches,
    empty at first, the last one counts (0: the caches are the user's)."""

    row: str
    side: str
    script: str
    words: str
    caches: int = 0


def runs(gguf: Path | None = None) -> Iterator[Run]:
    yield Run("limits", "limits", "ours", "limits")
    for name in ("S", "M", "toy"):
        row = f"train {name}"
        for backend in ("c", "numpy"):
            yield Run(row, backend, "ours", f"{row} {backend}")
        yield Run(row, "torch", "torch", f"{row} eager")
        if name != "toy":
            yield Run(row, "torch.compile", "torch", f"{row} compile")
        yield Run(row, "jax", "jax", row)
        yield Run(row, "numpy by hand", "numpy", row)
    for name in ("llama", "vit"):
        for backend in ("c", "numpy"):
            yield Run(f"train {name}", backend, "ours", f"train {name} {backend}")
    for kind in KINDS:
        yield Run("decode M", f"c {kind}", "ours", f"decode M c {kind}")
        if gguf is not None:
            yield Run("decode GGUF", f"c {kind}", "ours", f"decode smollm2:{gguf} c {kind}")
    yield Run("decode M", "torch", "torch", "decode M eager")
    yield Run("decode M", "jax", "jax", "decode M")
    for what in ("toy", "attn"):
        yield Run(f"gradcheck {what}", "c", "ours", f"gradcheck {what} c")
        yield Run(f"gradcheck {what}", "torch", "torch", f"gradcheck {what}")
    for row, number in (("cold S", 1), ("warm S", 2)):
        yield Run(row, "c", "ours", "train S c", number)
        yield Run(row, "torch.compile", "torch", "train S compile", number)
        yield Run(row, "jax", "jax", "train S", number)


class Ratio(NamedTuple):
    """A line of the table: a figure of ours over that of each peer, each with what it should be at most."""

    what: str
    row: str
    side: str
    figure: str
    peers: dict[str, float | None]


TABLE = [
    Ratio("train S, c", "train S", "c", "ms", {"torch": 0.50, "torch.compile": 0.55, "jax": 0.55}),
    Ratio("train M, c", "train M", "c", "ms", {"torch": 0.48, "torch.compile": 0.50, "jax": 0.58}),
    Ratio("train S, numpy", "train S", "numpy", "ms", {"torch": 0.80, "torch.compile": 0.85, "jax": 0.90}),
    Ratio("train M, numpy", "train M", "numpy", "ms", {"torch": 0.90, "torch.compile": 0.90, "jax": 1.10}),
    Ratio("toy step, c", "train toy", "c", "ms", {"torch": 0.015, "jax": 0.06}),
    Ratio("toy step, numpy", "train toy", "numpy", "ms", {"torch": 0.6, "jax": None}),
    Ratio("decode M, float32", "decode M", "c float32", "ms", {"torch": 0.55, "jax": 0.85}),
    Ratio("decode M, bfloat16", "decode M", "c bfloat16", "ms", {"torch": 0.33, "jax": 0.45}),
    Ratio("decode M, int8", "decode M", "c int8", "ms", {"torch": 0.18, "jax": 0.25}),
    Ratio("peak memory S, c", "train S", "c", "rss_mb", {"torch": 0.65, "torch.compile": 0.65, "jax": 0.5}),
    Ratio("peak memory M, c", "train M", "c", "rss_mb", {"torch": 0.85, "torch.compile": 0.85, "jax": 0.85}),
    Ratio("first call S, cold", "cold S", "c", "first_s", {"torch.compile": 0.15, "jax": 0.5}),
    Ratio("first call S, cached", "warm S", "c", "first_s", {"torch.compile": 0.25, "jax": 0.2}),
    Ratio("gradient check of toy", "gradcheck toy", "c", "ms", {"torch": 1.0}),
    Ratio("gradient check of attention", "gradcheck attn", "c", "ms", {}),
]
PEERS = ("torch", "torch.compile", "jax")
AGREE = ("loss0", "loss4")  # to five digits on all sides


# ---------------------------------------------------------------------------------------------- measuring


def execute(run: Run, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The JSON lines of one run. Raises RuntimeError if it fails, and TimeoutExpired."""
    if run.script == "ours":
        command = [sys.executable, str(HERE / "ours.py"), *run.words.split()]
    else:
        command = [options.python, str(options.peers / f"peer_{run.script}.py"), *run.words.split()]
    env = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    threads = str(options.threads)
    env |= {"OMP_NUM_THREADS": threads, "TENSORGRAPH_THREADS": threads, "NT": threads}
    with tempfile.TemporaryDirectory() as folder:
        env |= dict.fromkeys(CACHES, folder) | KEEP_ALL if run.caches else {}
        for _ in range(max(1, run.caches)):
            ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=options.timeout, check=False)
            if ran.returncode:
                raise RuntimeError(ran.stderr.strip()[-300:] or f"exit status {ran.returncode}")
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


def measure(options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """All runs, round by round; `results` is written after each."""
    done = {(r["round"], r["row"], r["side"]) for r in results}
    broken: set[tuple[str, str]] = {(r["row"], r["side"]) for r in results if "error" in r}
    for number in range(options.rounds):
        for run in runs(options.gguf):
            place = run.row, run.side
            if (number, *place) in done or place in broken or not any(w in run.row for w in options.only):
                continue
            entry: dict[str, Any] = {"round": number, "row": run.row, "side": run.side}
            if run.script != "ours" and not (options.peers and (options.peers / f"peer_{run.script}.py").exists()):
                continue
            try:
                rows = execute(run, options)
                best = {r.get("key", ""): r for r in rows}
                fast = [r for k, r in best.items() if k.endswith("fast")]
                entry |= (fast or rows)[-1]
            except (RuntimeError, subprocess.TimeoutExpired, OSError) as error:
                entry["error"] = " ".join(str(error).split())[-300:]
                broken.add(place)
            results.append(entry)
            save(options.out, results)
            shown = {k: v for k, v in entry.items() if k in ("ms", "rss_mb", "first_s", "error", "gemm_gflops")}
            print(f"# round {number + 1}  {run.row:14} {run.side:14} {shown}", file=sys.stderr, flush=True)


def save(path: Path, results: list[dict[str, Any]]) -> None:
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(results, indent=1), encoding="utf-8")
    fresh.replace(path)


# ----------------------------------------------------------------------------------------------- the table


class Results:
    """What was measured, by row, side and round."""

    def __init__(self, results: list[dict[str, Any]]) -> None:
        self.found = {(r["row"], r["side"], r["round"]): r for r in results if "error" not in r}
        self.errors = {(r["row"], r["side"]): r["error"] for r in results if "error" in r}
        self.rounds = sorted({r["round"] for r in results})

    def figures(self, row: str, side: str, figure: str) -> dict[int, float]:
        """By round."""
        return {n: r[figure] for n in self.rounds if figure in (r := self.found.get((row, side, n), {}))}

    def median(self, row: str, side: str, figure: str) -> float | None:
        found = self.figures(row, side, figure).values()
        return statistics.median(found) if found else None

    def ratio(self, line: Ratio, peer: str) -> float | None:
        """The median over rounds of ours over theirs, both of one round."""
        ours, theirs = (self.figures(line.row, side, line.figure) for side in (line.side, peer))
        both = [ours[n] / theirs[n] for n in ours.keys() & theirs.keys() if theirs[n]]
        return statistics.median(both) if both else None

    def share(self, row: str, side: str) -> float | None:
        """Of the limit that was measured beside it, window by window: products, or reading memory for decoding."""
        return self.median(row, side, "share")


def amount(value: float | None, figure: str) -> str:
    if value is None:
        return "–"
    if figure == "ms":
        return f"{value * 1e3:.3g} µs" if value < 1 else f"{value:,.1f} ms"
    return f"{value:,.0f} MB" if figure == "rss_mb" else f"{value:.2f} s"


def table(found: Results, goals: bool = True) -> str:
    """Markdown. With `goals`, each ratio stands beside what it should be at most, and is bold where it is more."""
    lines = ["| | ours | share of the limit | " + " | ".join(f"vs {p}" for p in PEERS) + " |", "|---" * 6 + "|"]
    for line in TABLE:
        ours = found.median(line.row, line.side, line.figure)
        if ours is None:
            continue
        share = found.share(line.row, line.side) if line.figure == "ms" else None
        cells = []
        for peer in PEERS:
            ratio, limit = found.ratio(line, peer), line.peers.get(peer)
            text = "" if ratio is None else f"{ratio:.3g}"
            if goals and ratio is not None and limit is not None:
                text = f"{text if ratio <= limit else f'**{text}**'} (≤ {limit:g})"
            cells.append(text)
        part = "" if share is None or "toy" in line.row else f"{share:.0%}"
        lines.append(f"| {line.what} | {amount(ours, line.figure)} | {part} | {' | '.join(cells)} |")
    alone = [
        (f"train {name}", side, f"train {name}-shaped, {side}") for name in ("llama", "vit") for side in ("c", "numpy")
    ]
    alone += [("decode GGUF", f"c {kind}", f"decode SmolLM2-135M, {kind}") for kind in KINDS]
    for row, side, what in alone:
        if (ours := found.median(row, side, "ms")) is not None:
            share = found.share(row, side)
            part = "" if share is None else f"{share:.0%}"
            lines.append(f"| {what} | {amount(ours, 'ms')} | {part} |" + " |" * len(PEERS))
    return "\n".join(lines)


def notes(found: Results) -> list[str]:
    """The machine's limits, how far the sides agree, what was disturbed, what is missing."""
    out = []
    limit, read = (found.median("limits", "limits", f) for f in ("gemm_gflops", "read_gbs"))
    if limit is not None and read is not None:
        out.append(f"limits, medians of {len(found.rounds)} rounds: {limit:,.0f} GFLOP/s float32, {read:.0f} GB/s")
    foreign = [r["foreign"] for r in found.found.values() if isinstance(r.get("foreign"), float)]
    if foreign and max(foreign) > 0.12:
        out.append(f"other processes used up to {max(foreign):.2f} cores meanwhile: measure again on a quiet machine")
    for name in ("S", "M", "toy"):
        for loss in AGREE:
            seen = {s: v for s in ("c", "numpy", *PEERS) if (v := found.median(f"train {name}", s, loss)) is not None}
            if seen and max(seen.values()) - min(seen.values()) > 2e-5 * max(map(abs, seen.values())):
                out.append(f"{loss} of {name} differs: {seen}")
    out += [f"missing: {row}, {side}: {why}" for (row, side), why in found.errors.items()]
    return out


def write(text: str, readme: Path = HERE.parents[1] / "README.md") -> None:
    """Replace what stands between the README's two marks."""
    before, _, after = readme.read_text(encoding="utf-8").split(MARK)
    readme.write_text(f"{before}{MARK}\n{text}\n{MARK}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder of the peers' scripts")
    parser.add_argument("--python", default=sys.executable, help="the Python that has torch and jax")
    parser.add_argument("--gguf", type=Path, help="SmolLM2-135M, to be decoded as well")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one run")
    parser.add_argument("--only", type=lambda s: s.split(","), default=[""], help="rows whose name has one of these")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks.json"))
    parser.add_argument("--resume", action="store_true", help="keep what --out holds, and go on")
    parser.add_argument("--print", type=Path, dest="shown", help="only print the table of these results")
    parser.add_argument("--write", action="store_true", help="put the table into the README")
    options = parser.parse_args()
    if options.peers is not None and not options.peers.is_dir():
        parser.error(f"--peers: there is no folder {options.peers}")
    if options.shown is not None and not options.shown.is_file():
        parser.error(f"--print: there is no file {options.shown}")
    if options.rounds < 1:
        parser.error("--rounds is 1 or more")
    if not any(word in run.row for run in runs(options.gguf) for word in options.only):
        parser.error(f"--only: no row has {' or '.join(options.only)} in its name")
    path = options.shown or options.out
    results = (
        json.loads(path.read_text(encoding="utf-8")) if options.shown or (options.resume and path.exists()) else []
    )
    if options.shown is None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        try:
            measure(options, results)
        except KeyboardInterrupt:
            print("# interrupted: --resume goes on", file=sys.stderr)
    found = Results(results)
    print(table(found), *notes(found), sep="\n")
    if options.write:
        write(table(found, goals=False))


if __name__ == "__main__":
    main()
