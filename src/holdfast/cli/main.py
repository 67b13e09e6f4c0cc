"""The program: commands, exit codes, and what becomes of errors.

Invariants:
    * Every ``HoldfastError`` ends as its own exit code and one message, never as a traceback. Usage errors exit 2.
    * An interrupt exits 130, a reader that went away 141, a bug of ours 70 with its traceback.
    * Importing this module opens nothing and imports no engine: ``holdfast --help`` is quick.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import HoldfastError, InternalError, InvalidInputError
from . import (
    backup,
    branches,
    checkpoints,
    compacting,
    contracts,
    create,
    diffing,
    doctoring,
    epochs,
    events,
    exporting,
    importing,
    indexing,
    inspecting,
    looking,
    mining,
    proving,
    pruning,
    selftest,
    settings,
    snapshots,
    state,
    stats,
    syncing,
    upkeep,
)
from .logs import logs_of_a_command
from .output import PipeClosed, flush_output, forget_stdout, json_asked, print_error
from .session import show_hashes, store_key

__all__ = ["app", "run"]

_INTERRUPTED = 130
_PIPE_CLOSED = 141


class _Program(TyperGroup):
    """The group of all commands. Its ``main`` turns every ending into an exit code, also under a test runner."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        code = self._run(list(sys.argv[1:] if args is None else args), prog_name, complete_var, extra)
        if not standalone_mode:
            return code
        sys.exit(code)

    def _run(self, args: list[str], prog_name: str | None, complete_var: str | None, extra: dict[str, Any]) -> int:
        as_json = json_asked(args)
        try:
            with logs_of_a_command(as_json=as_json):
                result = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            flush_output()
            return result if isinstance(result, int) else 0
        except HoldfastError as error:
            print_error(show_hashes(error), as_json=as_json)
            return error.exit_code
        except (PipeClosed, BrokenPipeError):
            forget_stdout()
            return _PIPE_CLOSED
        except (KeyboardInterrupt, typer.Abort):
            print("interrupted", file=sys.stderr)
            return _INTERRUPTED
        except typer.Exit as ending:
            return ending.exit_code
        except SystemExit:
            raise
        except Exception as error:  # noqa: BLE001 - the last stop of every error
            if not hasattr(error, "format_message"):
                return _report_bug(error, as_json=as_json)
            return _report_usage(error, as_json=as_json)


def _report_usage(error: Exception, *, as_json: bool) -> int:
    """What the parser of the command line refused. Its exceptions are known by their shape: they moved between
    releases of typer."""
    message = str(error.format_message())  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)
        return InvalidInputError.exit_code
    path = context.command_path if context is not None else "holdfast"
    print_error(InvalidInputError(message, remedy=f"'{path} --help' shows what it takes"), as_json=as_json)
    return InvalidInputError.exit_code


def _report_bug(error: Exception, *, as_json: bool) -> int:
    if as_json:
        trace = "".join(traceback.format_exception(error))
        print_error(InternalError(f"{type(error).__name__}: {error}", trace=trace), as_json=True)
    else:
        traceback.print_exception(error)
        print_error(InternalError(f"{type(error).__name__}: {error}"), as_json=False)
    return InternalError.exit_code


app = typer.Typer(
    cls=_Program,
    name="holdfast",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The durable memory of a blockchain node: import, look, reorganise, verify.",
)


def _show_version(asked: bool) -> None:
    if asked:
        import importlib

        print(f"holdfast {importlib.import_module('holdfast').__version__}")
        raise typer.Exit


@app.callback()
def program(
    context: typer.Context,
    store_key_file: Annotated[
        Path | None,
        typer.Option(
            "--store-key-file",
            envvar="HOLDFAST_KEY_FILE",
            metavar="FILE",
            help="Key of an encrypted store: 64 hex digits.",
        ),
    ] = None,
    store_passphrase_file: Annotated[
        Path | None,
        typer.Option(
            "--store-passphrase-file",
            metavar="FILE",
            help="Passphrase of an encrypted store; or HOLDFAST_PASSPHRASE in the environment.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The durable memory of a blockchain node: import, look, reorganise, verify."""
    context.with_resource(store_key(store_key_file, store_passphrase_file))


for _module in (
    create,
    importing,
    syncing,
    mining,
    looking,
    branches,
    epochs,
    indexing,
    state,
    proving,
    contracts,
    exporting,
    snapshots,
    backup,
    checkpoints,
    pruning,
    compacting,
    upkeep,
    doctoring,
    selftest,
    diffing,
    stats,
    settings,
    events,
    inspecting,
):
    _module.register(app)


def run() -> None:
    """The entry point ``holdfast``: runs one command and exits with its code."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    app()
