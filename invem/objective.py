"""M-step objectives: what the denoiser is fitted to."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from invem.batched import Rng
from invem.denoiser import Denoiser
from invem.errors import Unsupported
from invem.measurement import Example, Measurement

__all__ = ["Objective", "edm_weight", "matching", "noise_levels"]


class Objective(ABC):
    """A training loss, or a closed-form fit. A concrete objective overrides `loss`, `solve`, or
    both.

    Attributes:
        needs: "x" if it learns from signals (posterior draws or granted clean images),
            "measurement" if from measurements, and the capabilities that it calls on those; "closed
            form" if the prior that the round begins with must be a Gaussian or a mixture, "moments"
            if there must be one at all.
        provides: What the denoiser can then do beyond E[x | x_t]: "conditional" if it knows E[x |
            x_t, y], "interpolant" if it is one, "closed form" if the prior beside the network is a
            Gaussian or a mixture.
        condition: How many tensors of the signal's shape it gives the network as a condition; the
            network's option `condition` must be as large.
        networks: How many networks of one kind it trains together: `wrap` is given that many, as
            `Several`, if it is more than one.
    """

    provides: ClassVar[frozenset[str]] = frozenset()
    condition: ClassVar[int] = 0
    networks: ClassVar[int] = 1

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """A class attribute, or a property where it depends on the options."""

    def loss(self, denoiser: Denoiser, batch: Example, rng: Rng) -> Tensor:
        """Returns one loss a sample, shape (B,). rng: B streams.

        An example with x and no measurement is a clean image that the recipe grants: an objective
        on measurements fits it as such.
        """
        raise Unsupported(f"{type(self).__name__} has no loss: it is solved in closed form")

    def solve(
        self, denoiser: Denoiser, batches: Callable[[], Iterable[tuple[Example, Rng]]]
    ) -> Denoiser:
        """Returns the denoiser that is best in closed form. `batches()` passes once over the
        data."""
        raise Unsupported(f"{type(self).__name__} has no closed form: it is trained by its loss")

    def wrap(
        self, denoiser: Denoiser, m: Measurement | None, before: Denoiser | None = None
    ) -> Denoiser:
        """Returns what stands for the prior where the network is not itself E[x | x_t]: a module
        around it.

        Args:
            denoiser: The network, before it is trained.
            m: The training measurements; None where the weights, and all buffers, are loaded
                afterwards.
            before: The prior that the round begins with, if there is one; None where the weights
                are loaded.
        """
        return denoiser

    def rates(
        self, denoiser: Denoiser, parameters: list[nn.Parameter]
    ) -> list[tuple[float, list[nn.Parameter]]]:
        """Returns the parameters in groups, each with its share of the learning rate; the gradient
        of each group is clipped by itself."""
        return [(1.0, parameters)]

    def refuses(self, shape: tuple[int, ...]) -> str | None:
        """Returns why it cannot fit signals of this shape, None if it can; `invem plan` asks."""
        return None

    @property
    def closed_form(self) -> bool:
        """Whether `solve` is to be used."""
        return type(self).solve is not Objective.solve


def noise_levels(
    rng: Rng, x: Tensor, p_mean: float = -1.2, p_std: float = 1.2, least: Tensor | float = 0.0
) -> Tensor:
    """Draws one noise level a sample, log sigma ~ N(p_mean, p_std^2) given sigma > least, shape (B,
    1, ...).

    The law of EDM (Karras et al. 2022, arXiv 2206.00364, table 1), cut off below at the noise of
    the data for objectives that know nothing of lower levels.

    Args:
        rng: B streams.
        x: A batch of signals, for shape, dtype and device.
        p_mean: The mean of log sigma.
        p_std: The standard deviation of log sigma.
        least: One level, or one for each sample: (B,) or (B, 1, ...).
    """
    z = rng.normal(1, dtype=torch.float64).to("cpu")
    floor = torch.as_tensor(least).cpu().double().reshape(-1, 1)
    if bool((floor > 0).any()):
        # A normal given z > c is symmetric to one given z < -c, whose distribution function keeps
        # its digits.
        share = torch.special.ndtr(-(floor.log() - p_mean) / p_std)
        z = torch.where(
            floor > 0, -torch.special.ndtri((share * torch.special.ndtr(-z)).clamp(min=1e-300)), z
        )
    return (p_mean + p_std * z).exp().maximum(floor).reshape(-1, *[1] * (x.ndim - 1)).to(x)


def edm_weight(denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """Returns (sigma^2 + s^2)/(sigma s)^2 with s the denoiser's `sigma_data` (EDM, table 1): the
    loss of the network at its own scale."""
    data = float(getattr(denoiser, "sigma_data", 0.5))
    return (sigma**2 + data**2) / (sigma * data) ** 2


def matching(
    denoiser: Denoiser,
    x: Tensor,
    sigma: Tensor,
    weight: Tensor,
    rng: Rng,
    cond: Tensor | None = None,
) -> Tensor:
    """Returns w |D(x + sigma z, sigma) - x|^2 / d for each sample, shape (B,): denoising score
    matching (Vincent 2011).

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
