"""The command line: the only place that knows the engine, the models and the pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> int:
    """Run a command (`sys.argv` by default); the exit status.

    2 for wrong input, with the error's report on standard error (and with --details before the command all that
    it sums up); 1 for what the user's own file raises, with its lines; 130 when interrupted. Anything else that is not
    a TensorgraphError is a defect and keeps its traceback.
    """
    from tensorgraph.errors import TensorgraphError

    from .app import app

    given = sys.argv[1:] if args is None else list(args)
    try:
        app(args=given, prog_name="tensorgraph")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except TensorgraphError as error:
        details = error.details if given[:1] == ["--details"] else ()
        sys.stderr.write("\n".join([error.report(), *(f"  {line}" for line in details)]) + "\n")
        return 2
    except Exception as error:
        from .own import own_traceback

        if (text := own_traceback(error)) is None:
            raise
        sys.stderr.write(text)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
