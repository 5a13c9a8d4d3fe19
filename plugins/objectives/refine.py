"""Posterior refinement: what a prior in closed form leaves out is learned from a few clean
images."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from annotated_types import Gt
from torch import Tensor

from invem import (
    Conditioned,
    Denoiser,
    Example,
    FactorMixture,
    Gaussian,
    Measurement,
    Mixture,
    Objective,
    RecipeError,
    Rng,
    edm_weight,
    level,
    matching,
    noise_levels,
    prior_of,
    remeasure,
)

_FEW = 256  # measurements from which the scale of the residual is taken
_PRIOR = "prior_"


@dataclass(frozen=True, kw_only=True)
class Refine(Objective):
    """E w |D(x + sigma z, sigma, [mu(y'), A^T y']) - x|^2 / d with y' ~ p(y | x) and mu(y') = E[x |
    y'] under the prior that the round begins with, a Gaussian or a mixture. The minimiser is E[x |
    x_t, mu(y'), A^T y'], or with a network that sees patches the best function of a patch of these,
    and the sampler `conditional` draws with it.

    It is a conditional diffusion of the residual x - mu (stochastic refinement, Whang et al. 2022,
    arXiv 2112.02475), with two differences: the first estimate is the posterior mean of a prior
    that EM learned from the observations in closed form, and what is learned on top of it can come
    from few clean images (`on: clean`), each measured anew in every step. mu holds what the image
    is as a whole; what is left is fine detail, of which each image has as many examples as it has
    patches. That asks for a network that sees no further than a patch (`convnet`): one that sees
    the whole image learns the few images by heart. A prior that was fitted to the same clean images
    knows them a little too well: mu is nearer to them than to others.

    Operator and noise are those of a training observation that is drawn at random (as `cond-dsm`
    has it). Where they are the same for all, mu costs little; where they differ a system is solved
    for each image of a batch, which for masks of 256 pixels and a large mixture takes seconds a
    step. Without a condition the denoiser is the prior in closed form, unchanged, and so is what an
    evaluation of the phase says: a prior for all that `conditional` knows is fitted to its draws,
    in a phase of its own. The law and the weight of sigma are those of EDM (arXiv 2206.00364, table
    1), the weight with the standard deviation of x - mu as the prior has it.

    Attributes:
        p_mean: The mean of log sigma, sigma in units of the data.
        p_std: The standard deviation of log sigma.
    """

    p_mean: float = -1.2
    p_std: Annotated[float, Gt(0)] = 1.2

    needs: ClassVar[frozenset[str]] = frozenset({"x", "adjoint", "var", "closed form"})
    provides: ClassVar[frozenset[str]] = frozenset({"conditional", "closed form"})
    condition: ClassVar[int] = 2

    def loss(self, denoiser: Denoiser, batch: Example, rng: Rng) -> Tensor:
        x, m = batch.x, batch.measurement
        if x is None:
            raise RecipeError("refine learns from signals, and was given measurements only")
        others: Measurement | None = getattr(denoiser, "others", None)
        sigma = noise_levels(rng, x, self.p_mean, self.p_std)
        pick = rng.uniform(1)[:, 0]
        if others is not None:
            m = others[(pick * len(others)).long()].to(x.device)
        if m is None:
            raise RecipeError(
                "refine measures signals anew, and was given no measurement that says how"
            )
        told = getattr(denoiser, "told_again", denoiser.told)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            cond = told(remeasure(m, x, rng)).to(x)
        return matching(denoiser, x, sigma, edm_weight(denoiser, sigma), rng, cond)

    def wrap(
        self, denoiser: Denoiser, m: Measurement | None, before: Denoiser | None = None
    ) -> Denoiser:
        """Returns the network with the prior that it refines; it carries the training measurements
        while it is trained."""
        if m is None:
            return RefinedDenoiser(denoiser)
        if before is None:
            raise RecipeError("refine begins with a prior in closed form, and there is none")
        before = before.closed if isinstance(before, RefinedDenoiser) else before
        few = m[torch.arange(min(len(m), _FEW))].to(before.known_moments().mean.device)
        drawn = before.posterior(few, Rng.keyed("refine", items=range(len(few))))
        spread = (drawn - before.posterior_mean(few)).square().mean().sqrt()
        refined = RefinedDenoiser(denoiser, before, float(spread))
        refined.others, refined.alike = m, _alike(m)  # type: ignore[assignment]
        return refined


class RefinedDenoiser(Denoiser):
    """A prior in closed form, and beside it a network that knows E[x | x_t, mu, A^T y], mu = E[x |
    y] under that prior.

    With a condition it is mu + q F((x_t - mu)/q, sigma/q) with q such that the residual has the
    standard deviation that the network is scaled to; without one it is the prior's own denoiser.
    The moments are those of the prior; those that are given are the network's, and without effect.

    Args:
        inner: The network, F.
        prior: A Gaussian or a mixture; None where it is loaded afterwards.
        spread: The standard deviation of the residual x - mu as the prior has it, in units of the
            data.
    """

    condition = 2
    spread: Tensor

    def __init__(self, inner: Denoiser, prior: Denoiser | None = None, spread: float = 1.0) -> None:
        super().__init__()
        self.inner, self.alike = inner, False
        self.register_buffer("spread", torch.tensor(max(spread, 1e-3)))
        for name, tensor in {} if prior is None else _tensors(prior).items():
            self.register_buffer(_PRIOR + name.replace(".", "-"), tensor)
        self._made: list[Denoiser] = []
        self._under: list[Conditioned] = []

    @property
    def closed(self) -> Denoiser:
        """The denoiser of the prior in closed form."""
        if not self._made:
            buffers = dict(self.named_buffers(recurse=False))
            self._made = [
                prior_of(
                    {
                        name.removeprefix(_PRIOR).replace("-", "."): buffers[name]
                        for name in buffers
                        if name != "spread"
                    }
                )
            ]
        return self._made[0]

    @property
    def prior(self) -> Mixture | FactorMixture | None:
        """Its law, if that is a mixture."""
        return getattr(self.closed, "prior", None)

    @property
    def moments(self) -> Gaussian | None:
        """Those of the prior in closed form."""
        return self.closed.moments

    @moments.setter
    def moments(self, value: Gaussian | None) -> None:
        self.inner.moments = value

    @property
    def sigma_data(self) -> float:
        """The standard deviation of the residual."""
        return float(self.spread)

    def posterior(self, m: Measurement, rng: Rng) -> Tensor:
        return self.closed.posterior(m, rng)

    def posterior_mean(self, m: Measurement) -> Tensor:
        return self.closed.posterior_mean(m)

    def told(self, m: Measurement) -> Tensor:
        """Returns [mu, A^T y], shape (B, 2, *shape)."""
        return torch.stack([self.posterior_mean(m), m.A.adjoint(m.y)], 1)

    def told_again(self, m: Measurement) -> Tensor:
        """Returns the same for training measurements made anew; what A and the noise alone decide
        is kept, where all share them."""
        law = self.prior
        if not self.alike or not isinstance(law, FactorMixture):
            return self.told(m)
        if not self._under:
            self._under = [law.conditioned(m[:1])]
        return torch.stack([self._under[0].mean(m.y), m.A.adjoint(m.y)], 1)

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """Returns E[x | x_t] under the prior, or with what `told` returns E[x | x_t, mu, A^T y]."""
        if cond is None:
            out: Tensor = self.closed(x_t, sigma)
            return out
        q = self.spread / float(getattr(self.inner, "sigma_data", 0.5))
        centre = 0.0 if self.inner.moments is None else self.inner.moments.mean
        mu = cond[:, 0]
        residual: Tensor = self.inner((x_t - mu) / q + centre, level(sigma, x_t) / q, cond)
        return mu + q * (residual - centre)

    def _apply(self, *given: Any, **more: Any) -> Self:
        self._made, self._under = [], []
        super()._apply(*given, **more)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self._made, self._under = [], []
        for name, kept in state_dict.items():
            if name.startswith(prefix + _PRIOR):
                self.register_buffer(
                    name.removeprefix(prefix), torch.empty_like(kept, device=self.spread.device)
                )
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _tensors(prior: Denoiser) -> dict[str, Tensor]:
    law: Any = getattr(prior, "prior", prior.moments)
    found: dict[str, Tensor] = law.tensors()
    return found


def _alike(m: Measurement) -> bool:
    """Whether A and the noise of all measurements are the same."""
    var = m.noise.var().expand_as(m.y)
    return m.alike and bool((var == var[:1]).all())
