"""Posterior refinement: what a prior in closed form leaves out is learned from a few clean
images."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from annotated_types import Gt
from torch import Tensor

from invem import (
    Denoiser,
    Example,
    FactorMixture,
    Gaussian,
    Measurement,
    Mixture,
    Objective,
    Prior,
    RecipeError,
    Rng,
)
from invem.denoiser import level
from invem.factor_mixture import Conditioned
from invem.measurement import remeasure
from invem.objective import MakeNetwork, Observing, edm_weight, matching, noise_levels
from invem.prior import ClosedForm, Conditioning, closed_form

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
    learns: ClassVar[str] = "residuals"

    def loss(self, model: Denoiser, batch: Example, rng: Rng) -> Tensor:
        x, refined = batch.x, _refined(model)
        if x is None:
            raise RecipeError("refine learns from signals, and was given measurements only")
        sigma = noise_levels(rng, x, self.p_mean, self.p_std)
        m = refined.chosen(rng.uniform(1)[:, 0], batch.measurement)
        if m is None:
            raise RecipeError(
                "refine measures signals anew, and was given no measurement that says how"
            )
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            cond = refined.condition_of(remeasure(m.to(x.device), x, rng)).to(x)
        return matching(model, x, sigma, edm_weight(model, sigma), rng, cond)

    def build(
        self, make_network: MakeNetwork, prior: Prior | None, m: Measurement | None
    ) -> Denoiser:
        network = make_network()
        if m is None:
            return RefinedDenoiser(network)
        if prior is None or prior.exact is None:
            raise RecipeError("refine begins with a prior in closed form, and there is none")
        exact = prior.exact
        few = m[torch.arange(min(len(m), _FEW))].to(exact.moments().mean.device)
        drawn = exact.posterior(few, Rng.keyed("refine", items=range(len(few))))
        residual = (drawn - exact.posterior_mean(few)).square().mean().sqrt()
        return RefinedDenoiser(network, exact, float(residual), m)

    def prior(self, model: Denoiser, moments: Gaussian | None) -> Prior:
        refined = _refined(model)
        exact = refined.exact
        return Prior(model, exact.moments(), exact, conditioning=_Estimate(refined))


class RefinedDenoiser(Observing):
    """A prior in closed form, and beside it a network that knows E[x | x_t, mu, A^T y], mu = E[x |
    y] under that prior.

    With a condition it is mu + q F((x_t - mu)/q, sigma/q), with q such that the residual x - mu has
    the standard deviation that the network is scaled to. Without one it is E[x | x_t] under the
    prior in closed form.

    Args:
        network: The network, F.
        exact: The prior in closed form; None where it is loaded afterwards.
        residual: The standard deviation of x - mu as the prior has it, in units of the data.
        observations: The training measurements, while it is trained.
    """

    spread: Tensor

    def __init__(
        self,
        network: Denoiser,
        exact: ClosedForm | None = None,
        residual: float = 1.0,
        observations: Measurement | None = None,
    ) -> None:
        super().__init__(network, observations)
        self.condition = 2
        self.register_buffer("spread", torch.tensor(max(residual, 1e-3)))
        for name, tensor in {} if exact is None else exact.tensors().items():
            self.register_buffer(_PRIOR + name.replace(".", "-"), tensor)
        # Where all observations share operator and noise, what these alone decide is kept.
        self._common = observations is not None and observations.shares_operator_and_noise
        self._exact: list[Gaussian | Mixture | FactorMixture] = []
        self._conditioned: list[Conditioned] = []

    @property
    def exact(self) -> Gaussian | Mixture | FactorMixture:
        """The prior in closed form, on the device of the module."""
        if not self._exact:
            buffers = self.named_buffers(recurse=False, remove_duplicate=False)
            own = {
                name.removeprefix(_PRIOR).replace("-", "."): tensor
                for name, tensor in buffers
                if name.startswith(_PRIOR)
            }
            self._exact = [closed_form(own)]
        return self._exact[0]

    @property
    def sigma_data(self) -> float:
        """The standard deviation of the residual."""
        return float(self.spread)

    def condition_of(self, m: Measurement) -> Tensor:
        """Returns [mu, A^T y], shape (B, 2, *shape), of training measurements made anew."""
        exact = self.exact
        if not self._common or not isinstance(exact, FactorMixture):
            return _estimate(exact, m)
        if not self._conditioned:
            self._conditioned = [exact.conditioned(m[:1])]
        return torch.stack([self._conditioned[0].mean(m.y), m.A.adjoint(m.y)], 1)

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """Returns E[x | x_t] under the prior, or with a condition E[x | x_t, mu, A^T y]."""
        if cond is None:
            return self.exact.denoise(x_t, level(sigma, x_t))
        q = self.spread / self.network.sigma_data
        mu, centre = cond[:, 0], self.network.mean
        residual: Tensor = self.network((x_t - mu) / q + centre, level(sigma, x_t) / q, cond)
        return mu + q * (residual - centre)

    def _apply(self, *given: Any, **more: Any) -> Self:
        self._exact, self._conditioned = [], []
        super()._apply(*given, **more)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self._exact, self._conditioned = [], []
        for name, kept in state_dict.items():
            if name.startswith(prefix + _PRIOR):
                empty = torch.empty_like(kept, device=self.spread.device)
                self.register_buffer(name.removeprefix(prefix), empty)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _Estimate(Conditioning):
    """[mu, A^T y], shape (B, 2, *shape)."""

    def __init__(self, refined: RefinedDenoiser) -> None:
        self.refined = refined

    def __call__(self, m: Measurement) -> Tensor:
        return _estimate(self.refined.exact, m)


def _estimate(exact: ClosedForm, m: Measurement) -> Tensor:
    return torch.stack([exact.posterior_mean(m), m.A.adjoint(m.y)], 1)


def _refined(model: Denoiser) -> RefinedDenoiser:
    if not isinstance(model, RefinedDenoiser):
        raise RecipeError("refine trains a network beside a prior in closed form")
    return model
