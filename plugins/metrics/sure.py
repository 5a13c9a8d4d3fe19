"""Estimated squared error of the restorations, without truth."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from invem import Metric, Outcome, Prior, RecipeError, Rng, Unsupported
from invem.denoiser import expand_level

CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class Sure(Metric):
    """The estimated mean squared error of E[x | y] by the network, over that of y, sigma^2.

    It needs no clean signal. 1 is what the observations score as they are; above 1 the restoration
    is worse than its input. The estimate is unbiased for any network if sigma is right (C. Stein,
    Annals of Statistics 1981): |x_hat - y|^2/d - sigma^2 + 2 sigma^2 tr(J)/d. The trace of the
    Jacobian J is by random signs, as in Ramani et al., IEEE TIP 2008. A single value can be
    negative. It scores one call of the network at the level of y, not the draws.

    Attributes:
        probes: Random vectors for the trace, each a vector-Jacobian product.
    """

    probes: Annotated[int, Ge(1)] = 1
    needs: ClassVar[frozenset[str]] = frozenset(
        {"measurement", "prior", "var", "identity", "one level"}
    )
    default: ClassVar[bool] = True
    unit: ClassVar[str] = "sigma^2"
    higher_is_better: ClassVar[bool | None] = False
    untouched: ClassVar[float | None] = 1.0

    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns squared errors in units of sigma^2, shape (N,).

        Raises:
            RecipeError: If the noise has variance 0 somewhere.
            Unsupported: If the operator is not the identity, or the noise of an observation has
                several levels.
        """
        if outcome.measurement is None or outcome.prior is None:
            raise Unsupported("sure needs held-out measurements and the prior")
        m, prior = outcome.measurement, outcome.prior
        if not bool((m.noise.var() > 0).all()):
            raise RecipeError("sure divides by the variance of the noise, which is 0: leave it out")
        level = m.level("sure").flatten()
        sigma = level.to(m.y).expand(len(m.y))
        parts = zip(torch.split(m.y, CHUNK), torch.split(sigma, CHUNK), strict=True)
        return torch.cat([self._estimate(prior, y, s) for y, s in parts])

    def _estimate(self, prior: Prior, y: Tensor, sigma: Tensor) -> Tensor:
        """Returns the estimate of each observation, shape (B,). y: (B, *shape), sigma: (B,)."""
        device = next((weight.device for weight in prior.denoiser.parameters()), y.device)
        # The probes depend on y, not on its index, so that a subset scores the same.
        rng = Rng.keyed(
            "sure", items=[hashlib.blake2b(row.cpu().numpy().tobytes()).hexdigest() for row in y]
        )
        with torch.enable_grad():
            x = y.detach().to(device).requires_grad_()
            x_hat = prior(x, expand_level(sigma.to(device), x))
        trace = torch.zeros(len(y), dtype=y.dtype, device=device)
        for _ in range(self.probes):
            v = rng.normal_like(x.detach()).sign()
            (pulled,) = torch.autograd.grad(x_hat, x, v, retain_graph=True)
            trace = trace + (pulled * v).flatten(1).mean(1) / self.probes
        misfit = (x_hat.detach() - x.detach()).square().flatten(1).mean(1)
        return (misfit / sigma.to(device).square() - 1 + 2 * trace).to(y.device)
