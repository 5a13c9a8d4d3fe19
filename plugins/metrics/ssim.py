"""Structural similarity."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from invem import Metric, Outcome, Unsupported

CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class SSIM(Metric):
    """Mean structural similarity, in [-1, 1].

    It is eq. 13 of Z. Wang et al. (IEEE Trans. Image Process. 13, 2004), with K1 = 0.01, K2 = 0.03,
    and the dynamic range L the width of the range of signals. The Gaussian window has 11 x 11
    pixels and a standard deviation of 1.5 pixels. The average is over the windows that fit in the
    image, and over channels. An image less than 11 pixels high or wide gets the largest odd window
    that fits.

    Attributes:
        of: "mean" is for the posterior mean (of the K draws, or exact where it is known), "draw" is
            the average over draws of the similarity of each.
    """

    of: Literal["mean", "draw"] = "mean"
    needs: ClassVar[frozenset[str]] = frozenset({"truth", "draws", "image"})
    default: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True

    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns similarities, shape (N,).

        Raises:
            Unsupported: If signals are not images of shape (C, H, W).
        """
        if outcome.truth is None or outcome.draws is None:
            raise Unsupported("ssim needs the truth and posterior draws")
        if outcome.truth.ndim != 4:
            raise Unsupported("ssim is for images of shape (channels, height, width)")
        low, high = outcome.range
        width = high - low
        x = outcome.estimate()[:, None] if self.of == "mean" else outcome.draws
        n, k = x.shape[:2]
        # Means are compared as luminances, which are not negative: the range begins at 0.
        a, b = x.flatten(0, 1) - low, outcome.truth.repeat_interleave(k, 0) - low
        values = [
            _similarity(a[i : i + CHUNK], b[i : i + CHUNK], width) for i in range(0, n * k, CHUNK)
        ]
        return torch.cat(values).reshape(n, k).mean(1)


def _similarity(a: Tensor, b: Tensor, width: float) -> Tensor:
    """Returns the mean similarity of each pair of images, shape (B,). a, b: (B, C, H, W)."""
    a, b = a.cpu().double(), b.cpu().double()
    _, c, h, w = a.shape

    def smooth(x: Tensor) -> Tensor:
        x = x.reshape(-1, 1, h, w)
        return conv2d(conv2d(x, _window(h)[None, None, :, None]), _window(w)[None, None, None])

    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a * mean_a, smooth(b * b) - mean_b * mean_b
    cov = smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * width) ** 2, (0.03 * width) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return (luminance * structure).reshape(len(a), c, -1).mean((1, 2)).float()


def _window(length: int) -> Tensor:
    """Returns the weights of the window along an axis of this length."""
    radius = min(5, (length - 1) // 2)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).double() / 1.5) ** 2)
    return weights / weights.sum()
