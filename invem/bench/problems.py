"""What samplers are compared on: a prior, measurements and, where it is known, the posterior."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from invem.batched import Rng, to_float64
from invem.bench.posterior import Posterior
from invem.diffusion import generate
from invem.door import Run
from invem.errors import DataError, RecipeError
from invem.gaussian import Gaussian
from invem.measurement import Measurement
from invem.mixture import Mixture
from invem.prior import Prior
from invem.schedule import Karras

__all__ = ["Measure", "Problem", "Truth", "problem_of_run"]

Truth = Literal["held-out", "prior"]
Measure = Callable[[int, str, int], tuple[Tensor, Measurement]]

_LARGEST = 1024  # dimensions up to which a dense posterior covariance is quick
_SMALLEST_IMAGE = 8  # pixels per side below which a picture shows nothing


@dataclass(frozen=True, eq=False)
class Problem:
    """What samplers are compared on.

    Attributes:
        name: The name that tables show.
        definition: The full definition as text. For a run, its recipe.
        prior: What is known of the signals: what the samplers are given.
        measure: (seed, split, n) -> n signals (n, *shape) and their measurements, for the split
            "test" or "validation".
        shape: The shape of one signal.
        range: The lowest and the highest value of a signal. For a prior in closed form, two
            standard deviations on either side of its mean.
        truth: Whether the signals are "held-out" or drawn from the "prior".
        device: Where the samplers run.
        exact: The prior as a mixture of Gaussians, where the exact posterior can be computed, or
            None.
        limit: The largest number of observations per seed, or None.
        source: The run directory, or None.
    """

    name: str
    definition: str
    prior: Prior
    measure: Measure
    shape: tuple[int, ...]
    range: tuple[float, float]
    truth: Truth
    device: str
    exact: Mixture | None = None
    limit: int | None = None
    source: str | None = None

    @property
    def digest(self) -> str:
        """A hash of the definition. Two problems with other digests must not be compared."""
        return hashlib.sha256(self.definition.encode()).hexdigest()[:16]

    @property
    def has_pictures(self) -> bool:
        """Whether signals are images that are large enough to look at."""
        return len(self.shape) == 3 and min(self.shape[1:]) >= _SMALLEST_IMAGE

    def posterior(self, m: Measurement) -> Posterior | None:
        """Returns the exact posterior, or None where it has no closed form.

        It has one for a prior in closed form, a linear operator and Gaussian noise.
        """
        if self.exact is None or not m.provides >= {"adjoint", "normal", "density"}:
            return None
        return Posterior.of(self.exact, m)


def problem_of_run(run: Run, truth: Truth = "held-out") -> Problem:
    """Returns the problem of a run: its newest prior and its held-out observations.

    The last quarter of the held-out observations, in a random order, is kept for tuning. The seeds
    take the others in turn: seed s has the s-th n of them, and starts again where they end.

    Args:
        run: A run with a finished prior.
        truth: "held-out" uses the stored truth and measurements of the run. "prior" draws signals
            from the prior itself (256 steps of Heun's rule) and measures them with the same
            operators and noise. An exact sampler is calibrated for the latter only.

    Raises:
        RecipeError: If the run has fewer than two held-out observations, or no truth where it is
            needed.
        DataError: If it has no finished prior.
    """
    prior = run.prior
    m = _held_out(run)
    x = _stored_truth(run) if truth == "held-out" else torch.empty(0)
    order = torch.randperm(len(m), generator=Rng.generator("bench", "order"))
    kept = len(m) - max(1, len(m) // 4)
    splits = {"test": order[:kept], "validation": order[kept:]}
    exact, device = _as_mixture(prior, run.plan.shape), run.context.device

    def measure(seed: int, split: str, n: int) -> tuple[Tensor, Measurement]:
        rows = splits[split][(torch.arange(n) + seed * n) % len(splits[split])]
        mine = m[rows]
        if truth == "held-out":
            return x[rows], mine.to(device)
        rng = Rng.keyed(seed, "bench", split, "truth", items=range(n))
        if exact is not None:
            drawn = exact.sample(rng)
        else:
            like = torch.empty(0, device=device)
            drawn = generate(prior, Karras().grid(256), rng, run.plan.shape, like).cpu()
        y = mine.noise.sample(mine.A(drawn), Rng.generator(seed, "bench", split, "measure"))
        return drawn, replace(mine, y=y).completed().to(device)

    about = run.directory.description()
    low, high = run.plan.facts.range
    return Problem(
        about["name"],
        about["recipe"],
        prior,
        measure,
        run.plan.shape,
        (low, high),
        truth,
        str(device),
        exact,
        kept if truth == "held-out" else None,
        str(run.path),
    )


def _held_out(run: Run) -> Measurement:
    try:
        m = run.observations("test")
    except DataError:
        raise RecipeError(
            f"{run.path}: the run has no held-out observations; begin one with"
            " evaluate.observations=64"
        ) from None
    if len(m) < 2:
        raise RecipeError(
            f"{run.path}: at least 2 held-out observations are needed, and the run has {len(m)}"
        )
    return m


def _stored_truth(run: Run) -> Tensor:
    x = run.directory.true_signals()
    if x is None:
        raise RecipeError(f"{run.path}: the run has no truth to compare with; add --truth prior")
    return x


def _as_mixture(prior: Prior, shape: tuple[int, ...]) -> Mixture | None:
    """Returns a Gaussian prior as a mixture of one component, where it is small enough."""
    if not isinstance(prior.exact, Gaussian) or math.prod(shape) > _LARGEST:
        return None
    gaussian = prior.exact.to("cpu")
    return Mixture(torch.ones(1), gaussian.mean[None], to_float64(gaussian.cov.dense())[None])
