"""`maskunet`: the commands. Heavy imports wait until a command runs, so that help is quick."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from ..errors import MaskUNetError
from .analyze import analyze_app
from .app import Command, new_app
from .benchmark import benchmark_app
from .convert import convert
from .demo import demo
from .evaluate import evaluate
from .export import export
from .generate import generate
from .info import info
from .model_flags import add_model_flags
from .search import search
from .train import train
from .ui import ui
from .zoo import zoo_app

#: Base of Typer's errors of usage, such as an unknown option.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]
_INTERRUPTED = 130

app = new_app(
    "Masks that switch off the parameters of a diffusion model that hurt, by timestep and by sample.",
    "maskunet",
    invoke_without_command=True,
)


@app.callback()
def _settings(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what the libraries do.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
    from ..allocator import keep_freed_memory

    keep_freed_memory()
    _shorten_spinning()
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s")
    if not verbose:
        _silence_libraries()


def _shorten_spinning() -> None:
    """Let OpenMP's threads sleep soon at a barrier; read when torch is imported, which no command has done yet.

    They spin for milliseconds by default. Where another process takes a core, a thread then waits for one that waits for
    it: an image of the bundled model took thirty times as long.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def _silence_libraries() -> None:
    """Silence the log messages of other libraries; errors are still shown."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


for _command in (demo, generate, search, train, evaluate):
    app.command(cls=Command)(_command)
app.add_typer(benchmark_app, name="benchmark")
app.add_typer(analyze_app, name="analyze")
for _command in (info, convert, export, ui):
    app.command(cls=Command)(_command)
app.add_typer(zoo_app, name="zoo")
add_model_flags(app)


def main() -> None:
    """Run the command line; a wrong value ends in one line on stderr and exit code 2."""
    try:
        code = app(prog_name="maskunet", standalone_mode=False)
    except MaskUNetError as error:
        _fail(str(error) or type(error).__name__)
    except _USAGE_ERROR as error:
        _fail(_usage_message(error))
    except OSError as error:
        if error.filename is None:
            raise
        _fail(
            f"expected a file or folder that can be used, got {error.filename!s:.200}: {error.strerror}; check its name"
        )
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:
        typer.echo("interrupted", err=True)
    if isinstance(code, int) and code:
        sys.exit(code)


def _fail(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)


def _usage_message(error: Exception) -> str:
    """Return a usage error's message, and where to read on."""
    context = getattr(error, "ctx", None)
    hint = f"; see {context.command_path} --help" if context is not None else ""
    message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
    return f"{message[:1].lower()}{message[1:]}{hint}"
