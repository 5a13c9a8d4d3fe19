"""Distance between real observations and observations simulated from the prior."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, relu

from invem import DataError, Measurement, Metric, Outcome, Rng, Unsupported, examples
from invem.compare import (
    canonical_order,
    directions,
    frechet_distance,
    principal_components,
    sliced_wasserstein,
)

SPLITS, PROJECTIONS, RANK = 4, 256, 32
WIDTH, BATCH, EPOCHS, STEPS = 128, 256, 20, 200


@examples({"distance": "frechet"}, {"distance": "classifier"})
@dataclass(frozen=True, kw_only=True)
class ObservationDistance(Metric):
    """The distance between the distribution of y under the prior and that of the observations.

    It needs no clean signal. Samples are measured by operators and noise drawn anew. The
    observations are split at random into halves. The value is d(simulated, one half)/d(other half,
    that half), both averaged over the halves of 4 splits, with sets of one size. The floor is 1,
    where simulated and real observations are indistinguishable; it grows with the error of the
    prior. Two priors that the operators and the noise do not distinguish score the same. Entries of
    y that are pure noise are left out (zero in both sets). The splits depend on the set of
    observations, not on their order.

    The floor fluctuates, more so if few directions carry the variance. Its standard deviation is
    0.01 on masked, 0.05 on noisy and 0.15 on blurred Fashion-MNIST for "sliced-wasserstein", and
    0.02, 0.1 and 0.35 for "frechet", with 4,096 observations each. The distance of two halves falls
    with the number n of observations, as n^-1/2 or 1/n. The ratio of a wrong prior grows as much:
    compare values for equal numbers only.

    Attributes:
        distance: "sliced-wasserstein" is the root mean square over 256 directions, as in the metric
            of that name. "frechet" is the squared distance of Gaussians in the 32 leading principal
            components of the half that is compared with, so that the other half and the simulated
            set are treated alike. "classifier" is a two-sample test (D. Lopez-Paz and M. Oquab
            2017, arXiv 1610.06545) and no ratio. It is the accuracy on held-out observations of a
            small network on 32 principal components, trained to tell the two sets apart. Its floor
            is 0.5, and 1 is the worst. It alone sees more than moments and projections. The
            standard deviation of its floor is about 0.35 over the root of the number of
            observations.
    """

    distance: Literal["sliced-wasserstein", "frechet", "classifier"] = "sliced-wasserstein"
    needs: ClassVar[frozenset[str]] = frozenset({"observed", "simulated"})
    default: ClassVar[bool] = True
    above: ClassVar[str] = "observations simulated from the prior differ from the real ones"

    @property
    def least(self) -> Mapping[str, int]:
        return {"observed": 4, "simulated": 2}

    @property
    def target(self) -> float:
        """The value for two sets of real observations."""
        return 0.5 if self.distance == "classifier" else 1.0

    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns the ratio or the accuracy, shape (); NaN if an observation is not finite.

        Raises:
            DataError: If there are fewer than 4 observations or 2 simulated ones.
        """
        if outcome.observed is None or outcome.simulated is None:
            raise Unsupported("observation-distance needs observations and simulated ones")
        if len(outcome.observed) < 4 or len(outcome.simulated) < 2:
            raise DataError(
                "observation-distance needs at least four observations and two simulated ones"
            )
        real, simulated = _informative(outcome.observed), _informative(outcome.simulated)
        if not bool(real.isfinite().all() and simulated.isfinite().all()):
            return real.new_tensor(math.nan)
        value = (
            _accuracy(real, simulated)
            if self.distance == "classifier"
            else self._ratio(real, simulated)
        )
        return value.float()

    def _ratio(self, real: Tensor, simulated: Tensor) -> Tensor:
        n = min(len(real) // 2, len(simulated))
        over = under = real.new_zeros(())
        for split in range(SPLITS):
            rng = Rng.generator("observation-distance", split)
            halves = torch.split(real[torch.randperm(len(real), generator=rng)[: 2 * n]], n)
            for half, other in (halves, halves[::-1]):
                drawn = simulated[torch.randperm(len(simulated), generator=rng)[:n]]
                to = self._from(half)
                over, under = over + to(drawn), under + to(other)
        return over / under

    def _from(self, half: Tensor) -> Callable[[Tensor], Tensor]:
        """Returns the distance to `half`, (n, m), as a function of a set (n, m)."""
        if self.distance == "sliced-wasserstein":
            theta = directions(half.shape[1], PROJECTIONS, Rng.generator("observation-distance"))
            return lambda y: sliced_wasserstein(y, half, theta)
        _, basis, _ = principal_components(half, RANK)
        return lambda y: frechet_distance(y @ basis, half @ basis)


def _informative(m: Measurement) -> Tensor:
    """Returns y in canonical order, zero where it is pure noise, shape (n, m), float64."""
    y = m.y if m.A.seen is None else m.y * m.A.seen
    y = (torch.view_as_real(y) if y.is_complex() else y).flatten(1).cpu().double()
    return y[canonical_order(y)]


def _accuracy(real: Tensor, simulated: Tensor) -> Tensor:
    """Returns the accuracy of a classifier on held-out halves, averaged over both halves.

    Args:
        real: (n, m).
        simulated: (k, m).
    """
    n = min(len(real), len(simulated)) // 2
    rng = Rng.generator("observation-distance", "folds")
    folds = [
        torch.split(y[torch.randperm(len(y), generator=rng)[: 2 * n]], n) for y in (real, simulated)
    ]
    right = real.new_zeros(())
    for learned in (0, 1):
        both, held = (torch.cat([fold[k] for fold in folds]) for k in (learned, 1 - learned))
        mean, basis, variance = principal_components(both, RANK)
        basis = basis / variance.mean().sqrt().clamp(min=torch.finfo(variance.dtype).tiny)
        train, test = (((y - mean) @ basis).float() for y in (both, held))
        sign = _classify(train, test).sign().double()
        # A score of zero is half right; all are zero if all observations are equal.
        right = right + (1 - sign[:n]).sum() / 2 + (1 + sign[n:]).sum() / 2
    return right / (4 * n)


def _classify(train: Tensor, test: Tensor) -> Tensor:
    """Trains a classifier of the first half of `train` against the second.

    It has two hidden layers and a fixed initialisation.

    Returns:
        Its scores of `test`, shape (N,), positive for the second half.
    """
    rng = Rng.generator("observation-distance", "classifier")
    sizes = [train.shape[1], WIDTH, WIDTH, 1]
    weights = [torch.randn(a, b, generator=rng) * (2 / a) ** 0.5 for a, b in pairwise(sizes)]
    weights[-1].zero_()
    weights = [w.requires_grad_() for w in weights]
    biases = [torch.zeros(size, requires_grad=True) for size in sizes[1:]]

    def score(z: Tensor) -> Tensor:
        for w, b in zip(weights[:-1], biases[:-1], strict=True):
            z = relu(z @ w + b)
        out: Tensor = z @ weights[-1] + biases[-1]
        return out[:, 0]

    label = (torch.arange(len(train)) >= len(train) // 2).float()
    adam = torch.optim.AdamW([*weights, *biases], lr=2e-3, weight_decay=1e-2)
    batch = min(BATCH, len(train))
    per_epoch = len(train) // batch
    steps = max(EPOCHS * per_epoch, STEPS)
    with torch.enable_grad():
        for step in range(steps):
            if step % per_epoch == 0:
                order = torch.randperm(len(train), generator=rng)
            rows = order[step % per_epoch * batch :][:batch]
            for group in adam.param_groups:
                group["lr"] = 2e-3 * (1 - step / steps)
            adam.zero_grad()
            torch.autograd.backward(
                binary_cross_entropy_with_logits(score(train[rows]), label[rows])
            )
            adam.step()
    with torch.no_grad():
        return score(test)
