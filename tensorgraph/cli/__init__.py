"""The command line: the only place that knows the engine, the models and the pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> int:
    """Run a command (`sys.argv` by default); the exit status.

    2 for wrong input, with the error's report on standard error; 130 when interrupted. What is not a TensorgraphError
    is a defect and keeps its traceback.
    """
    from tensorgraph.errors import TensorgraphError

    from .app import app

    try:
        app(args=None if args is None else list(args), prog_name="tensorgraph")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except TensorgraphError as error:
        sys.stderr.write(error.report() + "\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
