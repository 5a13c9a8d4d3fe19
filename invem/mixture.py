"""Mixtures of Gaussians: priors with several modes and an exact posterior."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from invem.batched import Batched, Rng, shared, to_float64
from invem.gaussian import Gaussian
from invem.measurement import Measurement

__all__ = ["Mixture", "PosteriorMoments", "draw_component", "floored_variance"]


class PosteriorMoments(NamedTuple):
    """The exact posterior of a mixture under a linear measurement with Gaussian noise.

    Attributes:
        weights: The probabilities of the components given y, (B, K), float64.
        mean: E[x | y], flattened, (B, d), float64.
        cov: Cov[x | y], (B, d, d), float64.
    """

    weights: Tensor
    mean: Tensor
    cov: Tensor


@dataclass(frozen=True, eq=False)
class Mixture(Batched):
    """sum_k w_k N(m_k, C_k) on signals of one shape.

    Attributes:
        weights: w, shape (K,), positive, summing to one.
        means: m, shape (K, *shape).
        covs: C over flattened signals, shape (K, d, d).
    """

    weights: Tensor = shared()
    means: Tensor = shared()
    covs: Tensor = shared()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one signal."""
        return tuple(self.means.shape[1:])

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(to_float64(self.covs))
        return values.clamp(min=0), vectors

    def moments(self) -> Gaussian:
        """Returns the Gaussian with the mean and the covariance of the mixture."""
        m, w = to_float64(self.means.flatten(1)), to_float64(self.weights)
        mean = w @ m
        gap = m - mean
        cov = torch.einsum("k,kij->ij", w, to_float64(self.covs)) + torch.einsum(
            "k,ki,kj->ij", w, gap, gap
        )
        return Gaussian.full(mean.reshape(self.shape).to(self.means), cov)

    def sample(self, rng: Rng) -> Tensor:
        """Draws one signal per stream, shape (B, *shape)."""
        return self._draw(
            draw_component(to_float64(self.weights).log().expand(len(rng), -1), rng), rng
        )

    def _draw(self, k: Tensor, rng: Rng) -> Tensor:
        values, vectors = self._eigen
        z = rng.normal(values.shape[1]).to(values) * values[k].sqrt()
        x = torch.einsum("bij,bj->bi", vectors[k], z) + to_float64(self.means.flatten(1))[k]
        return x.to(self.means).reshape(-1, *self.shape)

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Returns E[x | x_t]. sigma: one level, or (B, 1, ...)."""
        values, vectors = self._eigen
        var = to_float64(sigma).reshape(-1, 1, 1) ** 2
        mean = to_float64(self.means.flatten(1))
        z = torch.einsum("bki,kij->bkj", to_float64(x_t.flatten(1))[:, None] - mean, vectors)
        total = values + var
        log_r = to_float64(self.weights).log() - 0.5 * (z.square() / total + total.log()).sum(-1)
        means = mean + torch.einsum("kij,bkj->bki", vectors, values / total * z)
        return torch.einsum("bk,bki->bi", log_r.softmax(-1), means).to(x_t.dtype).reshape(x_t.shape)

    def spread(self, m: Measurement) -> Tensor:
        """Returns the noise variances (B, m), float64, floored to keep A C A^T + S invertible."""
        largest = self._eigen[0].max()
        return floored_variance(m, largest)

    def _evidence(self, m: Measurement) -> tuple[Tensor, Tensor, Tensor]:
        """Returns A (B, m, d), the noise variances (B, m) and log w_k + log p(y | k), (B, K)."""
        A = m.matrices()
        var = self.spread(m)
        y = to_float64(m.y.flatten(1))
        logs = []
        for mean, cov in zip(to_float64(self.means.flatten(1)), to_float64(self.covs), strict=True):
            chol = torch.linalg.cholesky(A @ cov @ A.mT + torch.diag_embed(var))
            white = torch.linalg.solve_triangular(chol, (y - A @ mean)[..., None], upper=False)[
                ..., 0
            ]
            logs.append(
                -0.5 * white.square().sum(-1) - chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            )
        return A, var, to_float64(self.weights).log() + torch.stack(logs, -1)

    def posterior(self, m: Measurement, rng: Rng) -> Tensor:
        """Draws p(x | y) exactly, for linear A and Gaussian noise, shape (B, *shape).

        A component given y, then Matheron's rule for its Gaussian.
        """
        A, var, log_weights = self._evidence(m)
        k = draw_component(log_weights, rng)
        x, cov = self._draw(k, rng), to_float64(self.covs)[k]
        r = to_float64(m.y - m.A(x)).flatten(1) - var.sqrt() * to_float64(
            rng.normal_like(m.y)
        ).flatten(1)
        u = torch.linalg.solve(A @ cov @ A.mT + torch.diag_embed(var), r[..., None])
        step: Tensor = (cov @ A.mT @ u)[..., 0]
        return x + step.to(x).reshape(x.shape)

    def posterior_mean(self, m: Measurement) -> Tensor:
        """Returns E[x | y], shape (B, *shape), for linear A and Gaussian noise."""
        A, var, log_weights = self._evidence(m)
        weights, y = log_weights.softmax(-1), to_float64(m.y.flatten(1))
        x = torch.zeros(len(y), A.shape[2], dtype=A.dtype, device=A.device)
        for w, mean, cov in zip(
            weights.T, to_float64(self.means.flatten(1)), to_float64(self.covs), strict=True
        ):
            u = torch.linalg.solve(
                A @ cov @ A.mT + torch.diag_embed(var), (y - A @ mean)[..., None]
            )
            x = x + w[:, None] * (mean + (cov @ A.mT @ u)[..., 0])
        return x.to(m.y.dtype).reshape(-1, *self.shape)

    def posterior_moments(self, m: Measurement) -> PosteriorMoments:
        """Returns the weights, the mean and the covariance of p(x | y)."""
        A, var, log_weights = self._evidence(m)
        weights, y = log_weights.softmax(-1), to_float64(m.y.flatten(1))
        means, second = [], torch.zeros(1, dtype=A.dtype, device=A.device)
        for w, mean, cov in zip(
            weights.T, to_float64(self.means.flatten(1)), to_float64(self.covs), strict=True
        ):
            gain = torch.linalg.solve(A @ cov @ A.mT + torch.diag_embed(var), A @ cov).mT
            centre = mean + (gain @ (y - A @ mean)[..., None])[..., 0]
            means.append(centre)
            second = second + w[:, None, None] * (
                cov - gain @ A @ cov + centre[:, :, None] * centre[:, None]
            )
        mean = torch.einsum("bk,kbi->bi", weights, torch.stack(means))
        return PosteriorMoments(weights, mean, second - mean[:, :, None] * mean[:, None])


def draw_component(log_weights: Tensor, rng: Rng) -> Tensor:
    """Draws one component per row, shape (B,). log_weights: (B, K)."""
    total = log_weights.softmax(-1).cumsum(-1)
    u = rng.uniform(1, dtype=torch.float64).to(total) * total[:, -1:]
    k: Tensor = (total < u).sum(-1).clamp(max=total.shape[1] - 1)
    return k


def floored_variance(m: Measurement, largest: Tensor) -> Tensor:
    """Returns the noise variances (B, m), float64.

    They are at least 1e-10 of the variance of the prior, which is as good as none.
    """
    return to_float64(m.noise.var().expand_as(m.y).flatten(1)).clamp(
        min=float(1e-10 * largest + 1e-30)
    )
