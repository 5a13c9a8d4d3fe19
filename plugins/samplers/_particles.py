"""Resampling for sequential Monte Carlo, one filter for each observation."""

import torch
from torch import Tensor

from invem.batched import Rng

__all__ = ["choose", "resample"]


def resample(log_weights: Tensor, rng: Rng, threshold: float = 0.5) -> tuple[Tensor, Tensor]:
    """Resamples the filters whose effective number of particles is below `threshold` K.

    The resampling is systematic.

    Args:
        log_weights: Shape (B, K), float64. The particles of an observation are K rows of a flat
            batch (B K, ...).
        rng: B streams; one uniform number per observation.
        threshold: Between 0 and 1.

    Returns:
        The rows of the flat batch that survive, (B K,), and their new log weights, (B, K).
    """
    b, k = log_weights.shape
    w = log_weights.softmax(1)
    low = 1 / w.square().sum(1, keepdim=True) < threshold * k
    at = (torch.arange(k, device=w.device) + rng.uniform(1, dtype=torch.float64).to(w)) / k
    found = torch.searchsorted(w.cumsum(1), at.contiguous()).clamp(max=k - 1)
    own = torch.arange(k, device=w.device).expand(b, k)
    rows = torch.where(low, found, own) + k * torch.arange(b, device=w.device)[:, None]
    return rows.flatten(), torch.where(
        low, 0.0, log_weights - log_weights.logsumexp(1, keepdim=True)
    )


def choose(log_weights: Tensor, rng: Rng) -> Tensor:
    """Draws one particle of each filter by its weight.

    Args:
        log_weights: Shape (B, K).
        rng: B streams.

    Returns:
        Rows of the flat batch, shape (B,).
    """
    b, k = log_weights.shape
    w = log_weights.softmax(1).cumsum(1)
    found = torch.searchsorted(w, rng.uniform(1, dtype=torch.float64).to(w) * w[:, -1:]).clamp(
        max=k - 1
    )
    return found[:, 0] + k * torch.arange(b, device=w.device)
