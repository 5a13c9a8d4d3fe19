"""The command line."""

from invem.cli.app import app, main

__all__ = ["app", "main"]
