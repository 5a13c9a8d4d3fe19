"""A mixture of factor analysers in closed form: a warm start with many modes, for images, that
needs no clean image."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from invem import ClosedFormObjective, Example, FactorMixture, Gaussian, Prior, RecipeError, Rng
from invem.batched import wide
from invem.prior import ClosedForm

LARGEST = 1024  # entries of a signal
LLOYD = 15


@dataclass(frozen=True, kw_only=True)
class FactorMixtureMoments(ClosedFormObjective):
    """One iteration of stochastic EM on a mixture of factor analysers (Z. Ghahramani & G. Hinton,
    CRG-TR-96-1, 1996).

    From measurements y = A x + n, linear with Gaussian noise, the E-step is one exact draw of
    signal and component for each (stochastic EM, G. Celeux & J. Diebolt 1985), so that its
    Monte-Carlo error does not shrink from round to round; from signals it is the exact probability
    of each component. The M-step is factor analysis in each component, with a diagonal that is
    common to all: one iteration of its fixed point a round, three in the first.

    It goes on from a mixture of as many components and factors. From any other prior it begins with
    what it is given, signals or draws under the prior (under its Gaussian, if it is not a mixture
    of factor analysers), sorted into components by k-means: a few rounds of gaussian-moments before
    it are the cheaper part of the work. For operators that differ between observations and are no
    masks, a system as large as y is solved for each: choose a small `batch`.

    Attributes:
        components: The number of components, at most that of the examples.
        rank: The number of factors of each.
        pool: How many examples the covariance pooled over all components counts for in that of
            each: the fewer, the more each component is left to its own.
        floor: The smallest variance that the diagonal leaves to an entry, as a share of the mean
            variance of the prior.
    """

    components: Annotated[int, Ge(1)] = 20
    rank: Annotated[int, Ge(0)] = 30
    pool: Annotated[float, Gt(0)] = 5.0
    floor: Annotated[float, Gt(0)] = 1e-4

    needs = frozenset({"adjoint", "var"})

    def refuses(self, shape: tuple[int, ...]) -> str | None:
        d = math.prod(shape)
        return (
            f"it is for signals of at most {LARGEST} entries, and these have {d}: use"
            " gaussian-moments"
            if d > LARGEST
            else None
        )

    def solve(
        self, prior: Prior, batches: Callable[[], Iterable[tuple[Example, Rng]]]
    ) -> ClosedForm:
        before = prior.exact if isinstance(prior.exact, FactorMixture) else None
        drawn = [self._draw(prior, before, example, rng) for example, rng in batches()]
        x = torch.cat([signals for signals, _ in drawn])
        flat = wide(x.flatten(1))
        components, rank = min(self.components, len(x)), min(self.rank, flat.shape[1])
        diag = None
        if before is not None and before.factors.shape[::2] == (components, rank):
            share = torch.cat([wide(part) for _, part in drawn if part is not None])
            diag = wide(before.diag)
        else:
            share = _means(flat, components)
        weights, means, factors, diag = self._step(flat, share, rank, diag)
        means = means.reshape(components, *x.shape[1:])
        return FactorMixture(weights.to(x), means.to(x), factors.to(x), diag.to(x))

    def _draw(
        self, prior: Prior, before: FactorMixture | None, example: Example, rng: Rng
    ) -> tuple[Tensor, Tensor | None]:
        """The E-step: returns signals, shape (B, *shape), and the probability of each component of
        the mixture before, shape (B, K), if there is one."""
        x, m = example.x, example.measurement
        if x is not None:
            return x, None if before is None else before.shares_of(x)
        if m is None:
            raise RecipeError("factor-mixture was given neither signals nor measurements")
        if before is not None:
            drawn, k = before.draw(m, rng)
            return drawn, torch.nn.functional.one_hot(k, len(before.weights))
        gaussian = prior.moments or Gaussian.standard(m.shape).to(m.y.device)
        return gaussian.posterior(m, rng), None

    def _step(
        self, x: Tensor, share: Tensor, rank: int, diag: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The M-step. x: (N, d), share: (N, K), diag: that of the mixture before; returns weights,
        means, factors and diag."""
        count = share.sum(0)
        weights = (count + 1e-3) / (count + 1e-3).sum()
        middle = x.mean(0)
        means = (share.T @ x + 1e-3 * middle) / (count + 1e-3)[:, None]

        def scatter(k: int) -> Tensor:
            rows = share[:, k] > 1e-6
            gap = (x[rows] - means[k]) * share[rows, k, None].sqrt()
            return gap.T @ gap

        pooled = torch.zeros(x.shape[1], x.shape[1]).to(x)
        for k in range(len(count)):
            pooled = pooled + scatter(k) / len(x)
        least = self.floor * float((x - middle).square().mean()) + 1e-12
        inner = 1 if diag is not None else 3
        diag = pooled.diagonal().clamp(min=least) if diag is None else diag
        factors = torch.empty(len(count), x.shape[1], rank).to(x)
        for _ in range(inner):
            root, left = diag.sqrt(), torch.zeros_like(diag)
            for k, n in enumerate(count):
                cov = (scatter(k) + self.pool * pooled) / (n + self.pool)
                values, vectors = torch.linalg.eigh(cov / (root[:, None] * root))
                lead = slice(len(root) - rank, None)
                factors[k] = (
                    root[:, None] * vectors[:, lead] * (values[lead] - 1).clamp(min=0).sqrt()
                )
                left = left + (n + self.pool) / (count + self.pool).sum() * (
                    cov.diagonal() - factors[k].square().sum(1)
                )
            diag = left.clamp(min=least)
        return weights, means, factors, diag


def _means(x: Tensor, components: int) -> Tensor:
    """Sorts signals into components by k-means (Lloyd), from the first of them. x: (N, d); returns
    one-hot shares (N, K)."""
    centres = x[:components]
    for _ in range(LLOYD):
        share = torch.nn.functional.one_hot(torch.cdist(x, centres).argmin(1), components).to(x)
        count = share.sum(0)[:, None]
        centres = torch.where(count > 0, share.T @ x / count.clamp(min=1), centres)
    return share
