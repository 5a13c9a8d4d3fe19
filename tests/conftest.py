import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # for the subprocesses too: two processes of two threads fight for two cores

import torch

torch.set_num_threads(1)
