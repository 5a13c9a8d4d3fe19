"""One thread per test process, so that the processes of `-n auto` share the cores without a fight.

Two threads on a core that another process uses too wait for each other at every operation, and a
thread of OpenMP waits by spinning. A run of a recipe that asks for two threads then takes six times
the processor time.
"""

import os

# Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

_set_num_threads = torch.set_num_threads
_set_num_threads(1)


def _one_thread(count: int) -> None:
    """Takes the place of `torch.set_num_threads`: recipes that ask for more get one too."""
    _set_num_threads(1)


torch.set_num_threads = _one_thread
