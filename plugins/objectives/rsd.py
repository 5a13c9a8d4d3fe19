"""Restoration score distillation: a one-step generator from a prior learned from observations."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.func import functional_call

from invem import Denoiser, Example, Gaussian, Measurement, Objective, Prior, RecipeError, Rng
from invem.denoiser import expand_level
from invem.objective import MakeNetwork, ParameterGroup, edm_weight, noise_levels, score_matching


@dataclass(frozen=True, kw_only=True)
class RSD(Objective):
    """Restoration score distillation (arXiv 2505.13377) of the prior into a one-step generator.

    It uses score identity distillation (arXiv 2404.04057). The prior at the start of the round is
    the teacher f. The generator x = G(z) is fitted so that x + sigma z' has the same distribution
    as under the teacher, at every level sigma above `least`. A second network g learns E[x | x_t]
    under the generator by denoising score matching on its signals. Posterior samplers then use g as
    the denoiser. With D = f(x_t) - g(x_t) and x_t = G(z) + sigma z' the generator descends

        w ((1 - alpha) |D|^2 + D.(g(x_t) - G(z))) / d.

    For alpha = 0 and an exact g its mean is w |D|^2 / d, the Fisher divergence of the two
    distributions at sigma. Gradients flow through f, g and x_t to G alone; the dependence of g on G
    is ignored. On a Gaussian, alpha = 1 always moves mean and standard deviation towards those of
    the teacher. The published alpha = 1.2 is faster if G is too narrow, and moves away from them if
    it is far too wide (`tests/test_distillation.py` has both).

    A teacher that knows E[x | x_t] only above the noise of the data is enough, such as
    `ambient-tweedie` without its consistency term. The distributions of x + sigma z' at those
    levels determine that of x. Give that noise as `least`. Samples of the generator can then be
    better than those of the teacher, whose reverse diffusion must use levels that it did not learn.

    Three differences from the publication. g is fitted to the generator's signals, not to
    measurements of them; if the teacher is E[x | x_t] (after dsm, ambient-tweedie, EM), the
    minimiser is the same and the variance lower. The networks take their steps together, g faster
    (`pace`), and not in turn. The weight is that of EDM, a function of sigma alone, and not the
    error of each sample, which depends on the quantity it weights.

    The observations are not used: the teacher holds all that is known of them. G(z) = net(mean + s
    z, s) with s = `init_sigma`. Both networks are like the teacher's, and start from its weights if
    it is a network.

    Attributes:
        alpha: The share of |D|^2 that is subtracted.
        init_sigma: s, the noise level at which the generator is called, in units of the data (2.5,
            as in arXiv 2404.04057).
        least: The lowest level at which the teacher is evaluated, in units of the data.
        pace: The learning rate of the generator as a share of that of the denoiser, which must keep
            up with it.
        p_mean: The mean of log sigma before truncation at `least`, sigma in units of the data.
        p_std: The standard deviation of log sigma before truncation.
    """

    alpha: Annotated[float, Ge(0)] = 1.0
    init_sigma: Annotated[float, Gt(0)] = 2.5
    least: Annotated[float, Ge(0)] = 0.0
    pace: Annotated[float, Gt(0)] = 0.2
    p_mean: float = -1.2
    p_std: Annotated[float, Gt(0)] = 1.2

    needs: ClassVar[frozenset[str]] = frozenset({"measurement", "moments"})
    takes_examples: ClassVar[bool] = False

    def build(
        self, make_network: MakeNetwork, prior: Prior | None, m: Measurement | None
    ) -> Denoiser:
        teacher = None if prior is None else prior.denoiser
        return Distilled(make_network(), make_network(), self.init_sigma, teacher)

    def parameter_groups(self, model: Denoiser) -> list[ParameterGroup]:
        pair = _pair(model)
        rates = ((1.0, pair.student), (self.pace, pair.generator))
        return [
            ParameterGroup(rate, [w for w in part.parameters() if w.requires_grad])
            for rate, part in rates
        ]

    def prior(self, model: Denoiser, moments: Gaussian | None) -> Prior:
        return Prior(model, moments, generator=_pair(model).draw)

    def loss(self, model: Denoiser, batch: Example, rng: Rng) -> Tensor:
        pair = _pair(model)
        student, teacher = pair.student, pair.teacher
        if batch.measurement is None or teacher is None:
            raise RecipeError("rsd learns from the prior before it, in a phase on observations")
        m = batch.measurement
        x = pair.generated(rng.normal(*m.shape).to(m.y))
        sigma = noise_levels(rng, x, self.p_mean, self.p_std)
        known = score_matching(student, x.detach(), sigma, edm_weight(student, sigma), rng)

        sigma = noise_levels(rng, x, self.p_mean, self.p_std, self.least)
        x_t = x + sigma * rng.normal_like(x)
        fixed = {name: weight.detach() for name, weight in student.named_parameters()}
        x_hat: Tensor = functional_call(student, fixed, (x_t, sigma))
        gap = teacher(x_t, sigma) - x_hat
        inner = (1 - self.alpha) * gap.square() + gap * (x_hat - x)
        return known + torch.mean((edm_weight(student, sigma) * inner).flatten(1), dim=1)


class Distilled(Denoiser):
    """A one-step generator and the denoiser of its distribution.

    Args:
        student: E[x | x_t] under the distribution of the generator.
        generator: G, as a function of mean + s z and s.
        init_sigma: s, the noise level at which the generator is called, in units of the data.
        teacher: The denoiser that is distilled; None if weights are loaded afterwards.
    """

    init_sigma: Tensor

    def __init__(
        self,
        student: Denoiser,
        generator: Denoiser,
        init_sigma: float,
        teacher: Denoiser | None = None,
    ) -> None:
        super().__init__()
        self.student, self.generator = student, generator
        self.mean = student.mean
        self.register_buffer("init_sigma", torch.tensor(init_sigma))
        # In a list, so that the module does not register, train or store it.
        self._taught = [] if teacher is None else [teacher]

    @property
    def teacher(self) -> Denoiser | None:
        """The denoiser that is distilled."""
        return self._taught[0] if self._taught else None

    @property
    def sigma_data(self) -> float:
        return self.student.sigma_data

    def generated(self, z: Tensor) -> Tensor:
        """Returns G(z), shape (B, *shape). z: standard normal, (B, *shape)."""
        out: Tensor = self.generator(
            self.mean + self.init_sigma * z, expand_level(self.init_sigma, z)
        )
        return out

    def draw(self, rng: Rng, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Draws the prior in one call, one signal per stream, shape (B, *shape)."""
        return self.generated(rng.normal(*shape).to(like))

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        out: Tensor = self.student(x_t, sigma)
        return out


def _pair(model: Denoiser) -> Distilled:
    if not isinstance(model, Distilled):
        raise RecipeError("rsd trains two networks, and was given one")
    return model
