"""Wiener restoration: the best linear estimate."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from invem import Measurement, PosteriorSampler, Prior, Rng
from invem.linalg import cg


@dataclass(frozen=True, kw_only=True)
class Wiener(PosteriorSampler):
    """The Wiener filter: the linear estimate of least mean squared error, for Gaussian noise.

    Wiener 1949, for linear A and a stationary prior:

        x = mean + C A^T u,   (A C A^T + S) u = y - A mean.

    The system is solved by conjugate gradients in float64 (float32 on a device without it). C is
    std^2 I, or the circular covariance whose power at the frequency f is proportional to
    |f|^-exponent, with std^2 the variance of an entry. The frequency zero has the power of the
    lowest other one. Frequencies are those of the last two axes of a signal, or of its only axis.
    Channels are independent.

    It is the classical restoration of a blur, for the first phase.

    Attributes:
        mean: The mean of the signals, in units of the data.
        std: The standard deviation of an entry, in units of the data. The standard deviation of the
            noise counts as at least a thousandth of it.
        exponent: How fast the power falls: 0 for white signals, about 2 for photographs (Field
            1987).
        tol: The residual at which a sample stops, relative to |y - A mean|.
        iterations: The largest number of iterations, each an application of A and of its adjoint.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "var"})
    uses_prior: ClassVar[bool] = False

    mean: float = 0.0
    std: Annotated[float, Gt(0)] = 0.5
    exponent: Annotated[float, Ge(0)] = 0.0
    tol: Annotated[float, Gt(0)] = 1e-8
    iterations: Annotated[int, Ge(1), Le(1_000_000)] = 1000

    @torch.no_grad()
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        dtype = m.y.dtype
        m = m.floored(1e-3 * self.std).to(
            dtype=torch.float32 if m.y.device.type == "mps" else torch.float64
        )
        var = m.noise.var().expand_as(m.y)
        power = self._power(m.shape).to(m.y)
        axes = tuple(range(-power.ndim, 0))

        def correlate(x: Tensor) -> Tensor:
            return self.std**2 * (
                torch.fft.ifftn(power * torch.fft.fftn(x, dim=axes), dim=axes).real
                if self.exponent
                else x
            )

        def matvec(u: Tensor) -> Tensor:
            u = u.reshape(m.y.shape)
            return (m.A(correlate(m.A.adjoint(u))) + var * u).flatten(1)

        mean = m.y.new_full((len(m), *m.shape), self.mean)
        solved = cg(matvec, m.residual(mean).flatten(1), self.iterations, self.tol)
        solved.warn_unless(self.tol, "wiener", "raise `iterations` or `tol`")
        u = solved.x
        return (mean + correlate(m.A.adjoint(u.reshape(m.y.shape)))).to(dtype)

    def _power(self, shape: tuple[int, ...]) -> Tensor:
        """Returns the power of each frequency of the last two axes (or the only one), of mean 1."""
        squares = torch.zeros((), dtype=torch.float64)
        for n in shape[-2:]:
            squares = squares.unsqueeze(-1) + torch.fft.fftfreq(n, dtype=torch.float64).square()
        power = squares.clamp(min=1 / max(shape[-2:]) ** 2) ** (-self.exponent / 2)
        return power / power.mean()
