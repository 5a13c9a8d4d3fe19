"""A mixture of factor analysers in closed form: a warm start for images without clean ones."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from invem import ClosedFormObjective, Example, FactorMixture, Gaussian, Prior, RecipeError, Rng
from invem.batched import to_float64
from invem.prior import ClosedForm

LARGEST = 1024  # entries of a signal
LLOYD = 15


@dataclass(frozen=True, kw_only=True)
class FactorMixtureMoments(ClosedFormObjective):
    """One iteration of stochastic EM on a mixture of factor analysers (CRG-TR-96-1).

    Z. Ghahramani & G. Hinton 1996. From measurements y = A x + n, linear with Gaussian noise, the
    E-step draws signal and component exactly, once per measurement (stochastic EM, G. Celeux & J.
    Diebolt 1985). Its Monte-Carlo error does not shrink from round to round. From signals, the
    E-step is the exact probability of each component. The M-step is factor analysis in each
    component, with a diagonal common to all: one iteration of its fixed point per round, three in
    the first.

    It continues from a mixture with as many components and factors. From any other prior it begins
    with the signals, or with draws under the prior (under its Gaussian, if it is not a mixture of
    factor analysers), sorted into components by k-means. A few rounds of gaussian-moments before it
    are a cheap start. For operators that differ between observations and are no masks, a system as
    large as y is solved per observation: choose a small `batch`.

    Attributes:
        components: The number of components, at most the number of examples.
        rank: The number of factors of each component.
        pool: The number of examples that the covariance pooled over all components counts for in
            that of each. Fewer make components more independent.
        floor: The smallest variance of an entry in the diagonal, as a share of the mean variance of
            the prior.
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
        flat = to_float64(x.flatten(1))
        components, rank = min(self.components, len(x)), min(self.rank, flat.shape[1])
        diag = None
        if before is not None and before.factors.shape[::2] == (components, rank):
            share = torch.cat([to_float64(part) for _, part in drawn if part is not None])
            diag = to_float64(before.diag)
        else:
            share = _means(flat, components)
        weights, means, factors, diag = self._step(flat, share, rank, diag)
        means = means.reshape(components, *x.shape[1:])
        return FactorMixture(weights.to(x), means.to(x), factors.to(x), diag.to(x))

    def _draw(
        self, prior: Prior, before: FactorMixture | None, example: Example, rng: Rng
    ) -> tuple[Tensor, Tensor | None]:
        """The E-step: returns signals, (B, *shape), and probabilities of the components, (B, K).

        The components are those of the mixture before; None if there is none.
        """
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
        """The M-step: returns weights, means, factors and diag.

        Args:
            x: Signals, shape (N, d).
            share: Probabilities of the components, shape (N, K).
            rank: The number of factors.
            diag: That of the mixture before.
        """
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
    """Sorts signals into components by k-means (Lloyd); returns one-hot shares (N, K).

    It begins with the first signals as centres. x: (N, d).
    """
    centres = x[:components]
    for _ in range(LLOYD):
        share = torch.nn.functional.one_hot(torch.cdist(x, centres).argmin(1), components).to(x)
        count = share.sum(0)[:, None]
        centres = torch.where(count > 0, share.T @ x / count.clamp(min=1), centres)
    return share
