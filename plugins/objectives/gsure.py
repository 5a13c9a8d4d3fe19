"""GSURE: Stein's estimate of the denoising error in the range of an operator."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt, Interval
from torch import Tensor

from invem import Denoiser, Example, Objective, RecipeError, Rng, examples
from invem.objective import edm_weight, noise_levels, score_matching


@examples({"seen": 0.5})
@dataclass(frozen=True, kw_only=True)
class GSURE(Objective):
    """GSURE-Diffusion (arXiv 2305.13128), for linear A with an SVD and Gaussian noise of one level.

    Kawar et al. 2023. In the singular basis of A = U S V^T the loss is

        E w sum_i P_i [(f_i - ybar_i)^2 + 2 k_i^2 df_i/du_i - k_i^2] / (seen d).

    ybar = U^T y / s is V^T x with noise of standard deviation k = sigma_y/s. At a level sigma, the
    coordinates with k_i <= sigma are seen: P_i = 1 and u_i = ybar_i + sqrt(sigma^2 - k_i^2) e_i.
    The others are hidden and u_i = sigma e_i. The network is given x_t = V u, and f = V^T D(x_t,
    sigma). u_i holds the noise of ybar_i with slope one. By Stein's lemma, the bracket is then
    unbiased for (f_i - (V^T x)_i)^2: its mean is the error in the seen coordinates, though it may
    be negative. In the published coordinate sqrt(abar) x_t, the coefficient of the divergence is 2
    k^2 sqrt(abar). The released code has 2 (1 - abar) 1e-4, which has another minimiser.

    The network is not given the set of hidden coordinates. If all are seen, its minimiser is E[x |
    x_t]. Otherwise it is the mean of coordinate i over the observations that see i, given an x_t
    whose hidden coordinates are noise around zero.

    The distribution and the weight w of sigma are those of EDM (arXiv 2206.00364, table 1),
    truncated below at the least k of the observation. The divergence uses one Hutchinson probe.

    Attributes:
        seen: The share of coordinates that are seen, E[P], by which the loss is divided: `keep` of
            a random mask. The loss of a measurement then counts as much as that of a clean image.
        p_mean: The mean of log sigma before truncation, sigma in units of the data.
        p_std: The standard deviation of log sigma before truncation.
    """

    seen: Annotated[float, Interval(gt=0, le=1)] = 1.0
    p_mean: float = -1.2
    p_std: Annotated[float, Gt(0)] = 1.2

    needs: ClassVar[frozenset[str]] = frozenset({"measurement", "svd", "var", "one level"})
    compiles: ClassVar[bool] = False  # the loss differentiates twice

    def loss(self, model: Denoiser, batch: Example, rng: Rng) -> Tensor:
        m = batch.measurement
        if m is None:
            if batch.x is None:
                raise RecipeError("gsure was given neither measurements nor clean images")
            sigma = noise_levels(rng, batch.x, self.p_mean, self.p_std)
            return score_matching(model, batch.x, sigma, edm_weight(model, sigma), rng)
        svd = m.A.svd()
        level, data = m.spectral_noise(svd), m.spectral_data(svd)
        least = level.amin(1)
        sigma = noise_levels(
            rng, level, self.p_mean, self.p_std, torch.where(least.isfinite(), least, 0)
        )
        seen = level <= sigma
        noise = torch.where(seen, level, 0).square()
        shape = (-1, *[1] * len(m.shape))
        with torch.enable_grad():
            u = (
                torch.where(seen, data, 0)
                + (sigma**2 - noise).clamp(min=0).sqrt() * rng.normal_like(data)
            ).requires_grad_()
            f = svd.vt(model(svd.v(u), sigma.reshape(shape)))
            probe = torch.where(rng.normal_like(u) < 0, -1.0, 1.0).to(u) * seen
            (product,) = torch.autograd.grad(f, u, noise * probe, create_graph=True)
        error = torch.where(seen, (f - data).square() - noise, 0) + 2 * probe * product
        return torch.mean(edm_weight(model, sigma) / self.seen * error, dim=1)
