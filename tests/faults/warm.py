"""Imported by the server that processes are forked from: one run, so that they import nothing."""

import contextlib
import io
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from invem import cli

torch.set_num_threads(1)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _warm_up() -> None:
    from faults.base import RECIPE

    with tempfile.TemporaryDirectory() as folder, _silence():
        path = Path(folder, "warm.yaml")
        path.write_text(RECIPE, "utf-8")
        before, numbers = sys.argv, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = [(number, signal.getsignal(number)) for number in numbers]
        for words in (["run", str(path), "--out", f"{folder}/run"], ["resume", f"{folder}/run"]):
            sys.argv = ["invem", *words, "--json"]
            with contextlib.suppress(SystemExit):
                cli.main()
        sys.argv = before
        for number, handler in handlers:
            signal.signal(number, handler)


_warm_up()
