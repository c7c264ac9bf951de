"""The root command, its global options, and what becomes of every error: a message, an exit code, no traceback."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.registry import LazyGroup
from prompttuner.errors import PromptTunerError

__all__ = ["app", "run"]

INTERNAL = 70
"""Exit code of a fault in prompttuner itself (sysexits.h: EX_SOFTWARE)."""
DISK = 6
"""As of DatabaseError and SpoolError: the state could not be written."""
INTERRUPTED = 130

app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from prompttuner import __version__

        typer.echo(f"prompttuner {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=False)
def root(
    home: Annotated[Path | None, typer.Option(help="Where everything is kept.", metavar="FOLDER")] = None,
    backend: Annotated[str | None, typer.Option(help="local or slurm.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, as config show names it.")
    ] = None,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Deadline-aware, elastic LLM prompt tuning on Slurm clusters, or on this machine."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s", level=logging.WARNING, force=True)
    context.set_flags({"home": None if home is None else str(home), "backend": backend}, set_ or [])


def run(args: Sequence[str]) -> int:
    """Run one command line; returns its exit code and never raises.

    Exit codes: 0 done; 1 other failure; 2 wrong usage, spec, data or settings; 3 not found; 4 not possible in this
    state; 5 another controller owns the state; 6 database, spool or disk; 7 Slurm; 8 model; 70 a fault of prompttuner;
    130 interrupted.
    """
    warnings.showwarning = _show_warning
    context.set_flags({}, [])
    try:
        app(args=list(args), prog_name="prompttuner")
    except SystemExit as end:
        return _flushed(end.code if isinstance(end.code, int) else 0 if end.code is None else 1)
    except PromptTunerError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return fail("interrupted; nothing is lost: jobs go on, and `prompttuner status` shows them", INTERRUPTED)
    except BrokenPipeError:
        return _broken_pipe()
    except Exception as error:
        return _unexpected(error)
    return 0


def fail(message: str, code: int) -> int:
    """Say what went wrong on standard error."""
    from prompttuner.config.mask import mask_text

    try:
        sys.stderr.write(f"error: {mask_text(message)}\n")
    except OSError:
        pass  # nobody is listening; the exit code still tells
    return code


def _unexpected(error: Exception) -> int:
    if isinstance(error, OSError):
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            where = f" ({error.filename})" if error.filename else ""
            return fail(f"no space left on the disk{where}: free some, then do it again; nothing is lost", DISK)
        if error.errno is not None:  # rights, a read-only or broken file system, a loop of links, too many open files
            return fail(f"{error.filename or 'a file'}: {error.strerror}", 1)
    if os.environ.get("PROMPTTUNER_DEBUG"):
        traceback.print_exc()
        return INTERNAL
    place = _keep_traceback(error)
    return fail(
        f"a fault in prompttuner itself: {type(error).__name__}: {error}. "
        + (f"Details are in {place}; " if place else "")
        + "set PROMPTTUNER_DEBUG=1 to see them here",
        INTERNAL,
    )


def _keep_traceback(error: Exception) -> Path | None:
    from prompttuner.config.mask import mask_text
    from prompttuner.files import make_private_dir, write_bytes

    try:
        path = make_private_dir(context.settings().logs_dir) / "last-fault.txt"
        write_bytes(path, mask_text("".join(traceback.format_exception(error))).encode())
    except (OSError, PromptTunerError):
        return None
    return path


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _broken_pipe()
    except OSError as error:
        return _unexpected(error)
    return code


def _broken_pipe() -> int:
    """The reader (``head``, ``less``) has gone: end quietly, as typer does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        sys.stderr.write(f"warning: {message}\n")
