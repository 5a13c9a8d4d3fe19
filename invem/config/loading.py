"""Watching the import of a plugin: one that does not come to an end is named."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["named_if_slow"]

_PATIENCE = 5.0  # seconds; a plugin that imports PyTorch takes one or two


@contextlib.contextmanager
def named_if_slow(what: str) -> Iterator[None]:
    """Says on stderr what is being loaded, if it takes more than a few seconds or is interrupted.

    Args:
        what: "plugin NAME (distribution NAME)", or what else is loaded.
    """
    help_words = "leave it out by INVEM_PLUGINS, or by --no-plugins"
    timer = threading.Timer(
        _PATIENCE, _tell, [f"still loading {what}; Ctrl-C stops it; to do without, {help_words}"]
    )
    timer.daemon = True
    timer.start()
    try:
        with _interrupted(f"error: interrupted while loading {what}; to do without, {help_words}"):
            yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _interrupted(text: str) -> Iterator[None]:
    """Tells a text when Ctrl-C is pressed, and ends the process at the second time: a plugin may
    catch the first."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    told = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if told:
            os._exit(128 + number)
        told = True
        _tell(text)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _tell(text: str) -> None:
    """Prints a line to stderr, if there is one, without control characters."""
    if sys.stderr is not None:
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        with contextlib.suppress(OSError, ValueError):
            print(shown, file=sys.stderr, flush=True)
