"""What the suites share: the command line as a function."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tensorgraph.cli import main

os.environ["TENSORGRAPH_KEEP"] = "0"  # every test goes through the passes; test_kept.py says otherwise


class Ran(NamedTuple):
    """What a command printed, and its exit status."""

    rc: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """`run("params", "gpt2")`: a command in this process, without a terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest may set it: tables would be folded

    def call(*args: str) -> Ran:
        capsys.readouterr()
        rc = main(args)
        said = capsys.readouterr()
        return Ran(rc, said.out, said.err)

    return call
