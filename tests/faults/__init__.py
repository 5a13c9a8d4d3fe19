"""Faults that are injected on purpose: what invem does when it is killed, damaged, lied to or full.

`python tests/faults/run.py` carries every case out and prints a table; with `--write` it writes
docs/results/reliability.json and docs/reliability.md. `base` has the words, `child` what runs in
the processes that are harmed, and each other module the cases of one kind.
"""
