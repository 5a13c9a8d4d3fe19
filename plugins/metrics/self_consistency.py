"""Self-consistency of the posterior sampler on simulated observations."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from invem import DataError, Measurement, Metric, Outcome, RecipeError, Rng, Unsupported, examples
from invem.compare import canonical_order, principal_components

CHUNK, SWAPS = 512, 32


@examples({"of": "spectrum"}, {"of": "marginals"})
@dataclass(frozen=True, kw_only=True)
class SelfConsistency(Metric):
    """Tests the sampler on simulated data: x from the prior, y ~ p(y | x), x' = sampler(y).

    It needs no clean signal. Given y, an exact sampler makes x' and x independent draws from the
    same posterior. (x', y) then has the distribution of (x, y), and swapping x' and x changes
    nothing. EM learns from such x', so errors compound over rounds. It does not measure the quality
    of the prior. The samples stand for the prior, so an error of the unconditional sampler also
    shows.

    "spectrum" and "marginals" subtract their mean over 32 random swaps of x' and x within pairs.
    Swaps have the same distribution under an exact sampler, so the expected value is exactly 0 for
    any number of pairs. By chance it may be negative.

    The ranks of simulation-based calibration (S. Talts et al. 2018, arXiv 1804.06788) are not used.
    With one draw per posterior the rank is whether x' < x, which is one half on average for too
    wide and too narrow posteriors alike.

    Attributes:
        of: "residual" is the mean of |y - A(x')|^2/sigma^2 over the entries of y that depend on x.
            1 is ideal, less fits noise, more contradicts y. "spectrum" is the largest |eigenvalue -
            1| of C^-1 C', the covariances of x and x' in the `rank` leading principal directions of
            both together, less the mean over swaps. "marginals" is the largest Kolmogorov-Smirnov
            distance between x and x' along these directions, less the mean over swaps. It also sees
            the mean and the weights of modes.
        rank: The number of directions, at most an eighth of the number of pairs.
    """

    of: Literal["residual", "spectrum", "marginals"] = "residual"
    rank: Annotated[int, Ge(1)] = 16
    above: ClassVar[str] = "draws of the sampler are not those of the posterior under its prior"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(
            {"simulated", "resimulated", "var"}
            if self.of == "residual"
            else {"samples", "resimulated"}
        )

    @property
    def least(self) -> Mapping[str, int]:
        return {} if self.of == "residual" else {"samples": 8, "resimulated": 8}

    @property
    def target(self) -> float:
        return 1.0 if self.of == "residual" else 0.0

    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns mean squared residuals, shape (at most n,), or a deviation, shape ().

        Residuals are in units of the noise variance, one per y with an entry that depends on x. A
        deviation is NaN if a draw is not finite.

        Raises:
            RecipeError: If the noise has variance 0 somewhere.
            DataError: If there are fewer than 8 pairs.
        """
        if (
            outcome.resimulated is None
            or (outcome.simulated if self.of == "residual" else outcome.samples) is None
        ):
            raise Unsupported(
                "self-consistency needs samples, simulated observations of them, and draws given"
                " those"
            )
        if self.of == "residual":
            assert outcome.simulated is not None
            return _residual(outcome.simulated, outcome.resimulated)
        assert outcome.samples is not None
        pairs = (
            torch.stack([outcome.samples[: len(outcome.resimulated)], outcome.resimulated], 1)
            .flatten(2)
            .cpu()
            .double()
        )
        if len(pairs) < 8:
            raise DataError("self-consistency needs at least 8 samples and draws")
        if not bool(pairs.isfinite().all()):
            return torch.tensor(math.nan)
        return _excess(
            pairs,
            min(self.rank, len(pairs) // 8),
            _spectrum if self.of == "spectrum" else _marginals,
        ).float()


def _residual(m: Measurement, x: Tensor) -> Tensor:
    """Returns the mean squared residual over measured entries, per y that has any.

    x: (n, *shape).
    """
    values = []
    for start in range(0, len(x), CHUNK):
        part, draw = m[start : min(start + CHUNK, len(x))], x[start : start + CHUNK]
        var = part.noise.var()
        if not bool((var > 0).all()):
            raise RecipeError(
                "self-consistency divides by the standard deviation of the noise, which is 0: leave"
                " `of: residual` out"
            )
        squares = (part.residual(draw).abs().square() / var).flatten(1).sum(1)
        seen = (
            torch.ones_like(part.y.real) if part.A.seen is None else part.A.seen.expand_as(part.y)
        )
        count = seen.flatten(1).sum(1)
        values.append((squares / count)[count > 0])
    return torch.cat(values)


def _excess(pairs: Tensor, rank: int, deviation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Returns the deviation of x' from x less its mean over swaps within pairs, shape ().

    pairs: x and x', (n, 2, d).
    """
    pairs = pairs[canonical_order(pairs.sum(1))]
    _, basis, variance = principal_components(pairs.flatten(0, 1), rank)
    kept = variance > 1e-12 * variance[:1]
    pairs = pairs @ basis[:, kept]
    rng = Rng.generator("self-consistency")
    swapped = []
    for _ in range(SWAPS):
        coin = (torch.rand(len(pairs), generator=rng) < 0.5)[:, None, None]
        swapped.append(deviation(*torch.where(coin, pairs.flip(1), pairs).unbind(1)))
    return deviation(*pairs.unbind(1)) - torch.stack(swapped).mean()


def _spectrum(x: Tensor, other: Tensor) -> Tensor:
    """Returns the largest |eigenvalue - 1| of C^-1 C', shape (); infinite if C is singular.

    x, other: (n, r).
    """
    size = (x.shape[1], x.shape[1])
    root, fault = torch.linalg.cholesky_ex(torch.cov(x.T).reshape(size))
    if int(fault):
        return x.new_tensor(math.inf)
    half = torch.linalg.solve_triangular(root, torch.cov(other.T).reshape(size), upper=False)
    values = torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, half.mT, upper=False))
    gap: Tensor = (values - 1).abs().max()
    return gap


def _marginals(x: Tensor, other: Tensor) -> Tensor:
    """Returns the largest Kolmogorov-Smirnov distance of a coordinate, shape ().

    x, other: (n, r).
    """
    both = torch.cat([x, other])
    order = both.argsort(0)
    step = torch.where(order < len(x), 1.0, -1.0).double() / len(x)
    return step.cumsum(0).abs().max()
