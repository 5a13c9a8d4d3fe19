"""What every posterior sampler must do."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from invem.batched import Rng
from invem.errors import RecipeError
from invem.measurement import Measurement
from invem.operator import Operator
from invem.prior import Prior
from invem.sampler import ChainSampler, PosteriorSampler
from invem.testing.base import Factory, Kind, example_options, normal_like, relative_error
from invem.testing.problems import Observed, exact_priors, example_measurement, example_prior

__all__ = ["SAMPLERS"]

_SHAPE = (8,)
_COUNT = 4  # observations
_DRAWS = 4000  # draws of one posterior, for its mean and covariance


@dataclasses.dataclass
class _Case:
    """A sampler with one set of options on one problem.

    Attributes:
        sampler: The sampler, tuned.
        prior: The prior, with its exact denoiser.
        m: The measurement.
        whitened: Draws of the posterior of the first observation, whitened, once they are drawn.
    """

    sampler: PosteriorSampler
    prior: Prior
    m: Measurement
    whitened: Tensor | None = None

    def rng(self, *key: str) -> Rng:
        return Rng.keyed("contracts", *key, items=range(len(self.m)))

    def sample(self) -> Tensor:
        return self.sampler(self.prior, self.m, self.rng())

    def sample_with(self, **changes: Any) -> Tensor:
        """Draws with another y or A in the measurement."""
        return self.sampler(self.prior, dataclasses.replace(self.m, **changes), self.rng())


def _cases(factory: Factory, folder: Path) -> Iterator[tuple[str, _Case]]:
    found = False
    for observed in get_args(Observed):
        # A = I is for the samplers that are for nothing else.
        if observed == "whole" and found:
            return
        for label, options in example_options(factory, _SHAPE, folder):
            m = example_measurement(observed, _COUNT, _SHAPE)
            sampler: PosteriorSampler = factory(**options)
            for prior in _priors(sampler, m, observed):
                streams = Rng.keyed("contracts", "tune", items=range(_COUNT))
                found = True
                yield f"{observed}, {label}", _Case(sampler.tune(prior, m, streams), prior, m)


def _priors(sampler: PosteriorSampler, m: Measurement, observed: Observed) -> Iterator[Prior]:
    """Yields the priors that have what the sampler needs beside the measurement."""
    exact, needs = example_prior(_SHAPE), sampler.needs - m.provides
    # Exact denoisers with a condition are known for masks only.
    if observed != "projection" or needs <= Prior.of(exact).provides:
        yield from exact_priors(needs, exact, m)


SAMPLERS = Kind(
    "samplers",
    "Tried on a Gaussian prior in eight dimensions with its exact denoiser, observed through masks"
    " and projections; a sampler that needs A = I, on that.",
    _cases,
)


@SAMPLERS.contract("finite", tolerance=0.0)
def finite(case: _Case) -> float:
    """The draws have the shape of the signals, are finite, and carry no gradient."""
    x = case.sample()
    return float(
        x.shape != (len(case.m), *case.m.shape) or not bool(x.isfinite().all()) or x.requires_grad
    )


@SAMPLERS.contract("same again", tolerance=0.0)
def same_again(case: _Case) -> float:
    """The same random streams give the same draw, other streams another one (except for a classical
    restoration), and the global generator of torch is not used."""
    state = torch.random.get_rng_state()
    one, two = case.sample(), case.sample()
    touched = not torch.equal(state, torch.random.get_rng_state())
    same = torch.equal(one, case.sampler(case.prior, case.m, case.rng("other")))
    # A classical restoration uses no prior, and has no use for streams.
    return max(relative_error(one, two), float(touched), float(same is case.sampler.uses_prior))


@SAMPLERS.contract("samples apart", tolerance=1e-4)
def samples_apart(case: _Case) -> float:
    """The draw of one observation does not change with the others."""
    x = case.sample()
    other = case.sample_with(y=torch.cat([case.m.y[:1], 20 * case.m.y[1:] + 3]))
    return relative_error(other[:1], x[:1])


@SAMPLERS.contract("batch size", tolerance=1e-3)
def batch_size(case: _Case) -> float:
    """An observation has the same draw alone as in a batch."""
    x = case.sample()
    alone = [case.sampler(case.prior, case.m[i], case.rng()[i]) for i in range(len(case.m))]
    return relative_error(torch.cat(alone), x)


@SAMPLERS.contract("posterior mean", tolerance=1e-3)
def posterior_mean(case: _Case) -> float | None:
    """What `posterior_mean` knows of an observation is right, and it knows the same of it alone.
    Samplers that know nothing without draws are left out."""
    if case.prior.exact is None:
        return None
    found = case.sampler.posterior_mean(case.prior, case.m)
    known = ~found.flatten(1).isnan().any(1)
    if not bool(known.any()):
        return None
    right = case.prior.exact.posterior_mean(case.m)
    alone = [case.sampler.posterior_mean(case.prior, case.m[i : i + 1]) for i in range(len(case.m))]
    return max(
        relative_error(found[known], right[known]),
        relative_error(torch.cat(alone)[known], found[known]),
    )


@SAMPLERS.contract("needs are enough", tolerance=1e-6)
def needs_are_enough(case: _Case) -> float:
    """With an operator that provides nothing but what `needs` declares, the draws are the same."""
    A = case.m.A
    hidden = {"adjoint", "pinv", "svd"} - case.sampler.needs
    methods: dict[str, Any] = {name: getattr(Operator, name) for name in hidden}
    if "adjoint" in hidden:
        methods["vjp"] = Operator.vjp
    reduced = type("Reduced", (type(A),), methods)
    values = {field.name: getattr(A, field.name) for field in dataclasses.fields(A)}
    return relative_error(case.sample_with(A=reduced(**values)), case.sample())


@SAMPLERS.contract("cost", tolerance=0.0)
def cost(case: _Case) -> float:
    """The denoiser is called as often per sample as `cost` says; not more often if it adapts."""
    rows: list[int] = []
    handle = case.prior.denoiser.register_forward_hook(
        lambda _, args, __: rows.append(len(args[0]))
    )
    case.sample()
    handle.remove()
    more = sum(rows) / len(case.m) - case.sampler.cost[0]
    return max(more, 0.0) if case.sampler.adapts else abs(more)


@SAMPLERS.contract("begins where it is told", tolerance=0.5)
def begins_where_it_is_told(case: _Case) -> float | None:
    """Begun at given signals and a given noise level, the denoiser is first called at that level,
    with the signals plus noise of that level; the largest relative error of the level and of the
    standard deviation of the noise. Chain samplers only."""
    if not isinstance(case.sampler, ChainSampler):
        return None
    sampler = case.sampler
    first, middle = (float(sigma) for sigma in sampler.schedule.grid(3)[:2])
    # Some schedules have a first level that cannot be another.
    with contextlib.suppress(RecipeError):
        sampler, first = sampler.from_level(middle), middle
    start = 10 + normal_like(torch.empty(len(case.m), *case.m.shape), "start")
    calls: list[tuple[Tensor, float]] = []
    handle = case.prior.denoiser.register_forward_hook(
        lambda _, args, __: calls.append((args[0], float(torch.as_tensor(args[1]).max())))
    )
    sampler(case.prior, case.m, case.rng(), start)
    handle.remove()
    x_t, sigma = calls[0]
    spread = float((x_t.detach() - start).square().mean().sqrt())
    return max(abs(sigma / first - 1), abs(spread / first - 1))


@SAMPLERS.contract("error of the mean", tolerance=None)
def error_of_the_mean(case: _Case) -> float | None:
    """The largest error of the mean of 4,000 draws in the basis that whitens the exact posterior,
    in standard deviations; about 0.05 for an exact sampler."""
    if not case.sampler.uses_prior:
        return None
    return float(_whitened(case).mean(0).abs().max())


@SAMPLERS.contract("error of the covariance", tolerance=None)
def error_of_the_covariance(case: _Case) -> float | None:
    """The largest distance from one of the eigenvalues of the covariance of 4,000 draws in the same
    basis; about 0.1 for an exact sampler."""
    if not case.sampler.uses_prior:
        return None
    values = torch.linalg.eigvalsh(torch.cov(_whitened(case).T))
    return float((values - 1).abs().max())


def _whitened(case: _Case) -> Tensor:
    """Returns 4,000 draws of the posterior of the first observation, whitened, shape (n, d).

    Those of an exact sampler have mean zero and covariance I. They are drawn once per case.
    """
    if case.whitened is not None:
        return case.whitened
    d = math.prod(case.m.shape)
    m = case.m[torch.zeros(_DRAWS, dtype=torch.long)]
    basis = torch.eye(d).reshape(d, *case.m.shape)
    A = case.m.A[torch.zeros(d, dtype=torch.long)](basis).flatten(1).T.double()
    prior = case.prior.known_moments()
    C, mean = prior.cov.dense().double(), prior.mean.flatten().double()
    S = torch.diag(case.m.noise.var()[:1].expand_as(case.m.y[:1]).flatten().double())
    gain = C @ A.T @ torch.linalg.inv(A @ C @ A.T + S)
    centre, cov = mean + gain @ (case.m.y[0].flatten().double() - A @ mean), C - gain @ A @ C
    streams = Rng.keyed("contracts", "exact", items=range(_DRAWS))
    x = case.sampler(case.prior, m, streams).flatten(1).double()
    case.whitened = torch.linalg.solve_triangular(
        torch.linalg.cholesky(cov), (x - centre).T, upper=False
    ).T
    return case.whitened
