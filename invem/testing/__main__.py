"""Prints the contracts of every kind as Markdown, for docs/contracts.md."""

from invem.testing.registry import explain

if __name__ == "__main__":
    print(explain(), end="")
