"""N(x_hat, V), the Gaussian approximation of p(x | x_t), and its use in samplers."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from invem.batched import Rng
from invem.errors import Unsupported
from invem.linalg import cg, gmres, sqrt_matvec
from invem.measurement import Measurement
from invem.operator import LinearOperator, Operator
from invem.prior import Prior

__all__ = [
    "Covariance",
    "LocalGaussian",
    "apply_gain",
    "condition_on",
    "draw_given_state",
    "linearised",
    "local_gaussian",
]

Covariance = Literal["switch", "jacobian", "moments"]


@dataclass(frozen=True, eq=False)
class LocalGaussian:
    """The Gaussian approximation of p(x | x_t) at one noise level.

    Attributes:
        mean: x_hat = E[x | x_t], shape (B, *shape).
        cov: v -> V v, both (B, d).
        noise: Draws N(0, V), one per stream, shape (B, *shape).
        cheap: Whether V needs no vector-Jacobian product of the network.
    """

    mean: Tensor
    cov: Callable[[Tensor], Tensor]
    noise: Callable[[Rng], Tensor]
    cheap: bool

    def draw(self, rng: Rng) -> Tensor:
        """Draws N(x_hat, V), shape (B, *shape)."""
        return self.mean + self.noise(rng)


def local_gaussian(
    prior: Prior,
    x_t: Tensor,
    sigma: Tensor | float,
    covariance: Covariance,
    switch: float = math.inf,
    iterations: int = 3,
) -> LocalGaussian:
    """Returns the Gaussian approximation of p(x | x_t), with one denoiser call.

    V = sigma^2 J with J the Jacobian of the denoiser (Tweedie), at one vector-Jacobian product per
    V v. At large sigma, the J of a trained network is less accurate than (C^-1 + sigma^-2 I)^-1
    with C the covariance of the prior. The latter costs no such product.

    Args:
        prior: The prior, whose denoiser is called.
        x_t: The state, shape (B, *shape).
        sigma: Its noise level, in units of the data: one number, or (B, 1, ...) with the Jacobian.
        covariance: V by the Jacobian, by the moments of the prior, or by the moments above `switch`
            and the Jacobian below.
        switch: The noise level of "switch" (`invem.switching` finds one).
        iterations: Lanczos iterations per draw, each a vector-Jacobian product.

    Raises:
        Unsupported: If the moments are needed and the prior has none.
    """
    if covariance == "moments" or (covariance == "switch" and float(sigma) > switch):
        given = prior.known_moments().cov.given(sigma)
        x = prior(x_t, sigma)
        return LocalGaussian(x, given.__call__, lambda rng: given.draw(rng).reshape(x.shape), True)
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        x_hat = prior(x_t, sigma)

    def cov(v: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(x_hat, x_t, v.reshape(x_hat.shape), retain_graph=True)
        return (sigma**2 * g).flatten(1)

    def noise(rng: Rng) -> Tensor:
        return sqrt_matvec(cov, rng.normal_like(x_hat.flatten(1)), iterations).reshape(x_hat.shape)

    return LocalGaussian(x_hat.detach(), cov, noise, False)


def condition_on(
    here: LocalGaussian,
    m: Measurement,
    rng: Rng | None = None,
    solver: Literal["gmres", "cg"] = "gmres",
    iterations: int = 3,
    guess: list[Tensor] | None = None,
) -> Tensor:
    """Returns the mean of N(x_hat, V) given y, or a draw of it if `rng` is given, (B, *shape).

    It is x + V A^T (A V A^T + S)^-1 (y - A x). For the mean, x = x_hat (MMPS, arXiv 2405.13712).
    For a draw, x ~ N(x_hat, V) and y is perturbed by noise (Matheron's rule). V A^T u is a
    combination of the Krylov basis, so that GMRES costs one vector-Jacobian product per iteration
    and no more.

    Args:
        here: The Gaussian.
        m: Linear A, Gaussian noise.
        rng: B streams, for a draw.
        solver: "gmres", whose residual never grows, or "cg", which stops a sample at negative
            curvature.
        iterations: Krylov iterations if a product with V costs one with the network. Otherwise the
            system is solved.
        guess: A list in which "cg" finds the solution of the step before and leaves its own.
    """
    x = here.mean
    r = m.y - m.A(x)
    if rng is not None:
        x = x + here.noise(rng)
        r = m.y - m.A(x) - m.noise.var().sqrt() * rng.normal_like(m.y)
    return x + apply_gain(here, m, r, solver, iterations, guess)


@dataclass(frozen=True, eq=False)
class _Jacobian(LinearOperator):
    """The derivative of an operator at a point.

    Attributes:
        A: The operator.
        x: The point, shape (B, *shape).
    """

    A: Operator
    x: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        pushed: Tensor = torch.func.jvp(self.A, (self.x,), (x,))[1]
        return pushed

    def adjoint(self, y: Tensor) -> Tensor:
        return self.A.vjp(self.x, y)


def linearised(m: Measurement, x: Tensor) -> Measurement:
    """Returns the measurement with A(x) + J (. - x) in place of A, J its derivative at x.

    Args:
        m: A measurement with an A that can be differentiated.
        x: Shape (B, *shape).

    Raises:
        Unsupported: If the derivative is a substitute, as that of rounding.
    """
    if m.A.straight_through:
        raise Unsupported(
            f"{type(m.A).__name__} has no derivative to linearise it by, only a substitute"
        )
    J = _Jacobian(m.A.shape, m.A, x)
    return replace(m, y=m.y - m.A(x) + J(x), A=J)


def apply_gain(
    here: LocalGaussian,
    m: Measurement,
    r: Tensor,
    solver: Literal["gmres", "cg"] = "gmres",
    iterations: int = 3,
    guess: list[Tensor] | None = None,
) -> Tensor:
    """Returns V A^T (A V A^T + S)^-1 r, shape (B, *shape). For the arguments see `condition`.

    `guess` is a list of at most one solution. "cg" begins with it, at the cost of one more product,
    and leaves its own there.
    """
    var = m.noise.var().expand_as(m.y).flatten(1)
    pulled: list[Tensor] = []

    def pull(u: Tensor) -> Tensor:
        pulled.append(here.cov(m.A.adjoint(u.reshape(m.y.shape)).flatten(1)))
        return pulled[-1]

    def matvec(u: Tensor) -> Tensor:
        return var * u + m.A(pull(u).reshape(here.mean.shape)).flatten(1)

    # Entries of y that are noise alone would use up dimensions of the Krylov space.
    flat = (r if m.A.seen is None else r * m.A.seen).flatten(1)
    if here.cheap:
        solved = cg(matvec, flat, 100, tol=1e-4)
        solved.warn_unless(1e-4, "posterior by the moments of the prior")
        u = solved.x
        step = pull(u)
    elif solver == "cg":
        u = cg(matvec, flat, iterations, x0=guess[0] if guess else None).x
        step = pull(u)
    else:
        u, weights = gmres(matvec, flat, iterations)
        step = torch.einsum("kbd,bk->bd", torch.stack(pulled), weights)
    if guess is not None:
        guess[:] = [u]
    return step.reshape(here.mean.shape)


def draw_given_state(
    prior: Prior,
    x_t: Tensor,
    sigma: Tensor | float,
    steps: int,
    last: float,
    rng: Rng,
    switch: float = math.inf,
    iterations: int = 3,
) -> Tensor:
    """Draws p(x | x_t), shape (B, *shape), by ancestral steps.

    The clean estimate of each step is a draw of N(x_hat, V). It is exact for a Gaussian prior at
    any number of steps.

    Args:
        prior: The prior, whose denoiser is called.
        x_t: Shape (B, *shape).
        sigma: The noise level of x_t: one number, or (B, 1).
        steps: The number of noise levels, geometric, from sigma to `last`.
        last: The last level; less than sigma.
        rng: B streams.
        switch: The level above which V comes from the moments of the prior, if sigma is one number.
        iterations: Vector-Jacobian products per draw.
    """
    one = not isinstance(sigma, Tensor)
    first = (
        torch.as_tensor(sigma, dtype=torch.float64)
        .reshape(-1, *[1] * (x_t.ndim - 1))
        .to(x_t.device)
    )
    levels = [first * (last / first) ** (k / max(steps - 1, 1)) for k in range(steps)]
    for k, level in enumerate(levels):
        now = level.to(x_t.dtype) if not one else float(level)
        how: Covariance = "switch" if one and float(level) > switch else "jacobian"
        x = local_gaussian(prior, x_t, now, how, switch, iterations).draw(rng)
        if k + 1 == len(levels):
            break
        w = (levels[k + 1] / level) ** 2
        noise = (levels[k + 1] * (1 - w).sqrt()).to(x_t.dtype)
        x_t = x + w.to(x_t.dtype) * (x_t - x) + noise * rng.normal_like(x_t)
    return x
