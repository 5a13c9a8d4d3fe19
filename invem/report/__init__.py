"""The page of a run: what it learned, what it restored and what that cost, from its files alone."""

from invem.report.page import pictures, write

__all__ = ["pictures", "write"]
