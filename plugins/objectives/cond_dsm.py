"""Conditional denoising score matching: the network learns the posterior directly."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt, Interval
from torch import Tensor

from invem import Denoiser, Example, Gaussian, Measurement, Objective, Prior, RecipeError, Rng
from invem.measurement import linear_condition, remeasure
from invem.objective import MakeNetwork, Observing, edm_weight, noise_levels, score_matching
from invem.prior import LinearConditioning


@dataclass(frozen=True, kw_only=True)
class CondDSM(Objective):
    """Conditional denoising score matching, the M-step of DiffEM (arXiv 2510.12691).

    Hosseintabar et al. 2025. The loss is E w |D(x + sigma z, sigma, y') - x|^2 / d with y' ~ p(y |
    x): each draw x is measured anew. The network is given c' = [A^T y', A^T 1] (`conditioning`);
    the published one is given y' alone. The minimiser is E[x | x_t, c'] under the distribution of
    the draws. The next E-step is the reverse diffusion with it (sampler `conditional`). The
    distribution and the weight of sigma are those of EDM (arXiv 2206.00364, table 1).

    Operator and noise are those of a random training observation, not of the one that x was drawn
    from. What the latter hides was filled in by the prior of the round before. A network given the
    same mask would learn to reproduce that prior, and EM would not move at all if operators differ
    between observations. Clean images are measured in the same way.

    With probability `drop` the network is given zeros, as if nothing had been measured, and learns
    E[x | x_t] (classifier-free, Ho & Salimans 2022, arXiv 2207.12598). So one network is also the
    prior. DiffEM fits a second one.

    Attributes:
        drop: The share of draws whose measurement is withheld. With 0 the network is not a prior:
            do not sample from it, and use no sampler but `conditional` with guidance 1.
        p_mean: The mean of log sigma, sigma in units of the data.
        p_std: The standard deviation of log sigma.
    """

    drop: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    p_mean: float = -1.2
    p_std: Annotated[float, Gt(0)] = 1.2

    needs: ClassVar[frozenset[str]] = frozenset({"x", "measurement", "adjoint"})
    provides: ClassVar[frozenset[str]] = frozenset({"conditional"})
    condition: ClassVar[int] = 2

    def loss(self, model: Denoiser, batch: Example, rng: Rng) -> Tensor:
        x, m = batch.x, batch.measurement
        if x is None:
            raise RecipeError("cond-dsm learns from signals, and was given measurements only")
        sigma = noise_levels(rng, x, self.p_mean, self.p_std)
        pick, kept = rng.uniform(2).unbind(1)
        if isinstance(model, Observing):
            m = model.chosen(pick, m)
        cond = None
        if m is not None:
            kept = (kept >= self.drop).to(x).reshape(-1, *[1] * x.ndim)
            cond = kept * linear_condition(remeasure(m.to(x.device), x, rng)).to(x)
        return score_matching(model, x, sigma, edm_weight(model, sigma), rng, cond)

    def build(
        self, make_network: MakeNetwork, prior: Prior | None, m: Measurement | None
    ) -> Denoiser:
        return Observing(make_network(), m)

    def prior(self, model: Denoiser, moments: Gaussian | None) -> Prior:
        return Prior(model, moments, conditioning=LinearConditioning())
