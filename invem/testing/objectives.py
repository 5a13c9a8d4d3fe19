"""What every objective of the M-step must do."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from invem.batched import Rng
from invem.denoiser import Denoiser, expand_level
from invem.gaussian import Gaussian
from invem.measurement import Example, Measurement
from invem.objective import ClosedFormObjective, Objective
from invem.prior import Prior
from invem.testing.base import Factory, Kind, example_options, normal_like, relative_error
from invem.testing.problems import ExactConditional, example_measurement, example_prior

__all__ = ["OBJECTIVES"]

_SHAPE = (8,)
_COUNT = 2048


class _Linear(Denoiser):
    """A small network in which each weight should have a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(*_SHAPE, *_SHAPE)

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        out: Tensor = self.layer(x_t)
        return out


class _Perturbed(ExactConditional):
    """The exact E[x | x_t, cond], plus an error of the same size for a network at each noise level.

    Args:
        exact: The exact denoiser.
        error: The size of the error, in units of the output of a preconditioned network.
    """

    def __init__(self, exact: ExactConditional, error: float) -> None:
        super().__init__(exact.prior, exact.conditioning)
        self.error = error

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        sigma = expand_level(sigma, x_t)
        return super().forward(x_t, sigma, cond) + self.error * sigma / (1 + sigma**2) * x_t


@dataclasses.dataclass
class _Case:
    """An objective with one set of options on one problem.

    Attributes:
        fitting: The objective.
        exact: The distribution of the signals.
        batch: Signals with their measurements.
    """

    fitting: Objective | ClosedFormObjective
    exact: Gaussian
    batch: Example

    @property
    def objective(self) -> Objective | None:
        """The objective, if it trains a model."""
        return self.fitting if isinstance(self.fitting, Objective) else None

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
        return "measurement" in self.fitting.needs and "x" not in self.fitting.needs

    def batches(self, objective: Objective) -> list[Example]:
        """Returns the batches that it must accept: signals with measurements, and a clean
        subset."""
        clean = self.measured and objective.takes_examples
        return [self.batch, self.clean] if clean else [self.batch]

    def build(self, objective: Objective, make_network: Callable[[], Denoiser]) -> Denoiser:
        """Returns the model of the objective, around networks, as a round of EM begins."""
        return objective.build(make_network, Prior.of(self.exact), self.m)

    def loss(self, objective: Objective, model: Denoiser, batch: Example) -> Tensor:
        return objective.loss(model, batch, self.rng(len(self.x if batch.x is None else batch.x)))

    def rng(self, n: int = _COUNT) -> Rng:
        return Rng.keyed("contracts", "objective", items=range(n))


def _cases(factory: Factory, folder: Path) -> Iterator[tuple[str, _Case]]:
    exact = example_prior(_SHAPE)
    known = Prior.of(exact).provides | {"x", "measurement"}
    x = exact.sample(Rng.keyed("contracts", "truth", items=range(_COUNT)))
    problems: tuple[Literal["mask", "whole"], ...] = ("mask", "whole")
    for observed in problems:
        m = example_measurement(observed, _COUNT, _SHAPE)
        for label, options in example_options(factory, _SHAPE, folder):
            objective: Objective | ClosedFormObjective = factory(**options)
            if objective.needs - m.provides - known:
                continue
            # A = I tells nothing new of an objective that asks for neither it nor singular values.
            if observed == "mask" or objective.needs & {"identity", "svd"}:
                yield f"{observed}, {label}", _Case(objective, exact, Example(x, m))


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
    if (objective := case.objective) is None:
        return None
    model, few = case.build(objective, lambda: ExactConditional(case.exact)), 3
    y = torch.cat([case.m.y[:1], case.m.y[1:] + 5])
    other_x = torch.cat([case.x[:1], case.x[1:] + 5])
    others = (Example(other_x, dataclasses.replace(case.m, y=y)), Example(other_x))
    worst = 0.0
    for batch, other_batch in zip(case.batches(objective), others, strict=False):
        loss, other = (case.loss(objective, model, b) for b in (batch, other_batch))
        m = None if batch.measurement is None else batch.measurement[torch.arange(few)]
        first_few = case.loss(objective, model, Example(case.x[:few], m))
        # A loss that ignores its data passes all else.
        ignored = objective.takes_examples and torch.equal(other[1:], loss[1:])
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
    if (objective := case.objective) is None:
        return None
    dead = 0
    for batch in case.batches(objective):
        model = case.build(objective, _Linear)
        case.loss(objective, model, batch).mean().backward()  # type: ignore[no-untyped-call]
        weights = [w for group in objective.parameter_groups(model) for w in group.parameters]
        dead += sum(w.grad is None or not bool(w.grad.any()) for w in weights)
        dead += not weights
    return float(dead)


@OBJECTIVES.contract("every weight once", tolerance=0.0)
def every_weight_once(case: _Case) -> float | None:
    """`parameter_groups` holds every trainable weight of the model once, and nothing else, each at
    a positive rate; the number of weights that are not; not for closed forms."""
    if (objective := case.objective) is None:
        return None
    model = case.build(objective, _Linear)
    groups = objective.parameter_groups(model)
    held = [id(w) for group in groups for w in group.parameters]
    wanted = {id(w) for w in model.parameters() if w.requires_grad}
    twice = len(held) - len(set(held))
    return float(
        twice + len(wanted.symmetric_difference(held)) + sum(not g.share > 0 for g in groups)
    )


@OBJECTIVES.contract("weights in the state", tolerance=0.0)
def weights_in_the_state(case: _Case) -> float | None:
    """`state_dict` of the model holds all that was learned: a model that is built again without
    prior and measurements, and loads it, is the same prior; not for closed forms."""
    if (objective := case.objective) is None:
        return None
    model, again = case.build(objective, _Linear), objective.build(_Linear, None, None)
    again.load_state_dict(model.state_dict())
    few = torch.arange(3)
    x, m = case.x[few], case.m[few]
    answers: list[list[Tensor]] = []
    for built in (model, again):
        prior = objective.prior(built.eval(), case.exact)
        given = [prior(x, 0.3)]
        if prior.conditioning is not None:
            given.append(prior(x, 0.3, prior.conditioning(m)))
        if prior.generator is not None:
            given.append(prior.generator(case.rng(3), _SHAPE, x))
        if prior.exact is not None:
            given.append(prior.exact.posterior_mean(m))
        answers.append(given)
    return max(relative_error(b, a) for a, b in zip(*answers, strict=True))


@OBJECTIVES.contract("least when exact", tolerance=-3.0)
def least_when_exact(case: _Case) -> float | None:
    """The loss of the exact denoiser is at least three standard errors below that of two perturbed
    ones; not for closed forms and distillation, nor where the exact one is not known.

    An objective on measurements is held to it for A = I, on a clean subset, and where the denoiser
    is conditioned on the mask: from masks alone some learn another function than E[x | x_t].
    """
    objective = case.objective
    if objective is None or not objective.takes_examples or _exact(case, objective) is None:
        return None
    exact_from_measurements = (
        not case.measured or "identity" in case.m.provides or objective.condition > 0
    )
    batches = [case.batch] if exact_from_measurements else []
    batches += [case.clean] if case.measured else []
    worst = -math.inf
    for batch in batches:
        exact, *others = (
            _loss_of_perturbed(case, objective, batch, error) for error in (0.0, -0.2, 0.2)
        )
        for other in others:
            gap = exact - other
            worst = max(worst, float(gap.mean() / gap.std() * len(gap) ** 0.5))
    return worst


def _exact(case: _Case, objective: Objective) -> ExactConditional | None:
    """Returns the exact E[x | x_t, cond] with the condition of the objective, if it is known."""
    model = case.build(objective, lambda: ExactConditional(case.exact))
    conditioning = objective.prior(model, case.exact).conditioning
    exact = ExactConditional(case.exact, conditioning)
    if conditioning is None:
        # The mask of what x_t shows is the one condition that needs no `Conditioning`.
        return exact if objective.condition <= 1 else None
    x, ones = case.x[:1], torch.ones(1, 1)
    known = conditioning.evidence(x, ones, conditioning(case.m[:1]), 1.0)
    return None if known is None else exact


def _loss_of_perturbed(case: _Case, objective: Objective, batch: Example, error: float) -> Tensor:
    """Returns the loss of each sample for a model that answers as the exact denoiser does, plus an
    error; so do the networks that it is built around."""
    exact = _exact(case, objective)
    assert exact is not None
    perturbed = _Perturbed(exact, error)
    model = case.build(objective, lambda: _Perturbed(exact, error))

    def answer(_: torch.nn.Module, args: tuple[Any, ...], given: dict[str, Any], __: Any) -> Tensor:
        x_hat: Tensor = perturbed(*args, **given)
        return x_hat

    model.register_forward_hook(answer, with_kwargs=True)
    return case.loss(objective, model, batch).detach().double()


def _solved(case: _Case) -> tuple[ClosedFormObjective, Any] | None:
    if not isinstance(case.fitting, ClosedFormObjective):
        return None

    def batches() -> Iterable[tuple[Example, Rng]]:
        return [(case.clean, case.rng())]

    return case.fitting, case.fitting.solve(Prior.of(Gaussian.standard(_SHAPE)), batches)


@OBJECTIVES.contract("closed form", tolerance=5.0)
def closed_form(case: _Case) -> float | None:
    """From clean signals a closed form finds their mean; the largest error, in standard errors."""
    if (solved := _solved(case)) is None:
        return None
    error = (solved[1].moments().mean - case.exact.mean).abs()
    return float((error / (case.x.std(0) / len(case.x) ** 0.5)).max())


@OBJECTIVES.contract("read back", tolerance=0.0)
def read_back(case: _Case) -> float | None:
    """`closed_form` makes the distribution that `solve` returned from its `tensors()`: the same
    denoiser, posterior mean and moments; closed forms only."""
    if (solved := _solved(case)) is None:
        return None
    objective, found = solved
    again = objective.closed_form(dict(found.tensors()))
    m, x_t = case.m[torch.arange(3)], normal_like(case.x[:3], "x_t")
    sigma = torch.tensor([[0.1], [1.0], [10.0]])
    return max(
        relative_error(again.denoise(x_t, sigma), found.denoise(x_t, sigma)),
        relative_error(again.posterior_mean(m), found.posterior_mean(m)),
        relative_error(again.moments().mean, found.moments().mean),
        relative_error(again.moments().cov.dense(), found.moments().cov.dense()),
    )
