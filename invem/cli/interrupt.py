"""Ctrl-C while the command line is imported, which takes some tenths of a second."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

__all__ = ["INTERRUPTED", "ending_quietly"]

INTERRUPTED = 128 + signal.SIGINT
"""The exit code after an interrupt."""


@contextlib.contextmanager
def ending_quietly() -> Iterator[None]:
    """Has an interrupt end the process with its exit code, and without a traceback.

    Where another handler is set, as in a program that imports this one, that one is kept.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: sys.exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
