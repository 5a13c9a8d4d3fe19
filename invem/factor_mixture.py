"""Mixtures of factor analysers: priors in closed form for larger signals."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from invem.batched import Batched, Rng, shared, to_float64
from invem.gaussian import Gaussian
from invem.linalg import DPLR
from invem.measurement import Measurement
from invem.mixture import draw_component, floored_variance

__all__ = ["Conditioned", "FactorMixture"]


@dataclass(frozen=True, eq=False)
class FactorMixture(Batched):
    """sum_k w_k N(m_k, F_k F_k^T + diag(D)): a mixture of factor analysers with one D.

    Z. Ghahramani & G. Hinton, CRG-TR-96-1, 1996. It is for larger signals than `Mixture`. As D is
    common, the determinant of A D A^T + S is too, and cancels in the probabilities of the
    components. If A acts on each entry separately (a mask, the identity), no system is larger than
    q. Any other linear A is made a matrix, and a system of the m entries of y is solved: one per
    batch if A and the noise are the same for all of it, otherwise one per observation.

    Attributes:
        weights: w, shape (K,), positive, summing to one.
        means: m, shape (K, *shape).
        factors: F over flattened signals, shape (K, d, q).
        diag: D, shape (d,), positive.
    """

    weights: Tensor = shared()
    means: Tensor = shared()
    factors: Tensor = shared()
    diag: Tensor = shared()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one signal."""
        return tuple(self.means.shape[1:])

    def moments(self) -> Gaussian:
        """Returns the Gaussian with the mean and the covariance of the mixture."""
        w, m = to_float64(self.weights), to_float64(self.means.flatten(1))
        mean = w @ m
        factor = (
            torch.cat([to_float64(self.factors), (m - mean)[..., None]], -1)
            * w.sqrt()[:, None, None]
        )
        factor = factor.transpose(0, 1).flatten(1)
        centre = mean.reshape(self.shape).to(self.means)
        if factor.shape[1] >= len(factor):
            return Gaussian.full(centre, factor @ factor.T + torch.diag(to_float64(self.diag)))
        return Gaussian(centre, DPLR(self.diag, factor.to(self.diag)))

    def sample(self, rng: Rng) -> Tensor:
        """Draws one signal per stream, shape (B, *shape)."""
        k = draw_component(to_float64(self.weights).log().expand(len(rng), -1), rng)
        z, e = self._latent(rng)
        x = (
            self.means.flatten(1)[k]
            + torch.einsum("bdq,bq->bd", self.factors[k], z.to(self.factors))
            + self.diag.sqrt() * e
        )
        return x.reshape(-1, *self.shape)

    def _latent(self, rng: Rng) -> tuple[Tensor, Tensor]:
        """Draws standard normals: (B, q) for the factors and (B, d) for the entries."""
        z = rng.normal(self.factors.shape[2] + len(self.diag)).to(self.diag)
        return z[:, : self.factors.shape[2]], z[:, self.factors.shape[2] :]

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Returns E[x | x_t]. sigma: one level, or (B, 1, ...)."""
        var = to_float64(sigma).flatten() ** 2
        common = var[:1] if bool((var == var[:1]).all()) else var
        return _Entrywise(self, torch.ones(1, 1).to(to_float64(x_t)), common[:, None]).mean(x_t)

    def conditioned(self, m: Measurement) -> "Conditioned":
        """Precomputes the posterior of each component for given A and noise, for any y.

        If all measurements share A and the noise, it serves any number of y. m: linear A and
        Gaussian noise.
        """
        var = floored_variance(m, self.diag.max() + self.factors.square().sum((1, 2)).max())
        var = var[:1] if bool((var == var[:1]).all()) else var
        first = m[:1] if m.shares_operator else m
        if ("mask" in m.A.provides or m.changes_nothing) and m.y.shape[1:] == self.shape:
            ones = torch.ones(len(first), *self.shape, dtype=m.y.dtype, device=m.y.device)
            return _Entrywise(self, to_float64(first.A(ones).flatten(1)), var)
        return _Dense(self, first.matrices(), var)

    def posterior_mean(self, m: Measurement) -> Tensor:
        """Returns E[x | y], shape (B, *shape), for linear A and Gaussian noise."""
        return self.conditioned(m).mean(m.y)

    def shares(self, m: Measurement) -> Tensor:
        """Returns the probabilities of the components given y, shape (B, K), float64.

        m: linear A and Gaussian noise.
        """
        return self.conditioned(m).weigh(to_float64(m.y.flatten(1)))[0].softmax(-1)

    def shares_of(self, x: Tensor) -> Tensor:
        """Returns the probabilities of the components given the signal, shape (B, K), float64.

        x: (B, *shape).
        """
        one = torch.ones(1, 1).to(to_float64(x))
        return _Entrywise(self, one, 0 * one).weigh(to_float64(x.flatten(1)))[0].softmax(-1)

    def draw(self, m: Measurement, rng: Rng) -> tuple[Tensor, Tensor]:
        """Draws signal and component from p(x, k | y) exactly: (B, *shape) and (B,).

        First k given y, then z given k and y, then x = m_k + F_k z + e with e by Matheron's rule.
        m: linear A and Gaussian noise.
        """
        system, y = self.conditioned(m), to_float64(m.y.flatten(1))
        log_weights, h = system.weigh(y)
        k = draw_component(log_weights, rng)
        z, e = (to_float64(part) for part in self._latent(rng))
        noise = to_float64(rng.normal_like(m.y)).flatten(1) * system.var.sqrt()
        centre = torch.empty_like(e)
        for j in torch.unique(k).tolist():
            rows, root = k == j, system.roots[j]
            if len(root) == 1:
                z_given = (
                    h[j, rows] + torch.linalg.solve_triangular(root[0].T, z[rows].T, upper=True).T
                )
            else:
                z_given = (
                    h[j, rows]
                    + torch.linalg.solve_triangular(root[rows].mT, z[rows, :, None], upper=True)[
                        ..., 0
                    ]
                )
            centre[rows] = system.means[j] + z_given @ system.factors[j].T
        e = e * to_float64(self.diag).sqrt()
        x = centre + e + to_float64(self.diag) * system.back(y - system.ahead(centre + e) - noise)
        return x.to(self.means).reshape(-1, *self.shape), k

    def posterior(self, m: Measurement, rng: Rng) -> Tensor:
        """Draws p(x | y) exactly, for linear A and Gaussian noise, shape (B, *shape)."""
        return self.draw(m, rng)[0]


class Conditioned(ABC):
    """The components of a `FactorMixture` given y = A x + n, with N = A D A^T + S.

    Attributes:
        var: The noise variances. An axis has length 1 if they are common to it.
    """

    def __init__(self, prior: FactorMixture, var: Tensor) -> None:
        self.var, self.shape = var, prior.shape
        self.weights, self.means, self.factors, self.diag = (
            to_float64(part)
            for part in (prior.weights, prior.means.flatten(1), prior.factors, prior.diag)
        )

    @cached_property
    def roots(self) -> list[Tensor]:
        """L with L L^T = I + F^T A^T N^-1 A F for each component, shape (B or 1, q, q)."""
        eye = torch.eye(self.factors.shape[2], dtype=self.factors.dtype, device=self.factors.device)
        return [torch.linalg.cholesky(self.gram(factor) + eye) for factor in self.factors]

    @abstractmethod
    def ahead(self, x: Tensor) -> Tensor:
        """Returns A x. x: (B or 1, d)."""

    @abstractmethod
    def back(self, r: Tensor) -> Tensor:
        """Returns A^T N^-1 r, shape (B, d). r: (B, m)."""

    @abstractmethod
    def weighed(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Returns A^T N^-1 r, shape (B, d), and r^T N^-1 r, shape (B,)."""

    @abstractmethod
    def gram(self, factor: Tensor) -> Tensor:
        """Returns F^T A^T N^-1 A F, shape (B or 1, q, q)."""

    def weigh(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log w_k + log p(y | k) up to a common term, (B, K), and E[z | k, y], (K, B, q).

        y: (B, m), float64.
        """
        logs, found = [], []
        for mean, factor, root in zip(self.means, self.factors, self.roots, strict=True):
            pulled, size = self.weighed(y - self.ahead(mean[None]))
            b = pulled @ factor
            h = (
                torch.cholesky_solve(b.T, root[0]).T
                if len(root) == 1
                else torch.cholesky_solve(b[..., None], root)[..., 0]
            )
            logs.append(
                -0.5 * (size - (b * h).sum(1)) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            )
            found.append(h)
        return self.weights.log() + torch.stack(logs, -1), torch.stack(found)

    def mean(self, y: Tensor) -> Tensor:
        """Returns E[x | y], shape (B, *shape), of the dtype of y. y: (B, *measurement shape)."""
        flat = to_float64(y.flatten(1))
        log_weights, h = self.weigh(flat)
        share, centre = log_weights.softmax(-1), torch.zeros(len(flat), len(self.diag)).to(flat)
        for k, (mean, factor) in enumerate(zip(self.means, self.factors, strict=True)):
            centre = centre + share[:, k, None] * (mean + h[k] @ factor.T)
        x = centre + self.diag * self.back(flat - self.ahead(centre))
        return x.to(y.dtype).reshape(-1, *self.shape)


class _Entrywise(Conditioned):
    """A diagonal operator: each entry of y is that of x times a number, (B or 1, d or 1)."""

    def __init__(self, prior: FactorMixture, scale: Tensor, var: Tensor) -> None:
        super().__init__(prior, var)
        self.scale = scale
        self.total = scale.square() * self.diag + var

    def ahead(self, x: Tensor) -> Tensor:
        return self.scale * x

    def back(self, r: Tensor) -> Tensor:
        return self.scale * r / self.total

    def weighed(self, r: Tensor) -> tuple[Tensor, Tensor]:
        white = r / self.total
        return self.scale * white, (r * white).sum(1)

    def gram(self, factor: Tensor) -> Tensor:
        share = self.scale.square() / self.total
        if len(share) == 1:
            return ((factor * share.T).T @ factor)[None]
        pairs = (factor[:, :, None] * factor[:, None]).flatten(1)
        # This is the largest product. Single precision is used while its error changes the
        # probabilities of components by less than 1e-3.
        if (
            float(share.amax()) * float(factor.square().sum(0).amax() if factor.numel() else 0)
            < 1e5
        ):
            found = (share.float() @ pairs.float()).to(factor)
        else:
            found = share @ pairs
        return found.reshape(len(share), *[factor.shape[1]] * 2)


class _Dense(Conditioned):
    """Any matrix A, (B or 1, m, d)."""

    def __init__(self, prior: FactorMixture, A: Tensor, var: Tensor) -> None:
        super().__init__(prior, var)
        self.A = A
        self.root = torch.linalg.cholesky((A * self.diag) @ A.mT + torch.diag_embed(var))

    def _white(self, r: Tensor) -> Tensor:
        """Returns L^-1 r, shape (B, m)."""
        if len(self.root) == 1:
            r = torch.linalg.solve_triangular(self.root[0], r.T, upper=False).T
        else:
            r = torch.linalg.solve_triangular(self.root, r[..., None], upper=False)[..., 0]
        return r

    def ahead(self, x: Tensor) -> Tensor:
        return (
            x @ self.A[0].T
            if len(self.A) == 1
            else torch.einsum("bmd,bd->bm", self.A, x.expand(len(self.A), -1))
        )

    def back(self, r: Tensor) -> Tensor:
        return self.weighed(r)[0]

    def weighed(self, r: Tensor) -> tuple[Tensor, Tensor]:
        white = self._white(r)
        if len(self.root) == 1:
            u = torch.linalg.solve_triangular(self.root[0].T, white.T, upper=True).T
        else:
            u = torch.linalg.solve_triangular(self.root.mT, white[..., None], upper=True)[..., 0]
        pulled = u @ self.A[0] if len(self.A) == 1 else torch.einsum("bmd,bm->bd", self.A, u)
        return pulled, white.square().sum(1)

    def gram(self, factor: Tensor) -> Tensor:
        white: Tensor = torch.linalg.solve_triangular(self.root, self.A @ factor, upper=False)
        return white.mT @ white

    @cached_property
    def _once(self) -> tuple[Tensor, list[Tensor]]:
        """Returns L^-1 A m_k, (K, m), and R_k^-1 F_k^T A^T L^-T, (q, m) each.

        A and the noise are common to the batch, N = L L^T, and R_k are the roots.
        """
        hidden = [self._white((self.A[0] @ factor).T) for factor in self.factors]
        rows = [
            torch.linalg.solve_triangular(root[0], white, upper=False)
            for root, white in zip(self.roots, hidden, strict=True)
        ]
        return self._white(self.means @ self.A[0].T), rows

    def weigh(self, y: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.root) > 1 or len(self.A) > 1:
            return super().weigh(y)
        means, rows = self._once
        white, logs, found = self._white(y), [], []
        for mean, row, root in zip(means, rows, self.roots, strict=True):
            r = white - mean
            half = r @ row.T
            logs.append(
                -0.5 * (r.square().sum(1) - half.square().sum(1)) - root[0].diagonal().log().sum()
            )
            found.append(torch.linalg.solve_triangular(root[0].T, half.T, upper=True).T)
        return self.weights.log() + torch.stack(logs, -1), torch.stack(found)
