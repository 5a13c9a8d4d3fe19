"""A Gaussian prior in closed form: a warm start without clean images."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Interval

from invem import ClosedFormObjective, Example, Gaussian, Prior, RecipeError, Rng
from invem.prior import ClosedForm


@dataclass(frozen=True, kw_only=True)
class GaussianMoments(ClosedFormObjective):
    """One EM iteration on a Gaussian prior with covariance diag(D) + F F^T.

    It is the initialisation of DiEM (arXiv 2405.13712, appendix). From measurements, the E-step is
    an exact posterior draw for each (Matheron's rule). From signals there is no E-step. The M-step
    is maximum-likelihood factor analysis of the draws.

    Attributes:
        rank: The number of factors F; 64 if null. Not with `shrink`, whose covariance has all.
        shrink: For a small clean subset: the share of the covariance of a smooth field in the
            estimate (`Gaussian.shrunk_to_smooth_field`), between 0 and 1, or "auto". null is factor
            analysis. For signals of at most 4,096 entries.
    """

    rank: Annotated[int, Ge(0)] | None = None
    shrink: Annotated[float, Interval(ge=0, le=1)] | Literal["auto"] | None = None

    needs = frozenset({"adjoint", "var"})

    def __post_init__(self) -> None:
        if self.shrink is not None and self.rank is not None:
            raise RecipeError(
                "gaussian-moments: rank is for shrink: null; a shrunken covariance has all factors"
            )

    def refuses(self, shape: tuple[int, ...]) -> str | None:
        d = math.prod(shape)
        if self.shrink is None or d <= Gaussian.LARGEST:
            return None
        return (
            f"with shrink it is for signals of at most {Gaussian.LARGEST} entries, and these"
            f" have {d}"
        )

    def solve(
        self, prior: Prior, batches: Callable[[], Iterable[tuple[Example, Rng]]]
    ) -> ClosedForm:
        drawn = []
        for example, rng in batches():
            m = example.measurement
            if example.x is not None:
                drawn.append(example.x)
            elif m is not None:
                gaussian = prior.moments or Gaussian.standard(m.shape).to(m.y.device)
                drawn.append(gaussian.posterior(m, rng))
            else:
                raise RecipeError("gaussian-moments was given neither signals nor measurements")
        x = torch.cat(drawn)
        if self.shrink is None:
            return Gaussian.fit(x, 64 if self.rank is None else self.rank)
        return Gaussian.shrunk_to_smooth_field(x, None if self.shrink == "auto" else self.shrink)
