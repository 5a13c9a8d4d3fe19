"""What samplers are compared on: a prior, measurements and, where it is known, the posterior."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from invem import store
from invem.batched import Rng, wide
from invem.bench.posterior import Posterior
from invem.denoiser import Denoiser, GaussianDenoiser
from invem.diffusion import generate
from invem.errors import DataError, RecipeError
from invem.measurement import Measurement
from invem.mixture import Mixture
from invem.operator import LinearOperator
from invem.running.run import Run
from invem.schedule import Karras

__all__ = ["Measure", "Problem", "Truth", "has_final_prior", "problem_of_run"]

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
        denoiser: The prior.
        measure: (seed, split, n) -> n signals (n, *shape) and their measurements, for the split
            "test" or "validation".
        shape: The shape of one signal.
        range: The lowest and the highest value of a signal. For a prior in closed form, two
            standard deviations on either side of its mean.
        truth: Whether the signals are "held-out" or drawn from the "prior".
        device: Where the samplers run.
        prior: The prior in closed form, or None.
        limit: The largest number of observations per seed, or None.
        source: The run directory, or None.
    """

    name: str
    definition: str
    denoiser: Denoiser
    measure: Measure
    shape: tuple[int, ...]
    range: tuple[float, float]
    truth: Truth
    device: str
    prior: Mixture | None = None
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
        known = self.prior is not None and isinstance(m.A, LinearOperator)
        if not known or not has_positive_variance(m):
            return None
        assert self.prior is not None
        return Posterior.of(self.prior, m)


def has_positive_variance(m: Measurement) -> bool:
    """Whether the noise is Gaussian and nowhere zero."""
    return "var" in m.noise.provides and bool((m.noise.var() > 0).all())


def has_final_prior(run: Run) -> bool:
    """Whether a run has reached the last prior of its recipe."""
    fits = [(p, stage) for p, stage in enumerate(run.plan.stages) if stage.objective is not None]
    p, _ = fits[-1] if fits else (0, run.plan.stages[0])
    return (run.out / f"{p}-{run.rounds(p) - 1:03d}-denoiser" / "denoiser.safetensors").exists()


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
    denoiser = run.last_denoiser()
    m = _held_out(run)
    x = _stored_truth(run) if truth == "held-out" else torch.empty(0)
    order = torch.randperm(len(m), generator=Rng.generator("bench", "order"))
    kept = len(m) - max(1, len(m) // 4)
    splits = {"test": order[:kept], "validation": order[kept:]}
    prior = _closed_form(denoiser, run.plan.shape)

    def measure(seed: int, split: str, n: int) -> tuple[Tensor, Measurement]:
        rows = splits[split][(torch.arange(n) + seed * n) % len(splits[split])]
        mine = m[rows]
        if truth == "held-out":
            return x[rows], mine.to(run.device)
        rng = Rng.keyed(seed, "bench", split, "truth", items=range(n))
        if prior is not None:
            drawn = prior.sample(rng)
        else:
            like = torch.empty(0, device=run.device)
            drawn = generate(denoiser, Karras().grid(256), rng, run.plan.shape, like).cpu()
        y = mine.noise.sample(mine.A(drawn), Rng.generator(seed, "bench", split, "measure"))
        return drawn, replace(mine, y=y).to(run.device)

    about: dict[str, Any] = store.read_json(run.out / "run.json")
    low, high = run.plan.facts.range
    return Problem(
        about["name"],
        about["recipe"],
        denoiser,
        measure,
        run.plan.shape,
        (low, high),
        truth,
        str(run.device),
        prior,
        kept if truth == "held-out" else None,
        str(run.out),
    )


def _held_out(run: Run) -> Measurement:
    try:
        m = run.measurement("test", run.believed())
    except DataError:
        raise RecipeError(
            f"{run.out}: the run has no held-out observations; begin one with"
            " evaluate.observations=64"
        ) from None
    if len(m) < 2:
        raise RecipeError(
            f"{run.out}: at least 2 held-out observations are needed, and the run has {len(m)}"
        )
    return m


def _stored_truth(run: Run) -> Tensor:
    files = sorted((run.out / "truth").glob("[0-9]*.safetensors"))
    if not files:
        raise RecipeError(f"{run.out}: the run has no truth to compare with; add --truth prior")
    return torch.cat([store.read(file)["x"] for file in files])


def _closed_form(denoiser: Denoiser, shape: tuple[int, ...]) -> Mixture | None:
    """Returns a Gaussian prior as a mixture of one component, where it is small enough."""
    if not isinstance(denoiser, GaussianDenoiser) or math.prod(shape) > _LARGEST:
        return None
    moments = denoiser.known_moments().to("cpu")
    return Mixture(torch.ones(1), moments.mean[None], wide(moments.cov.dense())[None])
