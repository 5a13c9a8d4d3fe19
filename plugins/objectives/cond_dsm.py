"""Conditional denoising score matching: the network learns the posterior itself."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt, Interval
from torch import Tensor

from invem import Denoiser, Example, Gaussian, Measurement, Objective, Prior, RecipeError, Rng
from invem.measurement import conditioning, remeasure
from invem.objective import MakeNetwork, Observing, edm_weight, matching, noise_levels
from invem.prior import LinearConditioning


@dataclass(frozen=True, kw_only=True)
class CondDSM(Objective):
    """E w |D(x + sigma z, sigma, y') - x|^2 / d with y' ~ p(y | x), the M-step of DiffEM
    (Hosseintabar et al. 2025, arXiv 2510.12691).

    Each draw x is measured anew. The minimiser is E[x | x_t, c'], c' what `conditioning` makes of
    y', under the prior that the draws stand for, and the next E-step is the reverse diffusion with
    it (sampler `conditional`). The network is given A^T y' and A^T 1 (`conditioning`); the
    published one is given y' alone. The law and the weight of sigma are those of EDM (arXiv
    2206.00364, table 1).

    Operator and noise are those of a training observation that is drawn at random, not of the one
    that x was drawn from: what that one hides is, in x, what the prior of the round before said of
    it. A network that is told the mask would learn to say so again, and where operators differ
    between observations EM would not move at all. Granted clean images are measured in the same
    way.

    With probability `drop` the network is given zeros, as if nothing had been measured, and learns
    E[x | x_t] (classifier-free, Ho & Salimans 2022, arXiv 2207.12598): one network is the prior
    too, where DiffEM fits a second one.

    Attributes:
        drop: The share of draws whose measurement is withheld. With 0 the network is no prior: its
            samples, and other samplers than `conditional` with guidance 1, ask what it never
            learned.
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
            cond = kept * conditioning(remeasure(m.to(x.device), x, rng)).to(x)
        return matching(model, x, sigma, edm_weight(model, sigma), rng, cond)

    def build(
        self, make_network: MakeNetwork, prior: Prior | None, m: Measurement | None
    ) -> Denoiser:
        return Observing(make_network(), m)

    def prior(self, model: Denoiser, moments: Gaussian | None) -> Prior:
        return Prior(model, moments, conditioning=LinearConditioning())
