"""Random numbers for tests that average over very many samples."""

import torch

from invem import Rng


class Pooled(Rng):
    """Random numbers of one stream for all samples, where only their law matters: streams of their
    own take long to make."""

    def __init__(self, seeds):
        super().__init__(seeds)
        self.pool = Rng.generator("pooled", *self.seeds[:1])

    def _fill(self, shape, dtype, normal):
        out = torch.empty(len(self), *shape, dtype=dtype)
        return out.normal_(generator=self.pool) if normal else out.uniform_(generator=self.pool)
