"""The program ``holdfast``, also as ``python -m holdfast``.

Invariant: Ctrl-C while the program is still being loaded ends it with exit code 130, not with a traceback.
"""

import sys

__all__ = ["run"]

_INTERRUPTED = 130


def run() -> None:
    """One command runs, and the process ends with its exit code."""
    try:
        from .cli.main import run as run_command
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    run_command()


if __name__ == "__main__":
    run()
