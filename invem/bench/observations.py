"""The observations of one seed, and what is known of them."""

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from invem.batched import Rng
from invem.bench.count import Counter, wait_for_device
from invem.bench.posterior import Posterior
from invem.bench.problems import Problem
from invem.measurement import Measurement
from invem.prior import Prior
from invem.sampler import PosteriorSampler

__all__ = ["Observations"]

_TUNED_ON = 16  # observations on which a sampler sets its automatic options, as in a run


@dataclass(frozen=True, eq=False)
class Observations:
    """N observations of one seed and split, on which every sampler makes K draws each.

    Attributes:
        seed: The seed of the signals, the measurements and the draws.
        split: "test" or "validation".
        draws: K.
        truth: The signals, shape (N, *shape).
        m: Their measurements.
        posterior: The exact posterior, or None.
        reference: K exact draws per observation, shape (N, K, d), or None.
    """

    seed: int
    split: str
    draws: int
    truth: Tensor
    m: Measurement
    posterior: Posterior | None
    reference: Tensor | None

    @classmethod
    def of(cls, problem: Problem, seed: int, split: str, n: int, k: int) -> "Observations":
        """Measures n signals of a problem. k: draws per observation."""
        truth, m = problem.measure(seed, split, n)
        made = cls(seed, split, k, truth, m, problem.posterior(m), None)
        return made if made.posterior is None else replace(made, reference=made.exact("reference"))

    def exact(self, purpose: str) -> Tensor:
        """Returns exact draws of the posterior, shape (N, K, d), float64.

        Args:
            purpose: Two purposes have independent draws.
        """
        assert self.posterior is not None
        return self.posterior.draw(self.draws, self._rng(purpose, len(self.m) * self.draws))

    def draw(
        self, sampler: PosteriorSampler, prior: Prior, counter: Counter
    ) -> tuple[Tensor, float]:
        """Returns draws of a sampler on the CPU, (N, K, *shape), and the seconds that they took."""
        n, k = len(self.m), self.draws
        repeated = torch.arange(n).repeat_interleave(k)
        m = replace(self.m, A=counter.counting(self.m.A))[repeated]
        rng = self._rng("draws", n * k)
        with counter.watch(prior.denoiser):
            wait_for_device(m.y.device)
            start = time.perf_counter()
            x = sampler(prior, m, rng)
            wait_for_device(m.y.device)
            seconds = time.perf_counter() - start
        return x.detach().cpu().reshape(n, k, *m.shape), seconds

    def tuned(self, sampler: PosteriorSampler, prior: Prior) -> PosteriorSampler:
        """Lets a sampler set its automatic options, as before an E-step."""
        few = min(_TUNED_ON, len(self.m))
        return sampler.tune(prior, self.m[torch.arange(few)], self._rng("tune", few))

    def _rng(self, purpose: str, n: int) -> Rng:
        return Rng.keyed(self.seed, "bench", self.split, purpose, items=range(n))
