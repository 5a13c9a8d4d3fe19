"""A Gaussian on signals: exact prior, warm start of EM, and cheap covariance of samplers."""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from invem.batched import Batched, Rng, shared, to_float64
from invem.errors import DataError, Unsupported
from invem.linalg import DPLR, cg
from invem.measurement import Measurement

__all__ = ["Gaussian", "cosines"]


@dataclass(frozen=True, eq=False)
class Gaussian(Batched):
    """N(mean, diag(D) + F F^T) on signals of one shape.

    Attributes:
        mean: Shape (*shape).
        cov: The covariance over flattened signals, d = prod(shape).
        LARGEST: The most entries of a signal for which `shrunk_to_smooth_field` forms a dense
            covariance.
    """

    LARGEST: ClassVar[int] = 4096
    mean: Tensor = shared()
    cov: DPLR = shared()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one signal."""
        return tuple(self.mean.shape)

    def moments(self) -> "Gaussian":
        """Returns itself: it is the Gaussian with its mean and covariance."""
        return self

    @classmethod
    def standard(cls, shape: tuple[int, ...], std: float = 1.0) -> Self:
        """Returns N(0, std^2 I)."""
        d = math.prod(shape)
        return cls(torch.zeros(shape), DPLR(torch.full((d,), std**2), torch.zeros(d, 0)))

    @classmethod
    def full(cls, mean: Tensor, cov: Tensor) -> Self:
        """Returns N(mean, cov) for a positive definite matrix. mean: (*shape), cov: (d, d)."""
        values, vectors = torch.linalg.eigh(cov.double())
        floor = values.min().clamp(min=0) * 0.5
        factor = vectors * (values - floor).clamp(min=0).sqrt()
        return cls(mean, DPLR(floor.expand(len(cov)).to(mean), factor.to(mean)))

    @classmethod
    def fit(cls, x: Tensor, rank: int, floor: float = 1e-6) -> Self:
        """Fits mean, rank-r factor and diagonal to signals by maximum likelihood (factor analysis).

        It iterates the fixed point of Jöreskog (1967), F = D^1/2 U (L - I)^1/2 with U, L the
        leading eigenpairs of D^-1/2 S D^-1/2 and D = diag(S - F F^T). For d > 2048 they come from
        subspace iteration on the signals, and S is not formed.

        Args:
            x: Signals, shape (N, *shape), N >= 2.
            rank: The number of factors; at most min(d, N - 1) are used.
            floor: The smallest variance of a pixel, in squared units of the data.
        """
        flat = x.flatten(1)
        n, d = flat.shape
        rank = min(rank, d, n - 1)
        mean = flat.mean(0)
        centred = flat - mean
        variance = centred.square().mean(0).double().clamp(min=floor)
        sample = (centred.T @ centred).double() / n if d <= 2048 else None
        basis = torch.randn(d, min(rank + 8, d, n), generator=Rng.generator("fit", d)).to(flat)
        diag = variance if rank < d else torch.full_like(variance, floor)
        for k in range(1 if rank >= d else 100 if sample is not None else 20):
            last, root = diag, diag.sqrt()
            if sample is not None:
                values, vectors = torch.linalg.eigh(sample / (root[:, None] * root))
            else:
                values, vectors, basis = _leading(centred / root.to(flat), basis, 3 if k else 8)
            lead = (values[len(values) - rank :] - 1).clamp(min=0).sqrt()
            factor = root[:, None] * vectors[:, len(values) - rank :] * lead
            diag = (variance - factor.square().sum(1)).clamp(min=floor)
            if bool(((diag - last).abs() < 1e-3 * variance).all()):
                break
        diag = (variance - factor.square().sum(1)).clamp(min=floor)
        return cls(mean.reshape(x.shape[1:]), DPLR(diag.to(x.dtype), factor.to(x.dtype)))

    @classmethod
    def shrunk_to_smooth_field(
        cls, x: Tensor, share: float | None = None, floor: float = 1e-4
    ) -> Self:
        """Fits the mean and a dense covariance to a few signals, shrunk to that of a smooth field.

        The estimate is (1 - a) S + a T with the sample covariance S and a target T. T keeps the
        variance of each entry. Its correlations are those of a random field with the power spectrum
        of the signals, independent in the basis of the discrete cosine transform over the last two
        dimensions (over the one dimension of a vector). A spectrum is well estimated from as few as
        50 signals. Factor analysis of so few signals gets it wrong, most of all at fine scales.

        If `share` is None, a = sum var(s_ij) / sum (s_ij - t_ij)^2 (O. Ledoit & M. Wolf 2003,
        doi:10.1016/S0927-5398(03)00007-0), with var(s_ij) as estimated by J. Schäfer & K. Strimmer
        2005, doi:10.2202/1544-6115.1175.

        Args:
            x: Signals, shape (N, *shape), N >= 2.
            share: a, between 0 and 1.
            floor: The smallest variance of an entry of T, in squared units of the data.

        Raises:
            DataError: If there are fewer than two signals.
            Unsupported: If a signal has more than `LARGEST` entries.
        """
        n, shape = len(x), tuple(x.shape[1:])
        _require_two_signals(n)
        if (d := math.prod(shape)) > cls.LARGEST:
            raise Unsupported(
                f"a dense covariance is for signals of at most {cls.LARGEST} entries, and these"
                f" have {d}"
            )
        flat = to_float64(x.flatten(1))
        mean = flat.mean(0)
        centred = flat - mean
        sample = centred.T @ centred / (n - 1)
        target = _smooth_field_covariance(
            centred, sample.diagonal().clamp(min=floor).sqrt(), shape[-2:] if shape else (1,)
        )
        if share is None:
            # var(s_ij) is that of the mean of the products x_i x_j. Its sum over all i, j needs no
            # tensor of all pairs and signals.
            squares = centred.square()
            scatter = (
                ((squares.T @ squares).sum() - (centred.T @ centred).square().sum() / n)
                * n
                / (n - 1) ** 3
            )
            share = float((scatter / (sample - target).square().sum().clamp(min=1e-30)).clamp(0, 1))
        return cls.full(mean.reshape(shape).to(x), (1 - share) * sample + share * target)

    @classmethod
    def shrunk_to_diagonal(cls, x: Tensor) -> Self:
        """Fits the mean and a covariance to a few signals, shrunk to its diagonal.

        The estimate is (1 - a) S + a diag(S) with the sample covariance S and a = sum var(s_ij) /
        sum s_ij^2 over i != j (J. Schäfer & K. Strimmer 2005, doi:10.2202/1544-6115.1175, target
        D). S itself is singular if there are few signals. A variance that S lacks would then count
        as noise of the observations: with the S of 50 digits, noise of standard deviation 0.050 is
        estimated as 0.053.

        Args:
            x: Signals, shape (N, *shape), N >= 2.

        Raises:
            DataError: If there are fewer than two signals.
        """
        n = len(x)
        _require_two_signals(n)
        flat = x.flatten(1).double()
        mean = flat.mean(0)
        centred = flat - mean
        gram, squares = centred @ centred.T, centred.square()
        variance = squares.mean(0)
        # Sums over i != j of s_ij^2, and of the mean over signals of (x_i x_j)^2, without forming
        # the d x d matrices.
        covariances = gram.square().sum() / n**2 - variance.square().sum()
        products = (gram.diagonal().square().sum() - squares.square().sum()) / n
        share = float(
            ((products - covariances) / (n - 1) / covariances.clamp(min=1e-30)).clamp(0, 1)
        )
        diag = (share * (n / (n - 1)) * variance).clamp(min=1e-6)
        factor = (
            centred.T * ((1 - share) / (n - 1)) ** 0.5
            if share < 1
            else centred.new_zeros(centred.shape[1], 0)
        )
        return cls(
            mean.reshape(x.shape[1:]).to(x.dtype), DPLR(diag.to(x.dtype), factor.to(x.dtype))
        )

    def stationary(self, shape: tuple[int, ...]) -> "Gaussian":
        """Returns a stand-in for signals of another size: white, with one mean and one variance of
        each channel.

        The variance of a channel is that of its entries about the mean of the channel, so that what
        the mean says of places counts as spread. It gives chains the right scale at large noise,
        where samplers begin. It knows no correlations: a sampler that fills in hidden entries needs
        the network for them.

        Args:
            shape: (channels, *space), with the channels of this one.
        """
        c = self.shape[0]
        mean = self.mean.reshape(c, -1)
        entries = (self.cov.diag + self.cov.factor.square().sum(1)).reshape(c, -1)
        centre = mean.mean(1)
        var = entries.mean(1) + (mean - centre[:, None]).square().mean(1)
        ones = torch.ones(shape, dtype=mean.dtype, device=mean.device).reshape(c, -1)
        diag = (ones * var[:, None]).flatten()
        cov = DPLR(diag, diag.new_zeros(len(diag), 0))
        return Gaussian((ones * centre[:, None]).reshape(shape), cov)

    def sample(self, rng: Rng) -> Tensor:
        """Draws one signal per stream, shape (B, *shape)."""
        return self.mean + self.cov.draw(rng).reshape(-1, *self.shape)

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Returns E[x | x_t] = mean + C (C + sigma^2 I)^-1 (x_t - mean).

        sigma: one level, or (B, 1, ...).
        """
        gap = (x_t - self.mean).flatten(1)
        var = to_float64(sigma) ** 2
        var = var.reshape(()) if var.numel() == 1 else var.reshape(-1, 1)
        return x_t - (var * self.cov.solve(gap, var)).to(x_t.dtype).reshape(x_t.shape)

    def posterior(
        self, m: Measurement, rng: Rng, iterations: int = 200, tol: float = 1e-5
    ) -> Tensor:
        """Draws p(x | y), exactly up to the solver, for linear A and Gaussian noise, (B, *shape).

        Matheron's rule: x' ~ prior, y' ~ p(y | x'), then x = x' + C A^T (A C A^T + S)^-1 (y - y').
        """
        x = self.sample(rng)
        return x + self._pull(
            m, m.y - m.A(x) - m.noise.var().sqrt() * rng.normal_like(m.y), iterations, tol
        )

    def posterior_mean(self, m: Measurement, iterations: int = 200, tol: float = 1e-5) -> Tensor:
        """Returns E[x | y], shape (B, *shape)."""
        x = self.mean.expand(len(m.y), *self.shape)
        return x + self._pull(m, m.y - m.A(x), iterations, tol)

    def _pull(self, m: Measurement, r: Tensor, iterations: int, tol: float) -> Tensor:
        """Returns C A^T (A C A^T + S)^-1 r, shape (B, *shape)."""
        var = m.noise.var().expand_as(r).flatten(1)

        def pull(u: Tensor) -> Tensor:
            return self.cov(m.A.adjoint(u.reshape(r.shape)).flatten(1)).reshape(-1, *self.shape)

        solved = cg(lambda v: var * v + m.A(pull(v)).flatten(1), r.flatten(1), iterations, tol)
        solved.warn_unless(tol, "posterior of a Gaussian prior")
        return pull(solved.x)


def _require_two_signals(n: int) -> None:
    if n < 2:
        raise DataError(f"a covariance needs at least 2 signals, got {n}")


def _smooth_field_covariance(centred: Tensor, std: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Returns the covariance of the smooth field with the spectrum of the signals, shape (d, d).

    Args:
        centred: Signals minus their mean, shape (N, d).
        std: The standard deviation of each entry, shape (d,).
        sides: The last dimensions of a signal, over which the field is smooth. Entries that differ
            in another dimension (the channel) are uncorrelated.
    """
    n, d = centred.shape
    basis = torch.ones(1, 1, dtype=centred.dtype, device=centred.device)
    for side in sides:
        basis = torch.kron(basis, cosines(side).to(centred))
    power = (centred.reshape(n, -1, len(basis)) @ basis.T).square().sum(0) / (n - 1)
    blocks = basis.T @ (power[:, :, None] * basis)
    root = blocks.diagonal(dim1=1, dim2=2).clamp(min=1e-12).sqrt()
    blocks = blocks / (root[:, :, None] * root[:, None])
    covariance = centred.new_zeros(d, d)
    for i, block in enumerate(torch.unbind(blocks)):
        part = slice(i * len(basis), (i + 1) * len(basis))
        covariance[part, part] = std[part, None] * block * std[part]
    return covariance


def cosines(n: int) -> Tensor:
    """Returns the orthonormal discrete cosine transform (DCT-II), shape (n, n), float64."""
    k = torch.arange(n, dtype=torch.float64)
    rows = torch.cos(math.pi / n * k[:, None] * (k + 0.5)) * (2 / n) ** 0.5
    return torch.cat([rows[:1] * 0.5**0.5, rows[1:]])


def _leading(x: Tensor, basis: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns leading eigenvalues of x^T x / n, ascending, eigenvectors, and a basis for a restart.

    x: (n, d).
    """
    for _ in range(iterations):
        basis = torch.linalg.qr(x.T @ (x @ basis)).Q
    values, turn = torch.linalg.eigh((x @ basis).T.double() @ (x @ basis).double() / len(x))
    return values, basis.double() @ turn, basis
