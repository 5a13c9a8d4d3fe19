"""A denoiser of frames of any size, in tiles: memory is that of a tile and its surroundings."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from invem.denoiser import Denoiser, Wrapper, expand_level

__all__ = ["ALIGNED", "Tiled", "overlap_for", "reach"]

ALIGNED = 32
"""Windows begin at multiples of it, as the coarser levels of a network need it."""

_PROBED = 65  # pixels of the largest half window in which the reach of a network is looked for


class Tiled(Wrapper):
    """Another denoiser, called on overlapping windows of its input.

    A window is a tile and `overlap` pixels around it, less at the border of the frame. Half of the
    overlap is context alone. Over the other half, on both sides of a seam, the answers of the two
    windows are blended linearly. So the result is that of the whole frame, within rounding, if an
    output sees no further than `overlap / 2`. Networks that see further (by attention, or by a
    normalisation over space) have no visible seam.

    Where gradients are taken, each window is computed again on the way back, so that the graph of
    one window alone is kept.

    Args:
        network: The denoiser. It takes windows of any size.
        tile: The width of a tile, a multiple of 32.
        overlap: The pixels around it, a multiple of 32.
    """

    def __init__(self, network: Denoiser, tile: int = 256, overlap: int = 64) -> None:
        super().__init__(network)
        # Ramps of two seams must not meet.
        self.tile, self.overlap = max(tile, overlap), overlap

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        sides = x_t.shape[2:]
        parts = [list(_spans(n, self.tile, self.overlap)) for n in sides]
        if all(len(spans) == 1 for spans in parts):
            return super().forward(x_t, sigma, cond)
        level = expand_level(sigma, x_t)
        out = torch.zeros_like(x_t)
        for window in itertools.product(*parts):
            spans = [slice(first, last) for first, last, _ in window]
            where: tuple[slice, ...] = (slice(None), slice(None), *spans)
            inside: tuple[slice, ...] = (slice(None), *where)
            found = self._window(x_t[where], level, None if cond is None else cond[inside])
            for axis, (span, n) in enumerate(zip(window, sides, strict=True)):
                weight = _ramp(span, n, self.overlap).to(found)
                found = found * weight.reshape(-1, *[1] * (len(sides) - 1 - axis))
            out[where] += found
        return out

    def _window(self, x: Tensor, sigma: Tensor, cond: Tensor | None) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x, sigma, cond)
        found: Tensor = checkpoint(
            super().forward, x, sigma, cond, use_reentrant=False, preserve_rng_state=False
        )
        return found


def _spans(n: int, tile: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """Yields first and last + 1 of the windows of an axis, and where the tile begins."""
    for first in range(0, n, tile):
        before, last = max(first - overlap, 0), first + tile + overlap
        if last >= n:
            yield before, n, first
            return
        yield before, last, first


def _ramp(span: tuple[int, int, int], n: int, overlap: int) -> Tensor:
    """Returns the weights of the outputs of a window; those of all windows add up to one."""
    first, last, seam = span
    place = torch.arange(first, last, dtype=torch.float64) + 0.5
    weight = torch.ones(last - first, dtype=torch.float64)
    if seam:
        weight = ((place - seam + overlap / 2) / overlap).clamp(0, 1)
    if last < n:
        weight = weight * ((last - overlap / 2 - place) / overlap).clamp(0, 1)
    return weight


def reach(network: Denoiser, channels: int, axes: int = 2) -> int | None:
    """Returns how far an output of a denoiser sees, in pixels, by the gradient of one output; None
    if it is further than 64 pixels.

    Args:
        network: The denoiser, with its weights.
        channels: The channels of a signal.
        axes: The axes of space.
    """
    half = _PROBED if axes == 2 else _PROBED // 4
    device = network.mean.device
    x = torch.zeros(1, channels, *[2 * half + 1] * axes, device=device).requires_grad_()
    with torch.enable_grad():
        out = network(x + network.mean, 0.5)
        (grad,) = torch.autograd.grad(out[(0, slice(None), *[half] * axes)].sum(), x)
    seen = grad.abs().amax((0, 1)).nonzero()
    if not len(seen):
        return 0
    found = int((seen - half).abs().max())
    return None if found >= half - 1 else found


def overlap_for(network: Denoiser, channels: int, axes: int = 2) -> int:
    """Returns the overlap of tiles: twice what an output sees, and 64 where it sees far."""
    found = reach(network, channels, axes)
    if found is None:
        return 2 * ALIGNED
    return max(1, -(-2 * found // ALIGNED)) * ALIGNED
