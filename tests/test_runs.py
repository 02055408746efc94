"""Where a value leaves or enters the middle of a repeated block that is drawn once, the picture says which run."""

from __future__ import annotations

import json
import random
import re

import merman
import pytest

import tensorgraph as tg
from tensorgraph.blocks import fold
from tensorgraph.cli.target import open_target
from tensorgraph.graph import Graph
from tensorgraph.visualize import View, draw

UNARY = [tg.tanh, tg.exp, tg.sin, tg.sigmoid, tg.square, tg.relu]
HEADS = [tg.cos, tg.sqrt, tg.silu, tg.neg]  # one for each tap, so that they are no chain themselves
d = tg.dim("d")


def taps(seed: int) -> tuple[tg.Tensor, int, dict[str, int]]:
    """A random block n times in a row, some of whose runs are read by a head of their own, and which run each reads."""
    rng = random.Random(seed)
    n, period = rng.randint(3, 9), rng.randint(1, 3)
    body = [(rng.choice(UNARY), rng.random() < 0.5) for _ in range(period)]
    scoped = rng.random() < 0.7 or period * (n - 1) < 12
    cast = rng.random() < 0.3  # what reads a run may see it through a view
    h = tg.input("x", (tg.dim("B"), d)) * 1.5
    made = []
    for t in range(n):

        def run(h: tg.Tensor, t: int = t) -> tg.Tensor:
            first = h
            for i, (fn, residual) in enumerate(body):
                h = fn(h @ tg.param(f"w{t}.{i}", (d, d)))
                h = h + first if residual else h
            return h

        if scoped:
            with tg.scope(f"layer{t}", kind="Layer"):
                h = run(h)
        else:
            h = run(h)
        made.append(h)
    read = {f"tap{i}": rng.randrange(n) for i in range(rng.randint(1, 4))}
    for head, (name, t) in zip(HEADS, read.items(), strict=False):
        x = tg.permute(made[t], (1, 0)) if cast else made[t]
        w = tg.param(name, (tg.dim("B"), d) if cast else (d, d))
        h = h @ head(x @ w) if cast else h + head(x @ w)
    return h, n, read


def leaving(view: View, name: str) -> tuple[str, str]:
    """Where the value comes from that the step with this weight reads: the note on its edge, and the frame."""
    (box,) = [b for b in view.boxes if b.label == name]
    (edge,) = [e for e in view.edges if e.target == box.id]
    (source,) = [b for b in view.boxes if b.id == edge.source]
    path = view.path(source)
    return edge.note, view.block_index[path[0]].heading if path else ""


@pytest.mark.parametrize("seed", range(40))
def test_a_tap_says_which_run_it_reads(seed: int) -> None:
    """Oracle: the graph as it was made; and the same drawn unfolded, where every layer stands for itself."""
    y, n, read = taps(seed)
    folded, flat = draw(y).view, draw(y, unfold=True).view
    for name, t in read.items():
        note, heading = leaving(folded, name)
        said = re.fullmatch(r".* ×(\d+)(?: ·.*)?", heading)
        times = int(said[1]) if said else 1  # the first run may stand alone, since it reads what others do not
        place = t - (n - times)
        assert note == (f"from {place + 1} of {times}" if said and place < times - 1 else ""), (name, t, heading)
        if any("layer" in b.title for b in flat.blocks):
            note, heading = leaving(flat, name)
            assert (note, heading.split(" ")[0]) == ("", f"layer{t}")


def notes(what: object) -> list[str]:
    view = draw(what).view
    labels = {b.id: b.label for b in view.boxes}
    return [f"{labels[e.source]} → {labels[e.target]}: {e.note}" for e in view.edges if e.note]


def layers(kind: str, n: int, h: tg.Tensor, skips: list[tg.Tensor] | None = None, outer: str = "") -> list[tg.Tensor]:
    """The values after each of n equal layers; `skips`: what they add to their inputs."""
    out = []
    for i in range(n):
        with tg.scope(f"{kind}{i}", kind=kind):
            h = tg.tanh((h if skips is None else h + skips[i]) @ tg.param(f"{outer}{kind}{i}.w", (d, d)))
        out.append(h)
    return out


def test_what_passes_from_runs_to_runs_is_said() -> None:
    """As in a U-Net: each run of the second block reads one of the first, in reverse."""
    down = layers("Down", 5, tg.input("x", (3, d)))
    up = layers("Up", 4, tg.exp(down[4]), down[3::-1])
    assert notes(up[3]) == ["Down0 → Up0: from 4…1 of 5 into 1…4 of 4"]


def test_what_enters_some_runs_only_is_said() -> None:
    x, z = tg.input("x", (3, d)), tg.exp(tg.input("z", (3, d)))
    assert notes(layers("L", 6, x, [z] * 6)[5]) == []
    found = notes(layers("L", 6, x, [tg.cos(z), z, z, z, tg.cos(z), z])[5])
    assert sorted(found) == ["cos → L0: into 1, 5 of 6", "exp → L0: into 2…4, 6 of 6"]


def test_outputs_from_the_middle_are_marked_and_drawn_in_every_form() -> None:
    made = layers("L", 6, tg.input("x", (3, d)))
    picture = draw({"early": made[1], "late": made[5]})
    assert notes({"early": made[1], "late": made[5]}) == ["L0 → early: from 2 of 6"]
    assert "from 2 of 6" in picture.svg and "from 2 of 6" in picture.text and "from 2 of 6" in picture.dot
    parsed = json.loads(merman.Merman().parse_json(picture.mermaid, None))
    assert [e["label"] for e in parsed["edges"] if e.get("label")] == ["from 2 of 6"]


def test_within_several_stretches_the_inner_run_comes_first() -> None:
    h, kept = tg.input("x", (3, d)), []
    for i in range(4):
        with tg.scope(f"outer{i}", kind="Outer"):
            made = layers("L", 5, h * 2.0, outer=f"{i}.")
            h = tg.exp(made[4]) + tg.cos(made[1])
            kept.append(made[2])
    assert notes(tg.Graph({"y": h, "z": kept[1]})) == ["L0 → cos: from 2 of 5", "L0 → z: from 3 of 5 in 2 of 4"]


def stubs(what: object) -> list[str]:
    return [b.label for b in draw(what).view.boxes if "run" in b.label]


def test_what_a_run_gives_to_the_next_is_shown_where_it_is_not_its_end() -> None:
    x = h = c = tg.input("x", (3, d))
    ends, w = [], tg.param("w", (d, d))
    for i in range(8):
        h = tg.tanh(h @ tg.param(f"w{i}", (d, d)))
        ends.append(tg.exp(h))
    assert stubs(ends) == ["next run"] and stubs(h) == []
    for i in range(6):
        with tg.scope(f"cell{i}", kind="Cell"):
            h, c = tg.sigmoid(x @ w) * tg.tanh(c + h), tg.sigmoid(h @ w) * c
    assert len(stubs(h)) == 2 and all(s.startswith("next run: ") for s in stubs(h))
    for i in range(6):
        with tg.scope(f"two{i}", kind="Two"):
            h, c = tg.tanh(h) @ w + c, h
    assert [s.partition(":")[0] for s in sorted(stubs(h))[:2]] == ["2 runs on", "next run"]


def test_layers_that_are_kept_of_a_real_tower() -> None:
    """Llama 3.2 Vision reads five of its 32 layers beside the last; gradients enter where values left."""
    assert [n for n in notes(open_target("llama-3.2-11b-vision"))] == ["+ → concat: from 4, 8, 16, 24, 31 of 32"]


def test_what_each_run_has_of_its_own_is_one_box() -> None:
    """A decoder with its cache: every layer reads an input and makes an output; all of them are one box each."""
    n = tg.dim("n")
    h, held, made = tg.input("x", (n, d)), [], []
    for i in range(5):
        with tg.scope(f"layer{i}", kind="Layer"):
            held.append(tg.input(f"cache.{i}.key", (n, d)))
            made.append(held[-1] + h @ tg.param(f"w{i}", (d, d)))
            h = h + tg.tanh(made[-1])
    view = draw({"y": h, **{f"new.{i}.key": x for i, x in enumerate(made)}}).view
    inside = {b.label: view.block_index[b.block].times for b in view.boxes if b.block}
    assert inside["cache.0…4.key"] == inside["new.0…4.key"] == "×5" and not any(e.note for e in view.edges)
    shuffled = {f"new.{(2 * i) % 5}.key": x for i, x in enumerate(made)}  # no name says them in this order
    assert "layer0 → new.4.key: from 3 of 5" in notes({"y": h, **shuffled})


def blocks_in_blocks(seed: int) -> Graph:
    """Random blocks with blocks in them, which read values from outside and from other blocks' runs."""
    r = random.Random(seed)
    taps: list[tg.Tensor] = []
    fresh = iter(range(10_000))
    h, sides = tg.input("x", (tg.dim("B"), d)) * 2.0, [tg.input("z", (tg.dim("B"), d))]

    def run(h: tg.Tensor, program: list[str | int], side: tg.Tensor) -> tg.Tensor:
        first = h
        for what in program:
            if isinstance(what, int):
                for t in range(what):
                    with tg.scope(f"inner{t}", kind="Inner"):
                        h = run(h, ["weight", "side"], side)
            elif what == "weight":
                h = tg.tanh(h @ tg.param(f"w{next(fresh)}", (d, d)))
            else:
                h = h * side if what == "side" else tg.permute(tg.exp(tg.permute(h, (1, 0))), (1, 0)) + first
        return h

    for number in range(r.randint(1, 3)):
        program: list[str | int] = [r.choice(["weight", "side", "view"]) for _ in range(r.randint(1, 4))]
        program += [r.randint(2, 4)] * r.randint(0, 1)
        varied, made = r.random() < 0.4, []
        for t in range(r.randint(2, 6)):
            with tg.scope(f"block{number}.{t}", kind="Block"):
                h = run(h, program, r.choice([*sides, *taps[-3:]]) if varied else sides[0])
            made.append(h)
        taps += r.sample(made, min(len(made), r.randint(1, 3)))
        h = r.choice(UNARY)(h) + tg.cos(r.choice(taps))
    return Graph({"y": h, **{f"h{i}": x for i, x in enumerate(taps) if r.random() < 0.3}})


@pytest.mark.parametrize("seed", range(24))
def test_any_graph_is_drawn_at_every_level_with_nothing_loose(seed: int) -> None:
    graph = blocks_in_blocks(seed)
    for level in ("flowchart", "ops", "backward"):
        picture = draw(graph, level)  # type: ignore[arg-type]
        assert picture.text and picture.mermaid
        ends = {end for e in picture.view.edges for end in (e.source, e.target)}
        assert level == "backward" or ends == {b.id for b in picture.view.boxes}


def blocks_that_share(odd: int | None = None) -> tg.Tensor:
    """Seven layers with weights of their own and one that all read; one layer does a little more."""
    h, shared = tg.input("x", (tg.dim("B"), d)), tg.param("shared", (d, d))
    for i in range(7):
        with tg.scope(f"layers.{i}", kind="Block"):
            first = h
            for j in range(3):
                h = tg.tanh(h @ tg.param(f"layers.{i}.w{j}", (d, d)))
            h = (h @ shared) * (3.25 if i == odd else 1.0) + first
    return h


def test_a_weight_shared_with_a_block_that_is_as_above_is_joined_to_it() -> None:
    view = draw(blocks_that_share(3)).view
    labels = {b.id: b.label for b in view.boxes}
    tied = [(labels[e.source], labels[e.target]) for e in view.edges if e.kind == "tied"]
    assert tied == [("shared", "shared"), ("shared", "Block ×3")]
    assert [b.heading for b in view.blocks] == ["Block ×3 · 3·d² each + d² shared · 10·d²"]
    (again,) = [b for b in view.boxes if "as above" in b.lines]
    assert [w.counted for w in again.weights] == ["3·d² each · 9·d²"]
    assert [b.heading for b in draw(blocks_that_share()).view.blocks] == ["Block ×7 · 3·d² each + d² shared · 22·d²"]


@pytest.mark.parametrize("run", range(6))
def test_a_weight_of_any_run_that_is_read_again_is_tied(run: int) -> None:
    h, ws = tg.input("x", (tg.dim("B"), d)), [tg.param(f"layers.{i}.w", (d, d)) for i in range(6)]
    for i, w in enumerate(ws):
        with tg.scope(f"layers.{i}", kind="Block"):
            h = tg.tanh(h @ w) + h
    for level in ("flowchart", "ops", "backward"):
        view = draw(tg.exp(h) @ ws[run], level).view  # type: ignore[arg-type]
        (again,) = [b for b in view.boxes if b.tied]
        (theirs,) = again.weights
        assert f"from {run + 1} of 6 · 0 new" in theirs.counted
        assert [e.target for e in view.edges if e.kind == "tied"] == [again.id] * (level != "backward")


def test_weights_that_only_some_runs_share_are_said_to_be_shared() -> None:
    h, pool = tg.input("x", (tg.dim("B"), d)), [tg.param(f"alt{i}", (d, d)) for i in range(2)]
    for i in range(6):
        h = tg.tanh(h @ pool[i % 2] @ tg.param(f"l{i}.w", (d, d)))
    view = draw(h).view
    assert [b.heading for b in view.blocks] == ["steps ×6 · d² each + 2·d² shared · 8·d²"]
    assert [w.counted for b in view.boxes for w in b.weights] == ["d², 2 stored, each used 3 times", "d²"]


def test_why_a_layer_is_left_out_of_a_repetition_is_said() -> None:
    """In the text, and as the tooltip of that layer's boxes alone wherever there are tooltips."""
    h, why = tg.input("x", (tg.dim("B"), d)), "layers.3 is left out of the repetition: takes another constant"
    for i in range(7):
        with tg.scope(f"layers.{i}", kind="Block"):
            h = tg.tanh(h @ tg.param(f"layers.{i}.w", (d, d))) * (3.25 if i == 3 else 1.0) + h
    assert why.partition("repetition: ")[2] in fold(Graph(h)).text()
    for level in ("flowchart", "ops", "backward"):
        picture = draw(h, level)  # type: ignore[arg-type]
        assert picture.text.count(why) == 1 and why in picture.svg
        alone = {b.label for b in picture.view.boxes if why in b.tooltip}
        assert alone and not any(b.block for b in picture.view.boxes if why in b.tooltip)
    assert "left out" not in draw(h, unfold=True).text
