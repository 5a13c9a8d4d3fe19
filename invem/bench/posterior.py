"""The exact posterior of a mixture of Gaussians."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invem.batched import Rng
from invem.measurement import Measurement
from invem.mixture import Mixture

__all__ = ["Posterior"]


@dataclass(frozen=True, eq=False)
class Posterior:
    """p(x | y) of N observations under a mixture of K Gaussians: a mixture again.

    A must be linear and the noise Gaussian. All tensors are float64 and on the CPU; d is the number
    of entries of one signal.

    Attributes:
        weights: The probabilities of the components conditioned on y, shape (N, K).
        means: Their means, flattened, shape (N, K, d).
        roots: The Cholesky factors of their covariances, shape (N, K, d, d).
        mean: E[x | y], shape (N, d).
        cov: Cov[x | y], shape (N, d, d).
    """

    weights: Tensor
    means: Tensor
    roots: Tensor
    mean: Tensor
    cov: Tensor

    @classmethod
    def of(cls, prior: Mixture, m: Measurement) -> "Posterior":
        """Conditions each component on y by dense linear algebra."""
        prior, m = prior.to("cpu", torch.float64), m.to("cpu", torch.float64)
        A = _dense(m)[:, None]
        y, var = m.y.flatten(1)[:, None], m.noise.var().expand_as(m.y).flatten(1)
        mean, cov = prior.means.flatten(1), prior.covs
        total = A @ cov @ A.mT + torch.diag_embed(var)[:, None]
        gap = y - (A @ mean[..., None])[..., 0]
        chol = torch.linalg.cholesky(total)
        white = torch.linalg.solve_triangular(chol, gap[..., None], upper=False)[..., 0]
        log_det = chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        weights = (prior.weights.log() - 0.5 * white.square().sum(-1) - log_det).softmax(-1)
        half = torch.linalg.solve_triangular(chol, A @ cov, upper=False)
        means = mean + (half.mT @ white[..., None])[..., 0]
        covs = cov - half.mT @ half
        overall = torch.einsum("nk,nki->ni", weights, means)
        offset = means - overall[:, None]
        within = torch.einsum("nk,nkij->nij", weights, covs)
        between = torch.einsum("nk,nki,nkj->nij", weights, offset, offset)
        return cls(weights, means, torch.linalg.cholesky(covs), overall, within + between)

    def draw(self, k: int, rng: Rng) -> Tensor:
        """Draws k flattened signals per observation, shape (N, k, d).

        Args:
            k: How many.
            rng: N k streams, those of one observation together.
        """
        n, _, d = self.means.shape
        total = self.weights.cumsum(1)
        u = rng.uniform(1, dtype=torch.float64).reshape(n, k) * total[:, -1:]
        component = torch.searchsorted(total, u).clamp(max=total.shape[1] - 1)
        z = rng.normal(d, dtype=torch.float64).reshape(n, k, d)
        noise = [
            (roots[chosen] @ e[..., None])[..., 0]
            for roots, chosen, e in zip(self.roots, component, z, strict=True)
        ]
        return self.means[torch.arange(n)[:, None], component] + torch.stack(noise)


def _dense(m: Measurement) -> Tensor:
    """Returns A as a matrix per observation, shape (N, entries of y, d)."""
    n, d = len(m), math.prod(m.shape)
    basis = torch.eye(d, dtype=torch.float64).reshape(d, *m.shape)
    columns = m[torch.arange(n).repeat_interleave(d)].A(basis.repeat(n, *[1] * len(m.shape)))
    return columns.reshape(n, d, -1).mT
