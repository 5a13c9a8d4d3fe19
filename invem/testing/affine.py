"""The exact bias of a sampler on a small Gaussian problem.

Under a Gaussian prior most samplers are affine in y and in their random numbers. The mean and the
covariance of their draws then follow exactly from one call with unit vectors in place of y and of
the random numbers: no Monte Carlo error hides a small bias.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from invem.batched import Rng
from invem.errors import Unsupported
from invem.gaussian import Gaussian
from invem.linear import Mask
from invem.measurement import Measurement
from invem.noise import NoiseModel
from invem.prior import Prior
from invem.sampler import PosteriorSampler

__all__ = ["AffineProblem", "Bias", "UnitRng"]


class Bias(NamedTuple):
    """How far the draws of a sampler are from the posterior.

    Attributes:
        mean: The root mean square error of the mean over y, in posterior standard deviations.
        smallest: The smallest eigenvalue of P^-1 Cov, with P the posterior covariance and Cov that
            of the draws.
        largest: The largest eigenvalue.
        average: The mean of the eigenvalues.
    """

    mean: float
    smallest: float
    largest: float
    average: float


class UnitRng(Rng):
    """Random numbers that are zero but for one in each row.

    Args:
        rows: Which number is 1, shape (B,): the i-th that a row asks for; -1 is none.

    Attributes:
        used: How many numbers each row was asked for.
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__(range(len(rows)))
        self.rows, self.used = rows, 0

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the next numbers of each row, shape (B, *shape), float64 whatever the dtype."""
        k = math.prod(shape)
        out = (self.rows[:, None] == torch.arange(self.used, self.used + k)).to(torch.float64)
        self.used += k
        return out.reshape(len(self.rows), *shape)

    def normal_like(self, x: Tensor) -> Tensor:
        return self.normal(*x.shape[1:])

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        raise Unsupported("the sampler draws uniform numbers, which it is not affine in")


class AffineProblem:
    """x ~ N(0, C) in d dimensions, of which m entries are measured with Gaussian noise.

    Args:
        covariance: C, shape (d, d), float64.
        seen: The m entries that are measured.
        sigma: The standard deviation of the noise.
        noise: (n, sigma) -> the Gaussian noise of n measurements of d entries.

    Attributes:
        prior: The prior of x.
        posterior: P, the covariance of p(x | y), shape (d, d).
        best: The gain of the posterior mean, shape (d, m).
    """

    def __init__(
        self,
        covariance: Tensor,
        seen: Sequence[int],
        sigma: float,
        noise: Callable[[int, float], NoiseModel],
    ) -> None:
        self.covariance, self.seen, self.sigma, self.noise = covariance, list(seen), sigma, noise
        self.size = len(covariance)
        zero = torch.zeros(self.size, dtype=torch.float64)
        self.prior = Prior.of(Gaussian.full(zero, covariance))
        A = torch.eye(self.size, dtype=torch.float64)[self.seen]
        self._total = A @ covariance @ A.T + sigma**2 * torch.eye(len(self.seen))
        self.best = covariance @ A.T @ torch.linalg.inv(self._total)
        self.posterior = covariance - self.best @ A @ covariance

    def measurement(self, y: Tensor) -> Measurement:
        """Returns observations as a measurement. y: (B, d); entries that are not seen are ignored
        by A, and not by a sampler that looks at them."""
        seen = torch.zeros(self.size, dtype=torch.float64)
        seen[self.seen] = 1
        mask = Mask((self.size,), seen.expand(len(y), self.size).contiguous())
        noise = self.noise(len(y), self.sigma).to(dtype=torch.float64)
        return Measurement(y.double(), mask, noise)

    def repeated(self, n: int) -> Measurement:
        """Returns one measurement of a draw of the prior, n times, with noise in the hidden entries
        too, as invem draws it."""
        x = self.prior.known_moments().sample(Rng.keyed("t", items=[0])).double()
        y = torch.zeros(1, self.size, dtype=torch.float64)
        y[:, self.seen] = x[:, self.seen]
        z = Rng.keyed("y", items=[0]).normal(self.size, dtype=torch.float64)
        return self.measurement((y + self.sigma * z).expand(n, self.size).contiguous())

    def distribution(self, sampler: PosteriorSampler) -> tuple[Tensor, Tensor]:
        """Returns what the draws of an affine sampler are: the gain of their mean, shape (d, m),
        and their covariance, shape (d, d).

        Raises:
            Unsupported: If the sampler is seen not to be affine.
        """
        m, nothing = len(self.seen), torch.tensor([-1])
        count = UnitRng(nothing)
        sampler(self.prior, self.measurement(torch.zeros(1, self.size)), count)
        y = torch.zeros(count.used + m + 1, self.size)
        y[torch.arange(m), torch.tensor(self.seen)] = 1
        rows = torch.cat([nothing.expand(m + 1), torch.arange(count.used)])
        x = sampler(self.prior, self.measurement(y), UnitRng(rows))
        if not torch.allclose(x[m], torch.zeros_like(x[m]), atol=1e-6):
            raise Unsupported(f"{type(sampler).__name__} is not linear: zeros do not give zeros")
        return x[:m].T, x[m + 1 :].T @ x[m + 1 :]

    def bias(self, sampler: PosteriorSampler) -> Bias:
        """Returns the exact bias of an affine sampler; raises as `distribution` does."""
        gain, covariance = self.distribution(sampler)
        gap = (gain - self.best) @ self._total @ (gain - self.best).T
        error = float((gap.diagonal() / self.posterior.diagonal()).mean().sqrt())
        values = torch.linalg.eigvalsh(self._whitened(covariance))
        return Bias(error, float(values[0]), float(values[-1]), float(values.mean()))

    def drawn_bias(self, m: Measurement, x: Tensor) -> Bias:
        """Returns the bias of any sampler, from many draws of one y.

        Args:
            m: What `repeated` returned.
            x: The draws, shape (B, d).
        """
        x = x.double()
        gap = x.mean(0) - self.best @ m.y[0, self.seen]
        error = float((gap.square() / self.posterior.diagonal()).mean().sqrt())
        root = torch.linalg.cholesky(self.posterior)
        white = torch.linalg.solve_triangular(root, (x - x.mean(0)).T, upper=False)
        values = torch.linalg.eigvalsh(torch.cov(white))
        return Bias(error, float(values[0]), float(values[-1]), float(values.mean()))

    def _whitened(self, covariance: Tensor) -> Tensor:
        """Returns L^-1 C L^-T with L L^T = P."""
        root = torch.linalg.cholesky(self.posterior)
        half = torch.linalg.solve_triangular(root, covariance, upper=False)
        white: Tensor = torch.linalg.solve_triangular(root, half.T, upper=False)
        return white
