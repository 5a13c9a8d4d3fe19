"""Denoisers: modules (x_t, sigma) -> x_hat = E[x | x_t], with x_t = x + sigma z."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from invem.errors import PluginError

__all__ = ["Denoiser", "Preconditioned", "Wrapper", "expand_level"]


class Denoiser(nn.Module):
    """A model of E[x | x + sigma z] for every noise level sigma.

    Attributes:
        condition: The number of tensors of the signal's shape in `cond`; 0 if the model has no such
            input.
        mean: The centre of the signals for the network, shape (*shape) or (). It is set when the
            network is built, and is not stored with the weights.
    """

    condition: int = 0
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    @abstractmethod
    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """Returns x_hat, shape (B, *shape).

        Args:
            x_t: The state, shape (B, *shape).
            sigma: One level, (B,), or (B, 1, ...), in units of the data.
            cond: The condition of a conditional network, shape (B, condition, *shape); None is
                zeros.
        """

    @property
    def sigma_data(self) -> float:
        """The standard deviation of the signals around the mean, to which the network is scaled."""
        return 0.5


def expand_level(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Returns sigma as (1 or B, 1, ...), of the dtype and on the device of x."""
    return torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))


class Preconditioned(Denoiser):
    """EDM preconditioning around a network F(x, c_noise, cond) (arXiv 2206.00364, eq. 7).

    Karras et al. 2022.

        x_hat = mean + c_skip (x_t - mean) + c_out F(c_in (x_t - mean), log(sigma) / 4, cond)

    with c_skip = s^2/(s^2 + sigma^2), c_out = s sigma/sqrt(s^2 + sigma^2), c_in = 1/sqrt(s^2 +
    sigma^2), s = sigma_data. EDM has no mean; here the network sees centred signals.

    Args:
        backbone: F, which maps (B, *shape) and c_noise (B,) to (B, *shape).
        sigma_data: The standard deviation of the signals around the mean, in units of the data.
    """

    def __init__(self, backbone: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.backbone = backbone
        self._sigma_data = sigma_data
        self.condition = int(getattr(backbone, "condition", 0))

    @property
    def sigma_data(self) -> float:
        return self._sigma_data

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        sigma = expand_level(sigma, x_t)
        total = self._sigma_data**2 + sigma**2
        x = x_t - self.mean
        c_noise = (sigma.flatten().log() / 4).expand(len(x))
        out: Tensor = self.backbone(x * total.rsqrt(), c_noise, cond)
        if not isinstance(out, Tensor) or out.shape != x.shape or out.is_complex():
            kind, found = type(self.backbone), tuple(getattr(out, "shape", ()))
            raise PluginError(
                f"network {kind.__qualname__} of {kind.__module__}: it returned a value of type"
                f" {type(out).__name__} and shape {found}, not a tensor of shape {tuple(x.shape)}"
            )
        skipped = self.mean + self._sigma_data**2 / total * x
        return skipped + self._sigma_data * sigma * total.rsqrt() * out.to(x.dtype)


class Wrapper(Denoiser):
    """A module around a network, with the scale and the centre of the network.

    Args:
        network: The network.
    """

    def __init__(self, network: Denoiser) -> None:
        super().__init__()
        self.network = network
        self.mean = network.mean
        self.condition = network.condition

    @property
    def sigma_data(self) -> float:
        return self.network.sigma_data

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        out: Tensor = self.network(x_t, sigma, cond)
        return out
