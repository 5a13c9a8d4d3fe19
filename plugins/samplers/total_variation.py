"""Total variation: the classical restoration that preserves edges."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from invem import Measurement, PosteriorSampler, Prior, Rng
from invem.likelihood import largest_singular_value
from invem.linalg import warn_once

_EVERY = 10  # iterations between evaluations of the duality gap


@dataclass(frozen=True, kw_only=True)
class TotalVariation(PosteriorSampler):
    """Total variation restoration (Rudin, Osher & Fatemi 1992), for linear A and Gaussian noise.

    It minimises |S^-1/2 (y - A x)|^2/2 + weight TV(x). TV sums the length of the forward
    differences D x over the entries. The differences run along the last two axes of a signal
    (isotropic, each channel by itself), or along its only axis. They are zero across the border.

    The solver is the primal-dual method of Chambolle & Pock (J. Math. Imaging Vis. 40, 2011,
    algorithm 1, theta = 1) with both terms dualised. K = (S^-1/2 A/a, D/b) has a norm of at most
    sqrt(2). a is the norm of S^-1/2 A of each sample, by power iteration, plus one per cent. b =
    sqrt(4 axes) bounds the norm of D. The steps are tau = 0.99/(sqrt(2) rho) and sigma = 0.99
    rho/sqrt(2), with rho = 3 max(a, b weight), the ratio of the sizes of the dual variables and x.

    A sample stops when its duality gap is below `tol` times its objective, tested every 10
    iterations. The gap is over the signals of at most twice the largest value of the iterate. If
    the minimiser is among them, the objective is within that gap of its minimum. The standard
    deviation of the noise counts as at least 0.001.

    Attributes:
        weight: The weight of TV: nats per jump of one unit of the data.
        tol: The relative duality gap at which a sample stops.
        iterations: The largest number of iterations, each an application of A and of its adjoint.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "var"})
    uses_prior: ClassVar[bool] = False

    weight: Annotated[float, Gt(0)] = 2.0
    tol: Annotated[float, Gt(0)] = 3e-3
    iterations: Annotated[int, Ge(1), Le(1_000_000)] = 1000

    @torch.no_grad()
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        m = m.floored(1e-3)
        a = 1.01 * largest_singular_value(m).clamp(min=1e-12)
        axes = range(-min(len(m.shape), 2), 0)
        b = math.sqrt(4 * len(axes))
        radius, rho = self.weight * b, 3 * a.clamp(min=self.weight * b)
        (a_x, rho_x), (a_y, rho_y) = (
            (_wide(a, n), _wide(rho, n)) for n in (len(m.shape), m.y.ndim - 1)
        )
        white = m.noise.var().expand_as(m.y).rsqrt() * (1.0 if m.A.seen is None else m.A.seen)
        target, step = white * m.y / a_y, 0.99 / math.sqrt(2)
        x = last = m.A.adjoint(white * target) / a_x
        p, q = torch.zeros_like(m.y), torch.zeros_like(_differences(x, axes))
        live = torch.ones_like(a_x, dtype=torch.bool)
        gap = torch.full_like(a, math.inf)
        for k in range(1, self.iterations + 1):
            ahead = 2 * x - last
            p = (p + step * rho_y * (white * m.A(ahead) / a_y - target)) / (
                1 + step * rho_y / a_y**2
            )
            q = q + step * rho_x[:, None] * _differences(ahead, axes) / b
            q = q / (q.norm(dim=1, keepdim=True) / radius).clamp(min=1)
            slope = m.A.adjoint(white * p) / a_x + _differences_adjoint(q, axes) / b
            last, x = x, torch.where(live, x - step / rho_x * slope, x)
            if k % _EVERY == 0:
                misfit = _total((a_y * (white * m.A(x) / a_y - target)).square()) / 2
                primal = misfit + self.weight * _total(_differences(x, axes).norm(dim=1))
                reach = 2 * x.flatten(1).abs().amax(1, keepdim=True)
                dual = (
                    -_total((p / a_y).square()) / 2
                    - _total(p * target)
                    - reach * _total(slope.abs())
                )
                gap = (primal - dual) / primal.clamp(min=1e-30)
                live = live & _wide(primal - dual > self.tol * primal, len(m.shape))
                if not bool(live.any()):
                    break
        if bool(live.any()):
            warn_once(
                "total-variation",
                f"stopped after {self.iterations} iterations in {int(live.sum())} of {len(m)}"
                f" signals, at a relative duality gap of up to {float(gap.max()):.1e}, not"
                f" {self.tol:.0e}",
                "raise `iterations` or `tol`",
            )
        return x


def _wide(t: Tensor, axes: int) -> Tensor:
    """Returns one number per sample as (B, 1, ...), with as many axes after B."""
    return t.reshape(-1, *[1] * axes)


def _total(t: Tensor) -> Tensor:
    """Returns the sum over each sample, shape (B, 1), float64 (float32 on MPS)."""
    return t.flatten(1).sum(
        1, keepdim=True, dtype=torch.float32 if t.device.type == "mps" else torch.float64
    )


def _differences(x: Tensor, axes: range) -> Tensor:
    """Returns the forward differences along each axis, shape (B, axes, *shape).

    They are zero across the border.
    """
    return torch.stack(
        [
            torch.cat([x.diff(dim=axis), torch.zeros_like(x.narrow(axis, 0, 1))], axis)
            for axis in axes
        ],
        1,
    )


def _differences_adjoint(q: Tensor, axes: range) -> Tensor:
    """Returns the adjoint of `_differences`. q: (B, axes, *shape); returns (B, *shape)."""
    whole = torch.zeros_like(q[:, 0])
    for k, axis in enumerate(axes):
        inner = q[:, k].narrow(axis, 0, q.shape[axis] - 1)
        border = torch.zeros_like(q[:, k].narrow(axis, 0, 1))
        whole = whole + torch.cat([border, inner], axis) - torch.cat([inner, border], axis)
    return whole
