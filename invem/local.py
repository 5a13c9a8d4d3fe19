"""N(x_hat, V): the Gaussian that stands for p(x | x_t), and what samplers do with it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from invem.batched import Rng
from invem.denoiser import Denoiser
from invem.linalg import sqrt_matvec

__all__ = ["Covariance", "Local", "local"]

Covariance = Literal["switch", "jacobian", "moments"]


@dataclass(frozen=True, eq=False)
class Local:
    """The Gaussian that stands for p(x | x_t) at one noise level.

    Attributes:
        mean: x_hat = E[x | x_t], shape (B, *shape).
        cov: v -> V v, both (B, d).
        noise: Draws N(0, V), one a stream, shape (B, *shape).
        cheap: Whether V costs no product with the network.
    """

    mean: Tensor
    cov: Callable[[Tensor], Tensor]
    noise: Callable[[Rng], Tensor]
    cheap: bool

    def draw(self, rng: Rng) -> Tensor:
        """Draws N(x_hat, V), shape (B, *shape)."""
        return self.mean + self.noise(rng)


def local(
    denoiser: Denoiser, x_t: Tensor, sigma: float, covariance: Covariance = "switch", switch: float = 0.3, iterations: int = 3
) -> Local:
    """Returns the Gaussian that stands for p(x | x_t): one call of the denoiser.

    V = sigma^2 J with J the Jacobian of the denoiser (Tweedie), one vector-Jacobian product for each V v. Where sigma is large, J of a
    trained network is wrong by more than (C^-1 + sigma^-2 I)^-1 is, with C the covariance of the prior, and that costs no product.

    Args:
        denoiser: (x_t, sigma) -> x_hat.
        x_t: The state, shape (B, *shape).
        sigma: Its noise level, in units of the data.
        covariance: V by the Jacobian, by the moments of the prior, or by the one below and the other above `switch`.
        switch: A noise level.
        iterations: Lanczos iterations for a draw, each a vector-Jacobian product.

    Raises:
        Unsupported: If the moments are needed and the denoiser carries none.
    """
    if covariance == "moments" or (covariance == "switch" and sigma > switch):
        given = denoiser.known_moments().cov.given(sigma)
        x = denoiser(x_t, sigma)
        return Local(x, given.__call__, lambda rng: given.draw(rng).reshape(x.shape), True)
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        x_hat = denoiser(x_t, sigma)

    def cov(v: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(x_hat, x_t, v.reshape(x_hat.shape), retain_graph=True)
        return sigma**2 * g.flatten(1)

    def noise(rng: Rng) -> Tensor:
        return sqrt_matvec(cov, rng.normal_like(x_hat.flatten(1)), iterations).reshape(x_hat.shape)

    return Local(x_hat.detach(), cov, noise, False)
