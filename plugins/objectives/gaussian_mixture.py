"""A mixture of Gaussians in closed form, for signals of few dimensions, from measurements alone."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from invem import ClosedFormObjective, Example, Gaussian, Mixture, Prior, RecipeError, Rng
from invem.batched import to_float64
from invem.prior import ClosedForm

LARGEST = 256  # entries of a signal
ENTRIES = 2**23  # entries of the largest tensor of an E-step


@dataclass(frozen=True, kw_only=True)
class GaussianMixture(ClosedFormObjective):
    """EM on a mixture of Gaussians with full covariances, for signals of few dimensions.

    A. Dempster, N. Laird and D. Rubin, J. Royal Stat. Soc. B 39, 1977. From measurements y = A x +
    n, linear with Gaussian noise, responsibilities and the first two moments of p(x | y, k) are
    exact. The M-step uses them in place of draws, so that an iteration never lowers the likelihood
    of the measurements (but for `floor`). From signals it is EM on the signals.

    It continues from a mixture with as many components. From any other prior it begins with the
    Gaussian of the prior's moments. Its posterior draws for the first observations are the initial
    means. From signals it begins with their own Gaussian and the first of them. The cost grows with
    the components, the observations and the cube of the entries of y. Each covariance has d^2
    entries. So it is for signals of a few dozen entries.

    Attributes:
        components: The number of components, at most the number of examples.
        iterations: Iterations of EM per round.
        spread: The initial covariance of each component, as a share of the covariance of the
            Gaussian.
        floor: A term added to each variance in every iteration, as a share of the mean variance of
            the prior, so that no component shrinks to a point.
    """

    components: Annotated[int, Ge(1)] = 32
    iterations: Annotated[int, Ge(1), Le(1_000_000)] = 10
    spread: Annotated[float, Gt(0)] = 0.2
    floor: Annotated[float, Gt(0)] = 1e-6

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
        mixture = prior.exact
        components = min(self.components, sum(len(rng) for _, rng in batches()))
        if not isinstance(mixture, Mixture) or len(mixture.weights) != components:
            mixture = self._first(prior, batches(), components)
        for _ in range(self.iterations):
            mixture = self._step(mixture, batches())
        return mixture

    def _first(
        self, prior: Prior, batches: Iterable[tuple[Example, Rng]], components: int
    ) -> Mixture:
        means: list[Tensor] = []
        gaussian = prior.moments
        for example, rng in batches:
            m, x = example.measurement, example.x
            if x is None and m is None:
                raise RecipeError("gaussian-mixture was given neither signals nor measurements")
            if x is None and m is not None:
                if sum(map(len, means)) >= components:
                    break
                gaussian = gaussian or Gaussian.standard(m.shape).to(m.y.device)
                x = gaussian.posterior(m, rng)
            assert x is not None
            means.append(x)
        first = torch.cat(means)[:components]
        if example.x is not None:
            gaussian = (
                Gaussian.fit(torch.cat(means), first[0].numel())
                if sum(map(len, means)) > 1
                else Gaussian.standard(first.shape[1:])
            )
            gaussian = gaussian.to(first.device)
        assert gaussian is not None
        cov = to_float64(gaussian.cov.dense())
        cov = self.spread * cov + self._lift(cov)
        weights = to_float64(torch.full((components,), 1.0, device=first.device)) / components
        return Mixture(weights, first, cov.expand(components, -1, -1).contiguous())

    def _step(self, prior: Mixture, batches: Iterable[tuple[Example, Rng]]) -> Mixture:
        """One iteration of EM, with sums in float64."""
        mean, cov = to_float64(prior.means.flatten(1)), to_float64(prior.covs)
        count, first, second = (
            torch.zeros_like(to_float64(prior.weights)),
            torch.zeros_like(mean),
            torch.zeros_like(cov),
        )
        for A, y, var in (part for example, _ in batches for part in _linear(example, prior)):
            AC = torch.einsum("bmi,kij->bkmj", A, cov)
            chol = torch.linalg.cholesky(
                torch.einsum("bkmj,bnj->bkmn", AC, A) + torch.diag_embed(var)[:, None]
            )
            r = y[:, None] - torch.einsum("bmi,ki->bkm", A, mean)
            white = torch.linalg.solve_triangular(
                chol, torch.cat([AC, r[..., None]], -1), upper=False
            )
            gain, z = white[..., :-1], white[..., -1]
            log = (
                to_float64(prior.weights).log()
                - 0.5 * z.square().sum(-1)
                - chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            )
            share = log.softmax(-1)
            centre = mean + torch.einsum("bkmi,bkm->bki", gain, z)
            pulled = gain * share.sqrt()[..., None, None]
            count += share.sum(0)
            first += torch.einsum("bk,bki->ki", share, centre)
            second += torch.einsum("bki,bkj->kij", share[..., None] * centre, centre)
            second -= torch.einsum("bkmi,bkmj->kij", pulled, pulled)
        total = count.clamp(min=1e-12)[:, None]
        means = torch.where(count[:, None] > 1e-6, first / total, mean)
        covs = (second / total[..., None] - means[:, :, None] * means[:, None]) + cov
        covs = torch.where(count[:, None, None] > 1e-6, (covs + covs.mT) / 2, cov)
        weights = count.clamp(min=1e-6) / count.clamp(min=1e-6).sum()
        middle = means - weights @ means
        whole = torch.einsum("k,kij->ij", weights, covs) + torch.einsum(
            "k,ki,kj->ij", weights, middle, middle
        )
        return Mixture(
            weights, means.reshape(prior.means.shape).to(prior.means), covs + self._lift(whole)
        )

    def _lift(self, whole: Tensor) -> Tensor:
        """Returns the term that is added to a covariance: a share of the prior's mean variance."""
        return (self.floor * whole.diagonal().mean() + 1e-12) * torch.eye(
            len(whole), dtype=whole.dtype, device=whole.device
        )


def _linear(example: Example, prior: Mixture) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields A (B, m, d), y (B, m) and the noise variance (B, m), for a few examples at a time.

    For signals, A = I, y = x and the variance is 0.
    """
    x, m, components = example.x, example.measurement, len(prior.weights)
    if x is not None:
        flat = to_float64(x.flatten(1))
        d = flat.shape[1]
        size = max(ENTRIES // (components * d * (d + 1)), 1)
        eye = torch.eye(d, dtype=flat.dtype, device=flat.device)
        for part in flat.split(size):  # type: ignore[no-untyped-call]
            yield eye.expand(len(part), d, d), part, torch.zeros_like(part)
        return
    assert m is not None
    d, size = (
        math.prod(m.shape),
        max(
            ENTRIES // (components * m.y[0].numel() * max(math.prod(m.shape) + 1, m.y[0].numel())),
            1,
        ),
    )
    for index in torch.arange(len(m)).split(size):  # type: ignore[no-untyped-call]
        part = m[index]
        yield part.matrices(), to_float64(part.y.flatten(1)), prior.spread(part)
