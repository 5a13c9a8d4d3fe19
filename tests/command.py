"""The command line in the process of the tests, which spares the import of torch."""

import signal
import sys

import pytest

from invem import cli


def invem(monkeypatch, capsys, *words):
    """Runs the command line; returns the exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["invem", *map(str, words)])
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [(number, signal.getsignal(number)) for number in numbers]
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    for number, handler in handlers:
        signal.signal(number, handler)
    return stopped.value.code or 0, *capsys.readouterr()
