"""How much a benchmark does: seeds, observations, draws, trials and the budget."""

import math
from dataclasses import dataclass

from invem.bench.problems import Problem
from invem.errors import RecipeError

__all__ = ["Design"]


@dataclass(frozen=True)
class Design:
    """How much a benchmark does.

    Attributes:
        seeds: The number of sets of observations and random numbers.
        observations: Observations per seed.
        draws: Draws per observation, at least 2.
        trials: Random trials of the options of each sampler, on other observations. The best is
            kept.
        budget: The largest number of forwards and products per draw that the settings were chosen
            for, or None.
    """

    seeds: int
    observations: int
    draws: int
    trials: int = 0
    budget: int | None = None

    @classmethod
    def of(
        cls,
        problem: Problem,
        seeds: int = 3,
        observations: int | None = None,
        draws: int | None = None,
        trials: int = 0,
        budget: int | None = None,
    ) -> "Design":
        """Fills in the sizes that are None, such that a problem takes minutes.

        Raises:
            RecipeError: If the problem has fewer observations, or there are fewer than 2 draws.
        """
        exact, d = problem.exact is not None, math.prod(problem.shape)
        if observations is not None and problem.limit is not None and observations > problem.limit:
            raise RecipeError(
                f"--observations: {problem.name} has {problem.limit} held-out observations besides"
                f" those for tuning, and {observations} are wanted"
            )
        if draws is not None and draws < 2:
            raise RecipeError("--draws: at least 2 are needed")
        default_draws = 16 if problem.has_pictures and not exact else 64
        return cls(
            seeds,
            observations or min(32 if exact else 16, problem.limit or 32),
            draws or (256 if exact and d <= 8 else default_draws),
            trials,
            budget,
        )
