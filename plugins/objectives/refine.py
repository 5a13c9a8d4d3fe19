"""Posterior refinement: a few clean images correct the posterior mean of a prior in closed form."""

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
from invem.denoiser import expand_level
from invem.factor_mixture import Conditioned
from invem.measurement import remeasure
from invem.objective import MakeNetwork, Observing, edm_weight, noise_levels, score_matching
from invem.prior import ClosedForm, Conditioning, closed_form

_FEW = 256  # measurements from which the standard deviation of the residual is estimated
_PRIOR = "prior_"


@dataclass(frozen=True, kw_only=True)
class Refine(Objective):
    """Conditional diffusion of the residual of a prior in closed form, for a small clean subset.

    The loss is E w |D(x + sigma z, sigma, [mu(y'), A^T y']) - x|^2 / d with y' ~ p(y | x). mu(y') =
    E[x | y'] under the prior at the start of the round, a Gaussian or a mixture. The minimiser is
    E[x | x_t, mu(y'), A^T y']. For a network that sees patches, it is the best function of a patch
    of these. The sampler `conditional` draws with it.

    The method is stochastic refinement (Whang et al. 2022, arXiv 2112.02475) with two differences.
    The first estimate is the posterior mean of a prior that EM learned from the observations in
    closed form. And the network can learn from few clean images (`on: clean`), each measured anew
    in every step. mu holds the global structure of the image. The residual is fine detail, of which
    each image has as many examples as patches. So use a network that sees no more than a patch
    (`convnet`): one that sees the whole image memorises the few images. If the prior was fitted to
    the same clean images, mu is closer to them than to others.

    Operator and noise are those of a random training observation (as in `cond-dsm`). If they are
    the same for all, mu costs little. Otherwise a system is solved for each image of a batch, which
    takes seconds per step for masks of 256 pixels and a large mixture. Without a condition the
    denoiser is the prior in closed form, unchanged. An evaluation of the phase therefore shows that
    prior. To obtain a prior from `conditional`, fit one to its draws in a later phase. The
    distribution and the weight of sigma are those of EDM (arXiv 2206.00364, table 1). The weight
    uses the standard deviation of x - mu under the prior.

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
                "refine measures signals anew, and was given no operator and noise to do so"
            )
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            cond = refined.condition_of(remeasure(m.to(x.device), x, rng)).to(x)
        return score_matching(model, x, sigma, edm_weight(model, sigma), rng, cond)

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
    """A prior in closed form, with a network for E[x | x_t, mu, A^T y], mu = E[x | y].

    With a condition it is mu + q F((x_t - mu)/q, sigma/q). q scales the residual x - mu to the
    standard deviation that the network expects. Without a condition it is E[x | x_t] under the
    prior in closed form.

    Args:
        network: The network, F.
        exact: The prior in closed form; None if it is loaded afterwards.
        residual: The standard deviation of x - mu under the prior, in units of the data.
        observations: The training measurements, during training.
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
        # If all observations share operator and noise, the factorisations are computed once.
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
        """Returns [mu, A^T y], shape (B, 2, *shape), for new measurements of training signals."""
        exact = self.exact
        if not self._common or not isinstance(exact, FactorMixture):
            return _estimate(exact, m)
        if not self._conditioned:
            self._conditioned = [exact.conditioned(m[:1])]
        return torch.stack([self._conditioned[0].mean(m.y), m.A.adjoint(m.y)], 1)

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """Returns E[x | x_t] under the prior, or with a condition E[x | x_t, mu, A^T y]."""
        if cond is None:
            return self.exact.denoise(x_t, expand_level(sigma, x_t))
        q = self.spread / self.network.sigma_data
        mu, centre = cond[:, 0], self.network.mean
        residual: Tensor = self.network((x_t - mu) / q + centre, expand_level(sigma, x_t) / q, cond)
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

    def evidence(
        self, x_t: Tensor, sigma: Tensor, cond: Tensor, noise: float
    ) -> tuple[Tensor, Tensor]:
        # mu is a function of y and of the mask, and adds nothing to them.
        y, expand_level = cond[:, 1].double(), sigma.double() ** -2
        return expand_level + (y != 0) / noise**2, expand_level * x_t.double() + y / noise**2


def _estimate(exact: ClosedForm, m: Measurement) -> Tensor:
    return torch.stack([exact.posterior_mean(m), m.A.adjoint(m.y)], 1)


def _refined(model: Denoiser) -> RefinedDenoiser:
    if not isinstance(model, RefinedDenoiser):
        raise RecipeError("refine trains a network beside a prior in closed form")
    return model
