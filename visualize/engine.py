"""DOT -> SVG, PNG or JSON by Graphviz: a working `dot` of the machine, else the program in the graphviz-pure wheel.

Both are separate programs; graphviz-pure is a single binary without any library, so a picture costs about 10 ms.
"""

from __future__ import annotations

import functools
import html
import importlib.metadata
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tensorgraph.errors import GraphError
from tensorgraph.visualize.theme import FONTS

Engine = Literal["auto", "dot", "graphviz-pure"]

_ELSE = "Mermaid (.mmd), DOT (.dot) and text (.txt) work without it; `pip install graphviz-pure` brings a layout engine"


def render(
    dot: str,
    form: Literal["svg", "png", "json"],
    engine: Engine = "auto",
    dpi: float = 72,
    timeout: float = 120,
    placed: bool = False,
) -> bytes:
    """The bytes of a picture laid out by Graphviz; `placed`: every place is in the text and stays.

    Raises GraphError: [TG382] no working engine, [TG383] it refuses the text, [TG384] over `timeout` seconds.
    """
    how = ["-Kneato", "-n2"] if placed else ["-Kdot"]
    command = [find_engine(engine), *how, f"-T{form}", f"-Gdpi={dpi:g}"]
    try:
        done = subprocess.run(command, input=dot.encode(), capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise GraphError(
            "TG384",
            f"the layout of this picture takes more than {timeout:g} s",
            hint="draw it folded, at a coarser level, or in part",
        ) from error
    except OSError as error:
        raise GraphError("TG382", f"Graphviz does not run: {error}", hint=_ELSE) from error
    if done.returncode or not done.stdout:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        raise GraphError("TG383", f"Graphviz refuses this picture; it says: {said[-1]}", hint=_ELSE)
    return done.stdout


def find_engine(engine: Engine = "auto") -> str:
    """The path of the program that makes layouts; raises GraphError [TG382] if there is none that works."""
    tried = {"auto": (_machine_dot, _wheel), "dot": (_machine_dot,), "graphviz-pure": (_wheel,)}[engine]
    for find in tried:
        if (path := find()) is not None:
            return path
    what = "no working Graphviz" if engine == "auto" else f"no working {engine}"
    raise GraphError("TG382", f"{what} on this machine", hint=_ELSE)


@functools.cache
def _machine_dot() -> str | None:
    path = shutil.which("dot")
    return path if path is not None and _works(path) else None


@functools.cache
def _wheel() -> str | None:
    places = [shutil.which("graphviz-pure")]
    try:
        files = importlib.metadata.files("graphviz-pure") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    places += [str(Path(str(f.locate())).resolve()) for f in files if f.stem == "graphviz-pure" and f.parent.name != ""]
    return next((path for path in reversed(places) if path is not None and _works(path)), None)


def _works(path: str) -> bool:
    """True if the program draws an HTML-like label: some builds of `dot` lack the library for those."""
    try:
        done = subprocess.run(
            [path, "-Kdot", "-Tsvg"],
            input=b"digraph { a [label=<<B>x</B>>] }",
            capture_output=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and b"</svg>" in done.stdout and b"font-weight" in done.stdout


def finish_svg(svg: bytes, title: str, titles: Mapping[str, str]) -> str:
    """Graphviz's SVG without the engine's comments, named for readers and screen readers.

    The `<title>` of each part, an id of ours, becomes what `titles` says of it: browsers show it on pointing.
    """
    text = re.sub(r"<!--.*?-->\n?", "", svg.decode(), flags=re.DOTALL)
    text = re.sub(r"<!DOCTYPE[^>]*>\n?", "", text)
    text = re.sub(r'font-family="[^"]*"', f'font-family="{FONTS}"', text)
    text = re.sub(r'class="node">((?!class="(node|edge|cluster)").)*', _centred, text, flags=re.DOTALL)
    text = re.sub(
        r"<title>(.*?)</title>", lambda m: f"<title>{_named(html.unescape(m[1]), title, titles)}</title>", text
    )
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def _centred(node: re.Match[str]) -> str:
    """A box's lines centred by the reader's own font: Graphviz starts them at the left, by widths it only estimates.

    Lines of several cells, which share a baseline, stay where they are.
    """
    outline = re.search(r' d="([^"]*)"', node[0])
    if outline is None:
        return node[0]
    xs = [float(x) for x in re.findall(r"(-?[\d.]+),-?[\d.]+", outline[1])]
    middle = f'text-anchor="middle" x="{(min(xs) + max(xs)) / 2:.2f}"'
    baselines = Counter(re.findall(r'text-anchor="start" x="[^"]*" y="([^"]*)"', node[0]))
    return re.sub(
        r'text-anchor="start" x="[^"]*"( y="([^"]*)")',
        lambda m: middle + m[1] if baselines[m[2]] == 1 else m[0],
        node[0],
    )


def _named(key: str, title: str, titles: Mapping[str, str]) -> str:
    return html.escape(titles.get(key, title), quote=False)


def svg_size(svg: str) -> tuple[float, float]:
    """Width and height of Graphviz's SVG, in points."""
    match = re.search(r'<svg [^>]*?width="([\d.]+)pt" height="([\d.]+)pt"', svg)
    return (float(match[1]), float(match[2])) if match else (0.0, 0.0)
