"""M-step objectives: how a prior is fitted."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from invem.batched import Rng
from invem.denoiser import Denoiser, Wrapper
from invem.gaussian import Gaussian
from invem.measurement import Example, Measurement
from invem.prior import ClosedForm, Prior, closed_form

__all__ = [
    "ClosedFormObjective",
    "Fitting",
    "MakeNetwork",
    "Objective",
    "Observing",
    "ParameterGroup",
    "edm_weight",
    "noise_levels",
    "score_matching",
]

MakeNetwork = Callable[[], Denoiser]
"""Builds a new network of the recipe at each call."""


class ParameterGroup(NamedTuple):
    """Weights with one learning rate. The gradient of each group is clipped separately.

    Attributes:
        share: The learning rate as a share of that of the fit.
        parameters: The weights.
    """

    share: float
    parameters: list[nn.Parameter]


class Fitting(ABC):
    """The base of all M-steps: `Objective` trains, `ClosedFormObjective` solves.

    Attributes:
        needs: "x" if it learns from signals (posterior draws or a clean subset), "measurement" if
            from measurements; the capabilities that it needs of those; and those that the prior at
            the start of the round must have ("closed form", "moments").
    """

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """A class attribute, or a property if it depends on the options."""

    def refuses(self, shape: tuple[int, ...]) -> str | None:
        """Returns why it cannot fit signals of this shape, or None. `invem plan` calls it."""
        return None


class Objective(Fitting):
    """A training loss.

    Attributes:
        provides: The capabilities of the prior beyond E[x | x_t], as samplers and objectives need
            them ("conditional", "closed form").
        condition: The number of tensors of the signal's shape in the condition of the network. The
            network's option `condition` must be as large.
        learns: The quantity that its networks predict. Weights of an earlier phase are reused if
            they predict the same.
        compiles: Whether the model can be compiled. A compiled one has no second derivative.
        takes_examples: Whether it learns from its examples, and not from the prior before it alone.
    """

    provides: ClassVar[frozenset[str]] = frozenset()
    condition: ClassVar[int] = 0
    learns: ClassVar[str] = "signals"
    compiles: ClassVar[bool] = True
    takes_examples: ClassVar[bool] = True

    def build(
        self, make_network: MakeNetwork, prior: Prior | None, m: Measurement | None
    ) -> Denoiser:
        """Returns the model to train: a network, or a module around one or several.

        Args:
            make_network: Builds a network of the recipe.
            prior: The prior at the start of the round, if there is one. None if the weights and
                buffers of the model are loaded afterwards.
            m: The training measurements. None if the weights are loaded afterwards.
        """
        return make_network()

    @abstractmethod
    def loss(self, model: Denoiser, batch: Example, rng: Rng) -> Tensor:
        """Returns one loss per sample, shape (B,). rng: B streams.

        An example with x and no measurement is an image of the clean subset. An objective on
        measurements fits it as such.
        """

    def parameter_groups(self, model: Denoiser) -> list[ParameterGroup]:
        """Returns the trained weights, in groups."""
        return [ParameterGroup(1.0, [w for w in model.parameters() if w.requires_grad])]

    def prior(self, model: Denoiser, moments: Gaussian | None) -> Prior:
        """Returns the trained model as a prior. moments: those of the training signals."""
        return Prior(model, moments)


class ClosedFormObjective(Fitting):
    """A fit in closed form."""

    @abstractmethod
    def solve(
        self, prior: Prior, batches: Callable[[], Iterable[tuple[Example, Rng]]]
    ) -> ClosedForm:
        """Returns the best distribution.

        Args:
            prior: The prior at the start of the round; a standard normal if there is none.
            batches: Each call passes once over the data.
        """

    def closed_form(self, tensors: Mapping[str, Tensor]) -> ClosedForm:
        """Rebuilds the result of `solve` from its `tensors()`."""
        return closed_form(tensors)


class Observing(Wrapper):
    """A network that carries the training measurements during training.

    Losses that measure signals anew use the operator and the noise of a random training
    observation.

    Args:
        network: The network.
        observations: The training measurements; None if weights are loaded afterwards.
    """

    def __init__(self, network: Denoiser, observations: Measurement | None) -> None:
        super().__init__(network)
        self.observations = observations

    def chosen(self, u: Tensor, own: Measurement | None) -> Measurement | None:
        """Returns a training measurement for each uniform number u, shape (B,), on the CPU.

        It returns `own` if there are no training measurements.
        """
        if self.observations is None:
            return own
        return self.observations[(u * len(self.observations)).long()]


def noise_levels(
    rng: Rng, x: Tensor, p_mean: float = -1.2, p_std: float = 1.2, least: Tensor | float = 0.0
) -> Tensor:
    """Draws one noise level per sample, shape (B, 1, ...).

    log sigma ~ N(p_mean, p_std^2) given sigma > least. This is the distribution of EDM (Karras et
    al. 2022, arXiv 2206.00364, table 1). It is truncated below at the noise of the data for
    objectives that cannot learn lower levels.

    Args:
        rng: B streams.
        x: A batch of signals, for shape, dtype and device.
        p_mean: The mean of log sigma.
        p_std: The standard deviation of log sigma.
        least: One level, or one per sample: (B,) or (B, 1, ...).
    """
    z = rng.normal(1, dtype=torch.float64).to("cpu")
    floor = torch.as_tensor(least).cpu().double().reshape(-1, 1)
    if bool((floor > 0).any()):
        # A normal given z > c mirrors one given z < -c, whose distribution function is precise in
        # floating point.
        share = torch.special.ndtr(-(floor.log() - p_mean) / p_std)
        z = torch.where(
            floor > 0, -torch.special.ndtri((share * torch.special.ndtr(-z)).clamp(min=1e-300)), z
        )
    return (p_mean + p_std * z).exp().maximum(floor).reshape(-1, *[1] * (x.ndim - 1)).to(x)


def edm_weight(denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """Returns (sigma^2 + s^2)/(sigma s)^2 with s the denoiser's `sigma_data` (EDM, table 1).

    With it, the loss is that of the network output at unit scale.
    """
    data = denoiser.sigma_data
    return (sigma**2 + data**2) / (sigma * data) ** 2


def score_matching(
    denoiser: Denoiser,
    x: Tensor,
    sigma: Tensor,
    weight: Tensor,
    rng: Rng,
    cond: Tensor | None = None,
) -> Tensor:
    """Returns the denoising score matching loss (Vincent 2011), shape (B,).

    It is w |D(x + sigma z, sigma) - x|^2 / d for each sample.

    Args:
        denoiser: D.
        x: Signals, shape (B, *shape).
        sigma: Noise levels, shape (B, 1, ...).
        weight: w, shape (B, 1, ...).
        rng: B streams.
        cond: The condition of the network, shape (B, condition, *shape).
    """
    error = denoiser(x + sigma * rng.normal_like(x), sigma, cond) - x
    return torch.mean((weight * error.square()).flatten(1), dim=1)
