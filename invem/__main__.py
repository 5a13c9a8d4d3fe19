"""`python -m invem` is the command line."""

from invem.cli import main

main()
