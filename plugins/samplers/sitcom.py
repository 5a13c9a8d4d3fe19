"""SITCOM: step-wise triple-consistent sampling."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from invem import ChainSampler, Karras, Measurement, Prior, Rng, Schedule
from invem.diffusion import initial_state


@dataclass(frozen=True, kw_only=True)
class SITCOM(ChainSampler):
    """SITCOM, step-wise triple-consistent sampling (arXiv 2410.04479), for any differentiable A.

    Alkhouri et al. 2025, algorithm 1. At each level Adam moves the input v of the denoiser from x_t
    to reduce |y - A(x_hat(v))|^2 + lam |v - x_t|^2. The next state is x_hat(v) + s noise. A sample
    stops moving when |y - A(x_hat)|^2 falls below (noise + 0.001)^2 per entry of y. The result is
    close to a point: its variance is far below that of the posterior.

    Attributes:
        steps: The number of noise levels.
        inner: Adam steps at each level, each a denoiser call and a vector-Jacobian product. One
            more call follows them.
        rate: The step size of Adam, in units of the scaled state x_t/sqrt(1 + sigma^2).
        lam: The weight of staying near x_t.
        schedule: The noise levels.
    """

    steps: Annotated[int, Ge(2), Le(100_000)] = 20
    inner: Annotated[int, Ge(1)] = 20
    rate: Annotated[float, Gt(0)] = 0.02
    lam: Annotated[float, Ge(0)] = 0.0
    schedule: Schedule = Karras()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"vjp", "var"})

    @property
    def cost(self) -> tuple[int, int]:
        return self.steps * (self.inner + 1), self.steps * self.inner

    @torch.no_grad()
    def __call__(
        self, prior: Prior, m: Measurement, rng: Rng, start: Tensor | None = None
    ) -> Tensor:
        sigmas: list[float] = self.schedule.grid(self.steps).tolist()
        goal = (m.noise.var().expand_as(m.y).sqrt() + 1e-3).square()
        goal = (goal if m.A.seen is None else goal * m.A.seen).flatten(1).sum(1)
        x_t = initial_state(prior, sigmas[0], rng, m.shape, m.y, start)
        for sigma, s in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            scale = (1 + sigma**2) ** 0.5
            u, first, second = x_t / scale, torch.zeros_like(x_t), torch.zeros_like(x_t)
            live = torch.ones(len(m), dtype=torch.bool, device=x_t.device)
            for k in range(1, self.inner + 1):
                with torch.enable_grad():
                    u = u.detach().requires_grad_()
                    x_hat = prior(scale * u, sigma)
                    r = m.residual(x_hat).flatten(1).square().sum(1)
                    loss = r + self.lam * (scale * u - x_t).flatten(1).square().sum(1)
                    (grad,) = torch.autograd.grad(loss.sum(), u)
                live = live & (r.detach() > goal)
                first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad.square()
                step = (
                    self.rate * (first / (1 - 0.9**k)) / ((second / (1 - 0.999**k)).sqrt() + 1e-8)
                )
                u = u.detach() - step * live.reshape(-1, *[1] * (step.ndim - 1))
            x_hat = prior(scale * u, sigma)
            x_t = x_hat + s * rng.normal_like(x_hat) if s else x_hat
        return x_t
