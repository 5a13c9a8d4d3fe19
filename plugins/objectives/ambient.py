"""Ambient Diffusion: the measured pixels are predicted from fewer of them."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from invem import (
    Denoiser,
    Example,
    Mask,
    Measurement,
    Objective,
    Preconditioned,
    Prior,
    RecipeError,
    Rng,
    Unsupported,
)
from invem.denoiser import Wrapper, expand_level
from invem.objective import MakeNetwork, edm_weight, noise_levels

_HIDDEN = 1e6  # the noise level of a hidden pixel, in place of infinity


@dataclass(frozen=True, kw_only=True)
class Ambient(Objective):
    """Ambient Diffusion (arXiv 2305.19256), for masks S that differ between observations.

    Daras et al. 2023, eq. 3.2. The loss is

        E w |S (D(M x_t, sigma, M) - y)|^2 / d.

    M shows the pixels of S except a share `delta`. The network is given M x_t and M and predicts
    all measured pixels. If, given M, S shows each pixel in some observations, the minimiser is E[x
    | M x_t, M] in all pixels. A pixel that no S containing M shows stays undetermined: one that no
    observation shows, or the other half if S are halves.

    With noise s_y in y, x_t = y + sqrt(sigma^2 - s_y^2) z for sigma > s_y. In the pixels of M the
    residual is that of Ambient Tweedie (Daras et al. 2024, arXiv 2404.10177), a D + (1 - a) x_t - y
    with a = 1 - s_y^2/sigma^2. There the noise of y is a part of the noise of x_t, so that E[y |
    x_t] is not E[x | x_t]. In a pixel that M hides, the noise is independent of the input of the
    network, and D - y is unbiased. The corrected residual would be unbiased too, with the noise
    s_y^2/a in place of s_y^2. Nothing is learned of levels below s_y: there the network
    extrapolates.

    The distribution and the weight of sigma are those of EDM (arXiv 2206.00364, table 1), truncated
    below at s_y. A departure: a hidden pixel has the weight, and in `AmbientDenoiser` the scale, of
    an infinite level. The published code uses those of sigma. At small sigma that asks the network
    for outputs of order 1/sigma with weights of order 1/sigma^2.

    `target: given` is Measurement Score-based Diffusion (MSM, Park et al. 2025, arXiv 2505.11853).
    The loss is on the pixels of M alone: the network denoises them and fills in nothing. With
    `delta: 0` M is all of S, as published. The SURE term of MSM below s_y is left out.

    Clean images are fitted with masks of independent pixels. Each has the density of one of the
    denoiser's masks.

    Attributes:
        delta: The share of the measured pixels that the network is not given.
        target: Whether the loss is on all measured pixels ("seen") or only on those that the
            network is given ("given").
        masks: The number of masks over which the stored denoiser averages (`AmbientDenoiser`), one
            network call each. With `target: given` there are more if these do not show every pixel.
        p_mean: The mean of log sigma before truncation, sigma in units of the data.
        p_std: The standard deviation of log sigma before truncation.
    """

    delta: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    target: Literal["seen", "given"] = "seen"
    masks: Annotated[int, Ge(1)] = 4
    p_mean: float = -1.2
    p_std: Annotated[float, Gt(0)] = 1.2

    needs: ClassVar[frozenset[str]] = frozenset({"measurement", "mask", "normal"})
    condition: ClassVar[int] = 1

    def loss(self, model: Denoiser, batch: Example, rng: Rng) -> Tensor:
        m, x = batch.measurement, batch.x
        if m is not None:
            y, seen = m.y, _seen(m)
            var = m.noise.var().to(y) * seen
            given = self._fewer(seen, rng)
        elif x is not None:
            y, seen, var = x, torch.ones_like(x), torch.zeros_like(x)
            given = self._like_those_of(model, x, rng)
        else:
            raise RecipeError("ambient was given neither measurements nor clean images")
        sigma = noise_levels(rng, y, self.p_mean, self.p_std, var.flatten(1).amax(1).sqrt())
        x_t = y + (sigma**2 - var).clamp(min=0).sqrt() * rng.normal_like(y)
        x_hat = model(_hide(x_t, given, model.mean), sigma, given.expand_as(y)[:, None])
        a = 1 - given * var / sigma**2
        weight = edm_weight(model, torch.where(given > 0, sigma, _HIDDEN)) * (
            seen if self.target == "seen" else given
        )
        return torch.mean((weight * (a * x_hat + (1 - a) * x_t - y).square()).flatten(1), dim=1)

    def build(
        self, make_network: MakeNetwork, prior: Prior | None, m: Measurement | None
    ) -> Denoiser:
        return AmbientDenoiser(make_network(), torch.zeros(0) if m is None else self._chosen(m))

    def _fewer(self, seen: Tensor, rng: Rng) -> Tensor:
        return seen * (rng.uniform(*seen.shape[1:]).to(seen) >= self.delta)

    def _like_those_of(self, model: Denoiser, x: Tensor, rng: Rng) -> Tensor:
        """Returns masks of independent pixels, each with the density of one of the model's masks.

        The density is 1 - delta if the model has no masks.
        """
        if not isinstance(model, AmbientDenoiser) or not len(model.masks):
            return self._fewer(torch.ones_like(x), rng)
        known = model.masks
        pick = (rng.uniform(1)[:, 0] * len(known)).long().to(known.device)
        density = known.flatten(1).mean(1)[pick].to(x).reshape(-1, *[1] * (x.ndim - 1))
        return (rng.uniform(*known.shape[1:]).to(x) < density).to(x)

    def _chosen(self, m: Measurement) -> Tensor:
        """Returns masks distributed as M, shape (K, ...).

        They are chosen greedily among some hundreds: each shows most of what the ones before hide.
        """
        generator = Rng.generator("ambient", len(m))
        few = max(self.masks, min(512, 2**24 // math.prod(m.shape)))
        seen = _seen(m[torch.randperm(len(m), generator=generator)[:few].to(m.y.device)]).cpu()
        candidates = seen * (torch.rand(seen.shape, generator=generator) >= self.delta)
        shown, times = candidates.amax(0) > 0, torch.zeros_like(candidates[0], dtype=torch.float64)
        chosen: list[Tensor] = []
        while len(chosen) < self.masks or (
            self.target == "given" and bool((shown & (times == 0)).any())
        ):
            news = (candidates * (1 / times.numel()) ** times).flatten(1).sum(1)
            chosen.append(candidates[news.argmax()])
            times = times + chosen[-1]
        return torch.stack(chosen).to(m.y)


class AmbientDenoiser(Wrapper):
    """The mean of E[x | M x_t, M] over K masks M.

    It stands for E[x | x_t], which cannot be learned from masked data. Each pixel is averaged over
    the masks that show it, or over all if none does. Masks that hide a pixel know nothing of its
    x_t. Averaging over them too would take variance from the samples, more with more masks.

    One mask is the sampler of Ambient Diffusion (arXiv 2305.19256, eq. 3.3). The average over the
    masks that show a pixel is that of MSM (arXiv 2505.11853), which draws new masks at each step.
    Hidden pixels are set to the mean of the moments, so that the network sees zeros.

    Args:
        network: The network. It is given one mask, 1 where x_t is shown.
        masks: Shape (K, ...), broadcastable to (K, *shape); empty if they are loaded afterwards.
    """

    masks: Tensor

    def __init__(self, network: Denoiser, masks: Tensor) -> None:
        super().__init__(network)
        self.register_buffer("masks", masks)

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """Returns the mean over the masks, shape (B, *shape).

        With `cond`, one mask of shape (B, 1, *shape), returns the prediction given that mask.
        """
        if cond is not None:
            return self._one(x_t, sigma, cond[:, 0])
        masks = [mask.to(x_t).expand(x_t.shape) for mask in self.masks]
        total, shown = torch.zeros_like(x_t), sum(masks, torch.zeros_like(x_t))
        for mask in masks:
            total = total + torch.where(shown > 0, mask, 1.0) * self._one(x_t, sigma, mask)
        return total / torch.where(shown > 0, shown, len(masks))

    def _one(self, x_t: Tensor, sigma: Tensor | float, mask: Tensor) -> Tensor:
        x_hat: Tensor = self.network(_hide(x_t, mask, self.mean), sigma, mask[:, None])
        if not isinstance(self.network, Preconditioned):
            return x_hat
        scale = (1 + (self.sigma_data / expand_level(sigma, x_t)) ** 2).sqrt()
        return torch.where(mask > 0, x_hat, self.mean + scale * (x_hat - self.mean))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if (kept := state_dict.get(prefix + "masks")) is not None:
            self.masks = torch.empty_like(kept, device=self.masks.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _seen(m: Measurement) -> Tensor:
    if not isinstance(m.A, Mask):
        raise Unsupported(f"ambient needs an operator that is a mask, not {type(m.A).__name__}")
    return m.A.seen


def _hide(x: Tensor, mask: Tensor, mean: Tensor) -> Tensor:
    """Returns x with the mean in the pixels that the mask hides."""
    return torch.where(mask > 0, x, mean.to(x))
