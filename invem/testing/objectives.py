"""What every objective of the M-step must do."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from invem.batched import Rng
from invem.denoiser import Denoiser, GaussianDenoiser, Several, level
from invem.gaussian import Gaussian
from invem.interpolant import Interpolating
from invem.measurement import Example, Measurement
from invem.objective import Objective
from invem.testing.base import Factory, Kind, example_options, relative_error
from invem.testing.problems import (
    conditional_mean,
    example_measurement,
    example_prior,
    interpolant_mean,
)

__all__ = ["OBJECTIVES"]

_SHAPE = (8,)
_COUNT = 2048


class _Perturbed(Denoiser):
    """The exact E[x | x_t, cond], plus an error of the same size for a network at each noise level.

    Args:
        prior: The distribution of x.
        error: The size of the error, in units of the output of a preconditioned network.
        objective: The objective that is measured, for what its condition means.
    """

    def __init__(
        self, prior: Gaussian, error: float = 0.0, objective: Objective | None = None
    ) -> None:
        super().__init__()
        self.prior, self.error, self.sigma_data, self.objective = prior, error, 0.5, objective

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        sigma = level(sigma, x_t)
        if cond is None:
            x_hat = self.prior.denoise(x_t, sigma)
        else:
            x_hat = self._conditioned(x_t, sigma, cond)
        return x_hat + self.error * sigma / (1 + sigma**2) * x_t

    def _conditioned(self, x_t: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        if not isinstance(self.objective, Interpolating):
            return conditional_mean(self.prior, x_t, sigma, cond)
        objective = self.objective
        mean = interpolant_mean(self.prior, x_t, sigma, cond, objective.jitter, objective.informed)
        # An empty condition asks for the denoiser of the prior.
        given = cond.flatten(2).any(2).any(1).reshape(-1, *[1] * (x_t.ndim - 1))
        return torch.where(given, mean, self.prior.denoise(x_t, sigma))


class _Linear(Denoiser):
    """A small network in which each weight should have a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.sigma_data = torch.nn.Linear(*_SHAPE, *_SHAPE), 0.5

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        out: Tensor = self.layer(x_t)
        return out


@dataclasses.dataclass
class _Case:
    """An objective with one set of options on one problem.

    Attributes:
        objective: The objective.
        prior: The distribution of the signals.
        batch: Signals with their measurements.
    """

    objective: Objective
    prior: Gaussian
    batch: Example

    @property
    def x(self) -> Tensor:
        assert self.batch.x is not None
        return self.batch.x

    @property
    def m(self) -> Measurement:
        assert self.batch.measurement is not None
        return self.batch.measurement

    @property
    def clean(self) -> Example:
        """The signals without their measurements: the clean subset of a recipe."""
        return Example(self.batch.x)

    @property
    def measured(self) -> bool:
        """Whether the objective learns from measurements, and from no signals beside them."""
        return "measurement" in self.objective.needs and "x" not in self.objective.needs

    @property
    def distils(self) -> bool:
        """Whether it trains several networks from the last prior: no loss of one denoiser, and no
        data."""
        return self.objective.networks > 1

    @property
    def batches(self) -> list[Example]:
        """The batches that it must accept: signals with measurements, and a clean subset."""
        return [self.batch] + ([self.clean] if self.measured and not self.distils else [])

    def denoiser(self, make: Callable[[], Denoiser]) -> Denoiser:
        """Returns a denoiser, or as many as the objective trains together beside the last prior."""
        if not self.distils:
            return make()
        return self.objective.wrap(
            Several(make() for _ in range(self.objective.networks)),
            self.m,
            GaussianDenoiser(self.prior),
        )

    def loss(self, denoiser: Denoiser, batch: Example, n: int = _COUNT) -> Tensor:
        return self.objective.loss(denoiser, batch, self.rng(n))

    def rng(self, n: int = _COUNT) -> Rng:
        return Rng.keyed("contracts", "objective", items=range(n))


def _cases(factory: Factory, folder: Path) -> Iterator[tuple[str, _Case]]:
    prior = example_prior(_SHAPE)
    x = prior.sample(Rng.keyed("contracts", "truth", items=range(_COUNT)))
    problems: tuple[Literal["mask", "whole"], ...] = ("mask", "whole")
    for observed in problems:
        m = example_measurement(observed, _COUNT, _SHAPE)
        for label, options in example_options(factory, _SHAPE, folder):
            objective: Objective = factory(**options)
            if objective.needs - m.provides - {"x", "measurement", "closed form", "moments"}:
                continue
            # A = I tells nothing new of an objective that asks for neither it nor singular values.
            if observed == "mask" or objective.needs & {"identity", "svd"}:
                yield f"{observed}, {label}", _Case(objective, prior, Example(x, m))


OBJECTIVES = Kind(
    "objectives",
    "Tried on 2,048 draws of a Gaussian prior in eight dimensions, observed through masks; with A ="
    " I too where the objective needs that or singular values.",
    _cases,
)


@OBJECTIVES.contract("a loss for each", tolerance=1e-5)
def loss_per_sample(case: _Case) -> float | None:
    """The loss has one finite value per sample, which does not change with the other samples nor
    with their number; not for closed forms."""
    if case.objective.closed_form:
        return None
    denoiser, few = case.denoiser(lambda: _Perturbed(case.prior)), 3
    y = torch.cat([case.m.y[:1], case.m.y[1:] + 5])
    other_x = torch.cat([case.x[:1], case.x[1:] + 5])
    others = (Example(other_x, dataclasses.replace(case.m, y=y)), Example(other_x))
    worst = 0.0
    for batch, other_batch in zip(case.batches, others, strict=False):
        loss, other = case.loss(denoiser, batch), case.loss(denoiser, other_batch)
        m = None if batch.measurement is None else batch.measurement[torch.arange(few)]
        first_few = case.loss(denoiser, Example(case.x[:few], m), few)
        # A loss that ignores its data passes all else.
        ignored = not case.distils and torch.equal(other[1:], loss[1:])
        wrong = loss.shape != (len(case.x),) or not bool(loss.isfinite().all()) or ignored
        worst = max(
            worst,
            float(wrong),
            relative_error(other[:1], loss[:1]),
            relative_error(first_few, loss[:few]),
        )
    return worst


@OBJECTIVES.contract("gradient reaches all", tolerance=0.0)
def gradient_reaches_all(case: _Case) -> float | None:
    """The number of trained parameters with no gradient, which must be zero; not for closed
    forms."""
    if case.objective.closed_form:
        return None
    dead = 0
    for batch in case.batches:
        network = case.denoiser(_Linear)
        case.loss(network, batch).mean().backward()  # type: ignore[no-untyped-call]
        dead += sum(w.grad is None or not bool(w.grad.any()) for w in network.parameters())
    return float(dead)


@OBJECTIVES.contract("least when exact", tolerance=-3.0)
def least_when_exact(case: _Case) -> float | None:
    """The loss of the exact denoiser is at least three standard errors below that of two perturbed
    ones; not for closed forms and distillation.

    An objective on measurements is held to it for A = I, on a clean subset, and where the denoiser
    is conditioned on the mask: from masks alone some learn another function than E[x | x_t].
    """
    if case.objective.closed_form or case.distils:
        return None
    exact_from_measurements = (
        not case.measured or "identity" in case.m.provides or case.objective.condition > 0
    )
    batches = [case.batch] if exact_from_measurements else []
    batches += [case.clean] if case.measured else []
    worst = -math.inf
    for batch in batches:
        exact, *others = (
            case.loss(_Perturbed(case.prior, error, case.objective), batch).detach().double()
            for error in (0.0, -0.2, 0.2)
        )
        for other in others:
            gap = exact - other
            worst = max(worst, float(gap.mean() / gap.std() * len(gap) ** 0.5))
    return worst


@OBJECTIVES.contract("closed form", tolerance=5.0)
def closed_form(case: _Case) -> float | None:
    """From clean signals a closed form finds their mean; the largest error, in standard errors."""
    if not case.objective.closed_form:
        return None
    fitted = case.objective.solve(
        GaussianDenoiser(Gaussian.standard(case.prior.shape)), lambda: [(case.clean, case.rng())]
    )
    error = (fitted.known_moments().mean - case.prior.mean).abs()
    return float((error / (case.x.std(0) / len(case.x) ** 0.5)).max())
