"""The errors that a user can meet, each with the exit code of the command line.

A message is one line. It names the culprit, the allowed values, and the probable intention if a
name is close to another.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "DataError",
    "InvemError",
    "MissingExtra",
    "NumericalError",
    "OutOfMemory",
    "PluginError",
    "RecipeError",
    "ResourceError",
    "Stopped",
    "Unsupported",
    "escaped",
    "out_of_memory",
    "suggest",
]


class InvemError(Exception):
    """The base of every error raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class RecipeError(InvemError):
    """A recipe, an option or a command cannot be carried out as written."""

    exit_code = 2


class Unsupported(RecipeError):
    """An operator, noise or denoiser does not provide the requested capability."""


class PluginError(InvemError):
    """A plugin or a component is missing, broken or offered twice."""

    exit_code = 3


class MissingExtra(PluginError):
    """A bridge needs a library that is not installed or does not import."""

    def __init__(self, extra: str, error: Exception) -> None:
        reason = " ".join(str(error).split())[:200]
        super().__init__(
            f"this needs {extra}, which does not import ({reason}); install it with: pip install"
            f" 'invem[{extra}]'"
        )


class DataError(InvemError):
    """A data set, a stored file or a checkpoint is missing or damaged."""

    exit_code = 4


class NumericalError(InvemError):
    """A computation gave numbers that are not finite."""

    exit_code = 5


class ResourceError(InvemError):
    """No disk space is left, or a file is larger than the system allows."""

    exit_code = 6


class OutOfMemory(InvemError):
    """No memory is left, on the machine or on the accelerator."""

    exit_code = 7


class Stopped(InvemError):
    """The run was asked to stop by a signal; its state is saved."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that no memory is left; PyTorch says so by a RuntimeError."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def escaped(text: object) -> str:
    """Returns a text in which whatever would disturb a terminal or a page is written out, such as
    ``\\x1b`` and the marks that turn the direction of text.

    Names, paths and messages of plugins come from elsewhere. Line ends, tabs and no-break spaces
    are kept.
    """
    kept = "\n\t\xa0"
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in str(text))


def suggest(word: str, allowed: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` if an allowed word is close, else the empty string."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
