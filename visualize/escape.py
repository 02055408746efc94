"""What foreign text becomes in each format, so that no name can change a picture's structure or run anything."""

from __future__ import annotations

import html
import re
import unicodedata
from urllib.parse import quote

# Mermaid entity codes; `#` first opens such a code, `:` beside "style" would make Mermaid swallow a semicolon.
_MERMAID = {c: f"#{ord(c)};" for c in '"#<>&`\\*~$'} | {'"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;"}
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "$": r"\$", "#": r"\#", "&": r"\&",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\symbol{34}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}", "-": "{-}",
    "…": r"\dots{}", "\u200b": "", "\u2212": "$-$", "·": r"\textperiodcentered{}",
}  # fmt: skip
_LATEX_SIGNS = {
    "×": "times", "→": "to", "←": "leftarrow", "↔": "leftrightarrow", "⇒": "Rightarrow", "∂": "partial",
    "√": "surd", "∇": "nabla", "∞": "infty", "≤": "leq", "≥": "geq", "≠": "neq", "≈": "approx", "±": "pm", "÷": "div",
    "∑": "Sigma", "∏": "Pi", "∈": "in", "∘": "circ", "⊙": "odot", "⊕": "oplus", "⊗": "otimes", "ℓ": "ell",
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "κ": "kappa", "λ": "lambda", "μ": "mu", "µ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma",
    "τ": "tau", "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta",
    "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega", "⌊": "lfloor",
    "⌋": "rfloor", "⌈": "lceil", "⌉": "rceil", "•": "bullet",
}  # fmt: skip
_LINK = re.compile(r"(?:https?://[^/]|/(?!/))", re.IGNORECASE)


def clean(text: str) -> str:
    """One line of text without control characters, direction overrides, lone surrogates or non-characters."""
    spaced = " ".join(text.split())
    return "".join(c for c in spaced if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp"))


def shorten(text: str, most: int = 60) -> str:
    """Clean text of at most `most` characters, the end given up for an ellipsis."""
    text = clean(text)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def html_text(text: str) -> str:
    """Text inside a Graphviz HTML-like label, where `\\N`, even as an entity, would still become the node's name."""
    return html.escape(re.sub(r"\\(?=[EGHLNT])", "\\\\\u200b", clean(text)))


def dot_string(text: str) -> str:
    """A quoted DOT string: Graphviz reads both backslash escapes and HTML entities in it."""
    return '"' + clean(text).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"') + '"'


def mermaid_text(text: str) -> str:
    """Text inside a quoted Mermaid label, as it would be read by Mermaid's lexer, its Markdown and then HTML."""
    text = clean(text).replace("\\n", "\\\u200bn")  # Mermaid breaks lines at a backslash and an n, even when encoded
    out = "".join(_MERMAID.get(c, c) for c in text)
    out = out.replace("%%", "#37;#37;")  # `%%{` opens a directive anywhere
    if "style" in text or "classDef" in text:
        out = out.replace(":", "#58;")
    out = re.sub(r"(?<!\w)_|_(?!\w)", "#95;", out)  # `_x_` is emphasis, `W_q` is not
    return re.sub(r"^(\d+)([.)])(?=\s)|^([-+])(?=\s)", lambda m: _numbered(m), out)


def _numbered(match: re.Match[str]) -> str:
    digits, stop, bullet = match.groups()
    return f"#{ord(bullet)};" if bullet else f"{digits}#{ord(stop)};"


def latex_text(text: str) -> str:
    """Text of a LaTeX document that needs no package; what pdfLaTeX's own fonts lack is given as its code, `U+65E5`."""
    return "".join(_latex(c) for c in clean(text))


def _latex(c: str) -> str:
    if c in _LATEX:
        return _LATEX[c]
    if c in _LATEX_SIGNS:
        return f"$\\{_LATEX_SIGNS[c]}$"
    kind, _, codes = unicodedata.decomposition(c).partition(" ")
    if kind in ("<super>", "<sub>"):
        return f"\\text{kind[1:-1]}script{{{''.join(_latex(chr(int(x, 16))) for x in codes.split())}}}"
    if c in "¼½¾":
        return {"¼": "$1/4$", "½": "$1/2$", "¾": "$3/4$"}[c]
    if ord(c) < 0x180 and (c.isascii() or c.isalpha()):  # Latin letters with accents: every LaTeX since 2018 has them
        return c
    return f"U+{ord(c):04X}"


def safe_link(link: str | None) -> str | None:
    """The link, percent-encoded, if it is http, https or a path from the site's root; else None."""
    if link is None:
        return None
    text = clean(link).replace(" ", "%20")
    return quote(text, safe="/:?#@!$&()*+,=-._~%[]") if _LINK.match(text) else None
