"""azula (https://azula.readthedocs.io): its denoisers and networks."""

from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le, MinLen
from torch import Tensor, nn

from invem import Denoiser, RecipeError, examples
from invem.denoiser import expand_level
from invem.errors import MissingExtra


class _Identity:
    """The schedule whose time is the noise level: x_t = x + t z."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t


class AzulaDenoiser(Denoiser):
    """A denoiser of azula, such as `azula.plugins.NAME.load_model` returns.

    azula's denoisers compute their coefficients from a schedule. It is replaced by alpha = 1, sigma
    = t, so that no noise level is inverted.

    Args:
        denoiser: An `azula.denoise.Denoiser`; its schedule is replaced.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.denoiser.schedule = _Identity()  # type: ignore[assignment]

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        out: Tensor = self.denoiser(x_t, expand_level(sigma, x_t).flatten().expand(len(x_t))).mean
        return out


class _Modulated(nn.Module):
    """A network of azula, modulated by features of the noise level."""

    def __init__(self, net: nn.Module, features: int, multiple: int) -> None:
        super().__init__()
        self.net, self.multiple = net, multiple
        self.register_buffer(
            "frequencies", torch.exp(torch.linspace(-1.5, 3.5, features // 2)), persistent=False
        )
        self.embed = nn.Sequential(
            nn.Linear(features, features), nn.SiLU(), nn.Linear(features, features)
        )

    def forward(self, x: Tensor, c_time: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = nn.functional.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        angle = c_time[:, None] / 4 * self.get_buffer("frequencies")
        out: Tensor = self.net(x, self.embed(torch.cat([angle.cos(), angle.sin()], 1)))
        return out[..., :height, :width]


@examples({"channels": [8, 8], "blocks": 1, "features": 16})
def azula(
    shape: tuple[int, ...],
    *,
    channels: Annotated[list[Annotated[int, Ge(1)]], MinLen(1)] = [32, 64],  # noqa: B006
    blocks: Annotated[int, Ge(1), Le(1_000)] = 2,
    denoiser: Literal["KarrasDenoiser", "SimpleDenoiser"] = "KarrasDenoiser",
    features: Annotated[int, Ge(2)] = 64,
    options: dict[str, Any] = {},  # noqa: B006
) -> Denoiser:
    """azula's UNet in one of azula's denoisers, for signals of standard deviation 1.

    For its trained denoisers use `AzulaDenoiser`.

    Args:
        shape: (C, H, W).
        channels: The width of each level, from the finest.
        blocks: Residual blocks per level.
        denoiser: The preconditioning, a class of `azula.denoise`.
        features: The number of features of the noise level, even.
        options: Further options of `azula.nn.unet.UNet`.
    """
    try:
        import azula.denoise
        from azula.nn.unet import UNet
    except (ImportError, RuntimeError) as error:
        raise MissingExtra("azula", error) from error
    if len(shape) != 3:
        raise RecipeError(
            "azula's UNet acts on images (channels, height, width), not on signals of shape"
            f" {shape}"
        )
    if features % 2:
        raise RecipeError(f"azula: features must be even, got {features}")
    sizes = {
        "hid_channels": tuple(channels),
        "hid_blocks": (blocks,) * len(channels),
        "mod_features": features,
    }
    try:
        net = UNet(shape[0], shape[0], **(sizes | options))
    except Exception as error:
        raise RecipeError(
            f"azula cannot build its UNet: {type(error).__name__}: {error}"
        ) from error
    built = getattr(azula.denoise, denoiser)(
        _Modulated(net, features, 2 ** (len(channels) - 1)), _Identity()
    )
    return AzulaDenoiser(built)
