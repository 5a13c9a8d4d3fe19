"""The spectrum of the mean of A^T A, and the Fisher information along each eigenvector."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invem.analysis.operators import OperatorSample
from invem.analysis.pairs import Pairs, seen_together
from invem.batched import Rng
from invem.errors import Unsupported
from invem.linear import Mask, Matrix
from invem.operator import SVD

__all__ = ["Levels", "Spectrum", "common_basis_spectrum", "common_svd", "spectrum_from_svd"]


@dataclass(frozen=True)
class Levels:
    """The variances of signal and noise.

    Attributes:
        signal: c, the variance of an entry of the signal.
        noise: The variance of the noise of an entry, shape (n,) per observation or (1,) if it is
            the same for all, float64.
    """

    signal: float
    noise: Tensor

    def information(self, power: Tensor) -> Tensor:
        """Returns E[w^2], w = c s^2/(c s^2 + noise), along common singular vectors, shape (d,).

        Args:
            power: The squared singular values s^2, shape (k, d). k is 1 where all operators are the
                same.
        """
        noise = self.noise[: len(power) if len(power) > 1 else None, None]
        shown = self.signal * power
        return torch.where(shown > 0, shown / (shown + noise), 0.0).square().mean(0)

    def information_bounds(self, eigenvalues: Tensor, norm: float) -> tuple[Tensor, Tensor]:
        """Returns a lower and an upper bound of E[w^2] along eigenvectors, each of shape (d,).

        Lower: w >= c v^T A^T A v/(c |A|^2 + noise), and E[w^2] >= E[w]^2. Upper: w <= 1, and
        w <= c t/(c t + noise) with t = |A v|^2, which is concave in t.

        Args:
            eigenvalues: The mean of |A v|^2 along each eigenvector v, shape (d,).
            norm: The largest |A|^2 of the operators.
        """
        shown, noise = self.signal * eigenvalues, self.noise[:, None]
        low = torch.where(shown > 0, shown / (self.signal * norm + noise), 0.0).square().mean(0)
        high = torch.where(shown > 0, shown / (shown + noise), 0.0).mean(0)
        return low, high


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The spectrum of the mean of A^T A, and the information along its eigenvectors.

    Attributes:
        eigenvalues: Shape (d,), in any order.
        information: E[w^2] along each eigenvector, w = c v^T A^T (c A A^T + S)^-1 A v, shape (d,);
            a lower bound if there is a `ceiling`.
        operators: The number of operators that were examined.
        vectors: Maps indices, shape (k,), to eigenvectors, shape (k, *shape); None if they are not
            known, and the eigenvalues are estimated quantiles.
        pairs: Which directions are seen together.
        ceiling: An upper bound of the information, shape (d,); None where it is known exactly.
    """

    eigenvalues: Tensor
    information: Tensor
    operators: int
    vectors: Callable[[Tensor], Tensor] | None = None
    pairs: Pairs = Pairs()
    ceiling: Tensor | None = None


def common_basis_spectrum(
    power: Tensor,
    levels: Levels,
    total: int,
    vectors: Callable[[Tensor], Tensor] | None,
    pairs_of: str = "",
) -> Spectrum:
    """Returns the spectrum of operators that share their right singular vectors.

    Args:
        power: The squared singular values, shape (n, d), or (1, d) if all operators are the same.
        levels: The variances of signal and noise.
        total: The number of training observations.
        vectors: Maps indices to the singular vectors.
        pairs_of: The noun for the pairs to examine; "" for none.
    """
    several = len(power) > 1
    return Spectrum(
        power.mean(0),
        levels.information(power),
        len(power),
        vectors,
        seen_together(pairs_of, power, total) if pairs_of and several else Pairs(),
    )


def spectrum_from_svd(sample: OperatorSample, levels: Levels) -> Spectrum | None:
    """Returns the exact spectrum of operators with a known SVD and common right singular vectors.

    None for other operators.
    """
    A = sample.A.to(dtype=torch.float64)
    svd = common_svd(OperatorSample(A, sample.n, sample.total))
    if svd is None:
        return None

    def vectors(index: Tensor) -> Tensor:
        one = A[torch.zeros(len(index), dtype=torch.long)].svd()
        e = torch.zeros(len(index), sample.entries, dtype=torch.float64).scatter(
            1, index[:, None], 1.0
        )
        found: Tensor = one.v(e).reshape(-1, *A.shape)
        return found

    power = svd.s.double().square()
    power = torch.nn.functional.pad(power, (0, sample.entries - power.shape[1]))
    pairs_of = sample.entry_name if isinstance(A, Mask) else "directions"
    return common_basis_spectrum(power, levels, sample.total, vectors, pairs_of)


def common_svd(sample: OperatorSample) -> SVD | None:
    """Returns the SVD of the operators if all have the same right singular vectors, else None.

    This is tested on a random vector.
    """
    A = sample.A
    if "svd" not in A.provides or isinstance(A, Matrix):
        return None
    try:
        if sample.n > 1:
            x = torch.randn(
                1, *A.shape, generator=Rng.generator("identify", "probe"), dtype=torch.float64
            ).expand(2, *A.shape)
            z = A[:2].svd().vt(x.contiguous())
            if not torch.allclose(z[0], z[1], rtol=0, atol=1e-9):
                return None
        return A.svd()
    except Unsupported:
        return None
