"""The benchmarks' own code: ratios are of one round, failures are told, and ours computes what the peers compute."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "benchmarks"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_ratios_are_of_one_round() -> None:
    table = load("table")
    rows = [
        {"round": n, "row": "train S", "side": side, "ms": ms, "share": 0.8, "loss0": 9.1}
        for n, (ours, theirs) in enumerate([(10.0, 40.0), (100.0, 200.0), (10.0, 30.0)])
        for side, ms in (("c", ours), ("torch", theirs))
    ]
    rows += [{"round": n, "row": "limits", "side": "limits", "gemm_gflops": 125.0, "read_gbs": 40.0} for n in range(3)]
    rows += [{"round": 0, "row": "train S", "side": "jax", "error": "no module named jax"}]
    found = table.Results(rows)
    assert found.ratio(table.TABLE[0], "torch") == pytest.approx(1 / 3)  # of 1/4, 1/2, 1/3
    assert found.share("train S", "c") == pytest.approx(0.8)
    text = table.table(found).splitlines()
    assert text[2] == "| train S, c | 10.0 ms | 80% | 0.333 (≤ 0.5) |  |  |"
    assert table.notes(found)[1:] == ["missing: train S, jax: no module named jax"]


def test_what_is_too_slow_is_bold_and_what_disagrees_is_told() -> None:
    table = load("table")
    rows = [{"round": 0, "row": "train S", "side": s, "ms": 10.0, "loss0": v} for s, v in (("c", 9.0), ("torch", 9.1))]
    found = table.Results(rows)
    assert "**1** (≤ 0.5)" in table.table(found)
    assert table.notes(found) == ["loss0 of S differs: {'c': 9.0, 'torch': 9.1}"]


def test_results_are_kept_and_printed_again(tmp_path: Path) -> None:
    kept = tmp_path / "r.json"
    command = [sys.executable, FOLDER / "table.py"]
    args = ["--rounds", "1", "--only", "gradcheck toy", "--out", kept]
    ran = subprocess.run([*command, *args], capture_output=True, text=True, check=True)
    (row,) = json.loads(kept.read_text(encoding="utf-8"))
    assert row["row"] == "gradcheck toy" and (row.get("entries") == 268 or "error" in row)
    again = subprocess.run([*command, "--print", kept], capture_output=True, text=True, check=True)
    assert again.stdout == ran.stdout


def test_a_warm_row_is_the_second_run_with_the_caches_of_the_first(tmp_path: Path) -> None:
    table = load("table")
    (tmp_path / "peer_jax.py").write_text(
        "import json, os, pathlib, sys\n"
        "cache = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])\n"
        "print(json.dumps({'key': ' '.join(sys.argv[1:]), 'first_s': len(list(cache.iterdir()))}))\n"
        "(cache / f'{os.getpid()}').touch()\n"
    )
    options = argparse.Namespace(python=sys.executable, peers=tmp_path, threads=2, timeout=60)
    for row, kept in (("cold S", 0), ("warm S", 1)):
        (run,) = (r for r in table.runs() if r.row == row and r.side == "jax")
        assert table.execute(run, options) == [{"key": "train S", "first_s": kept}]
    assert any(line.row == "warm S" and line.figure == "first_s" for line in table.TABLE)


def test_toy_trains_as_the_peers_do() -> None:
    ours = load("ours")
    build, p, batch, sizes = ours.problem("toy")
    import tensorgraph as tg

    step = tg.compile(build(), update=tg.optim.AdamW(3e-4, betas=(0.9, 0.95), weight_decay=0.1), backend="numpy")
    state, losses = step.init(p), []
    for _ in range(5):
        value, state = step(state, **batch)
        losses.append(float(value))
    assert sizes == {} and sum(a.size for a in p.values()) == 268
    assert losses[0] == pytest.approx(2.07029, abs=1e-5) and losses[4] == pytest.approx(2.06373, abs=1e-5)
