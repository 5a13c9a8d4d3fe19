"""diffusers (https://huggingface.co/docs/diffusers): a UNet2DModel and its scheduler."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le, MinLen
from torch import Tensor, nn
from torch.nn.functional import pad

from invem import DataError, Denoiser, RecipeError, examples
from invem.denoiser import expand_level
from invem.errors import MissingExtra
from invem.hookspecs import FilePath


class DiffusersDenoiser(Denoiser):
    """A network with a discrete-time scheduler as a denoiser of x_t = x + sigma z, sigma > 0.

    Step t of the scheduler has the noise level sigma(t) = sqrt((1 -
    alphas_cumprod)/alphas_cumprod). Between steps, t is interpolated in log sigma; beyond the ends,
    it is the last. The network is given x_t/sqrt(1 + sigma^2). Its output is converted by its
    prediction type:

        epsilon        x_hat = x_t - sigma out
        sample         x_hat = out
        v_prediction   x_hat = x_t/(1 + sigma^2) - sigma out/sqrt(1 + sigma^2)

    The last is from Salimans & Ho 2022, arXiv 2202.00512.

    Args:
        unet: A module with ``forward(sample, timestep)`` whose result has a `sample`, such as
            UNet2DModel.
        scheduler: Any object with `alphas_cumprod`, (T,), and `config.prediction_type`.
        multiple: The network needs heights and widths that are multiples of it; others are padded
            and cropped.
    """

    levels: Tensor

    def __init__(self, unet: nn.Module, scheduler: Any, multiple: int = 1) -> None:
        super().__init__()
        self.unet, self.multiple = unet, multiple
        self.prediction: str = scheduler.config.prediction_type
        if self.prediction not in ("epsilon", "sample", "v_prediction"):
            raise RecipeError(
                "diffusers: the prediction type is epsilon, sample or v_prediction, got"
                f" {self.prediction}"
            )
        kept = scheduler.alphas_cumprod.double()
        self.register_buffer("levels", ((1 - kept) / kept).log().div(2).float(), persistent=False)

    def time(self, sigma: Tensor) -> Tensor:
        """Returns the step of each noise level, a float between 0 and T - 1. sigma: (B,)."""
        log = sigma.to(self.levels).log().clamp(self.levels[0], self.levels[-1])
        high = torch.searchsorted(self.levels, log).clamp(1, len(self.levels) - 1)
        low = high - 1
        return low + (log - self.levels[low]) / (self.levels[high] - self.levels[low])

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        sigma = expand_level(sigma, x_t)
        total = 1 + sigma**2
        height, width = x_t.shape[-2:]
        x = pad(x_t * total.rsqrt(), (0, -width % self.multiple, 0, -height % self.multiple))
        out: Tensor = self.unet(x, self.time(sigma.flatten().expand(len(x))).to(x.dtype)).sample[
            ..., :height, :width
        ]
        if self.prediction == "sample":
            return out
        return (
            x_t - sigma * out
            if self.prediction == "epsilon"
            else x_t / total - sigma * total.rsqrt() * out
        )


@examples({"channels": [8, 8], "groups": 4})
def diffusers(
    shape: tuple[int, ...],
    *,
    path: FilePath = "",
    channels: Annotated[list[Annotated[int, Ge(1)]], MinLen(1)] = [64, 128, 128],  # noqa: B006
    blocks: Annotated[int, Ge(1), Le(1_000)] = 2,
    attention: list[int] = [],  # noqa: B006
    groups: Annotated[int, Ge(1)] = 32,
    dropout: float = 0.0,
    prediction: Literal["epsilon", "sample", "v_prediction"] = "v_prediction",
    betas: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear",
) -> Denoiser:
    """A UNet2DModel of diffusers with its scheduler: new, or from a local directory.

    Nothing is downloaded.

    Args:
        shape: (C, H, W).
        path: A directory with `unet/` and `scheduler/`, as a pipeline saves them (safetensors). It
            replaces the other options.
        channels: The width of each level, from the finest.
        blocks: Residual blocks per level.
        attention: The levels (0 = finest) with self-attention.
        groups: The number of groups of the GroupNorm, which divides every width.
        dropout: The fraction of activations dropped in training.
        prediction: The prediction type of the network.
        betas: The noise schedule of a new DDPMScheduler, over 1,000 steps.
    """
    try:
        from diffusers import DDPMScheduler, UNet2DModel
    except (ImportError, RuntimeError) as error:
        raise MissingExtra("diffusers", error) from error
    if len(shape) != 3:
        raise RecipeError(
            f"diffusers acts on images (channels, height, width), not on signals of shape {shape}"
        )
    if path:
        if not Path(path, "unet").is_dir():
            raise DataError(f"{path}: not a directory of diffusers (it has no unet/)")
        try:
            unet = UNet2DModel.from_pretrained(
                path, subfolder="unet", local_files_only=True, use_safetensors=True
            )
            scheduler = DDPMScheduler.from_pretrained(
                path, subfolder="scheduler", local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: diffusers cannot load it: {' '.join(str(error).split())[:200]}"
            ) from error
        if unet.config.in_channels != shape[0]:
            raise RecipeError(
                f"diffusers: {path} is for {unet.config.in_channels} channels, the signals have"
                f" {shape[0]}"
            )
    else:
        if any(c % groups for c in channels):
            raise RecipeError(
                f"diffusers: groups must divide every one of channels, got {groups} and {channels}"
            )
        if any(not 0 <= i < len(channels) for i in attention):
            raise RecipeError(
                f"diffusers: attention names levels 0 to {len(channels) - 1}, got {attention}"
            )
        down = tuple(
            "AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(len(channels))
        )
        up = tuple(
            "AttnUpBlock2D" if i in attention else "UpBlock2D"
            for i in reversed(range(len(channels)))
        )
        unet = UNet2DModel(
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=tuple(channels),
            down_block_types=down,
            up_block_types=up,
            layers_per_block=blocks,
            norm_num_groups=groups,
            dropout=dropout,
            attention_head_dim=min(8, *channels) if len(channels) > 1 else min(8, channels[0]),
        )
        scheduler = DDPMScheduler(prediction_type=prediction, beta_schedule=betas)
    return DiffusersDenoiser(unet, scheduler, 2 ** (len(unet.config.block_out_channels) - 1))
