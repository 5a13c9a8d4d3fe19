"""The Typer applications, the arguments that commands share, and the entry point.

Results go to stdout, progress and warnings to stderr. An error that a person can mend is one line
and an exit code of its own (`invem.errors`).
"""

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from invem.atomic import FULL
from invem.cli.interrupt import INTERRUPTED
from invem.cli.output import Forgiving, tell
from invem.errors import (
    InvemError,
    OutOfMemory,
    PluginError,
    RecipeError,
    ResourceError,
    Stopped,
    out_of_memory,
)

__all__ = [
    "AsJson",
    "Device",
    "Overrides",
    "RecipePath",
    "RunPath",
    "Smoke",
    "app",
    "main",
    "plugin",
]

_HELP = {"help_option_names": ["--help", "-h"]}

app = typer.Typer(
    help="Learn a clean diffusion prior from corrupted observations, and restore with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=_HELP,
)

plugin = typer.Typer(
    help="Plugins: what is installed, a new one, and whether one keeps the contracts.",
    no_args_is_help=True,
    context_settings=_HELP,
)
app.add_typer(plugin, name="plugin")

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes, such as phases.em.rounds=2."),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Smoke = Annotated[
    bool,
    typer.Option(
        "--smoke", help="Apply the recipe's smoke block: a run of seconds that learns nothing."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]


def _version(value: bool) -> None:
    if value:
        from invem import __version__

        print(f"invem {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    plugins_dir: Annotated[
        Path | None,
        typer.Option("--plugins-dir", help="A folder whose Python files are plugins too."),
    ] = None,
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Use nothing but what comes with invem.")
    ] = False,
) -> None:
    """Learn a clean diffusion prior from corrupted observations, and restore with it."""
    if plugins_dir is not None:
        os.environ["INVEM_PLUGINS_DIR"] = str(plugins_dir)
    if no_plugins:
        os.environ["INVEM_PLUGINS"] = ""


def _print_in_any_encoding() -> None:
    """Has letters that stdout cannot encode (`LANG=C`) written out, such as ``\\xb1``."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(OSError):
            sys.stdout.reconfigure(errors="backslashreplace")


def main() -> None:
    """Runs the command line. An expected error becomes one line and its exit code."""
    _print_in_any_encoding()
    before = sys.stderr
    try:
        if before is not None:
            sys.stderr = Forgiving(before)
        _main()
    finally:
        sys.stderr = before


def _main() -> None:
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except InvemError as error:
        # A list of problems has the place of each at the start of its line.
        several = isinstance(error, RecipeError | PluginError) and "\n" in str(error)
        kind = "" if several or isinstance(error, Stopped) else "error: "
        tell(f"{kind}{error}")
        sys.exit(error.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        tell(
            "error: out of memory: smaller batches need less: evaluate.batch, phases.NAME.batch and"
            " phases.NAME.fit.batch; a run goes on with them: invem resume RUN KEY=VALUE"
        )
        sys.exit(OutOfMemory.exit_code)
    except BrokenPipeError:
        os._exit(0)
    except PermissionError as error:
        if error.filename is None:
            raise
        tell(f"error: {error.filename}: {error.strerror}")
        sys.exit(RecipeError.exit_code)
    except OSError as error:
        if error.errno not in FULL:
            raise
        tell(f"error: the output cannot be written: {error.strerror}")
        os._exit(ResourceError.exit_code)
