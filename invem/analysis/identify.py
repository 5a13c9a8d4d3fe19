"""What the observations of a recipe can say of the signals, before anything is learned.

All of it is about first and second moments: a prior may know more (that pixels are never below
zero, say), and may need more. With A_i the operators, S their noise and C = Cov[x]:

- A direction v is hidden if no A_i shows it: v^T M v = 0 with M the mean of A_i^T A_i. No number of
  observations can say what lies there.
- An observation tells a direction if lambda c is above the noise, lambda its eigenvalue of M and c
  the variance of the signal along it.
- Many observations tell the variance along v even where one does not: the Fisher information that y
  ~ N(0, A C A^T + S) carries on it gives the standard error sqrt(2/(n E[w^2])) c, w = c v^T A^T (c
  A A^T + S)^-1 A v. Where all operators are the same, and v is one of their singular vectors, this
  is sqrt(2/n) (c + noise/lambda). It takes the other variances as known, and C as c I, for c is a
  guess.
- A covariance is hidden if no operator shows both directions, though each is seen by some: T C =
  E[A^T A C A^T A] has a null space.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from invem.batched import Rng
from invem.errors import Unsupported
from invem.linear import Mask, Matrix
from invem.measurement import Measurement
from invem.noise import NoiseModel
from invem.operator import SVD, LinearOperator, Operator
from invem.planning.plan import Plan

__all__ = ["Identifiability", "identify"]

_BLOCK = 1024  # of the observations that a run draws at once
_HIDDEN = 1e-6  # an eigenvalue below this share of the largest is none
_LEARNED = 0.5  # the largest relative standard error of a variance that counts as learned
_DENSE = 1024  # entries of the largest signal whose eigenvalues are computed one by one
_ROWS = 8192  # rows of all matrices of operators together, where they are formed
_SMALL = 32  # directions up to which all second moments are looked at together
_NUMBERS = 2**25  # the most numbers of the operators that are held at once
_APPLIED = (
    2**14
)  # applications of an operator, where the singular vectors are known and the values are not
_PAIRED = 64  # directions whose pairs are looked at then
_SIGNALS = 64  # at which an operator that is not linear is looked at, at most
_PROBES, _STEPS = 2, 32  # of the Lanczos estimate


@dataclass(frozen=True, kw_only=True, eq=False)
class Identifiability:
    """What observations can say of signals.

    Attributes:
        eigenvalues: Of the mean of A^T A, descending, shape (d,).
        errors: The standard error of the variance along each of these directions, from all
            observations, relative to the variance of the signal; infinite where a direction is
            hidden. From above, where too few of the operators were looked at to know it; for an
            operator that is not linear as if its derivative were the same everywhere. Shape (d,).
        floors: The same from below; equal to `errors` where they are known. Shape (d,).
        observations: The number n of training observations.
        operators: How many operators were looked at; 1 if all are the same.
        shared: Whether all operators are the same.
        linear: Whether the operator is linear; else its derivatives at a few signals stand for it.
        exact: Whether each eigenvalue was computed; else they are the quantiles of a spectral
            density that random probes estimate.
        signal: c, the variance of an entry of the signal: a guess, that of a white signal that
            fills half of the range of the data. Images have more of it in coarse directions and far
            less in fine ones, for which what is said of noise is optimistic.
        noise: The variance of the noise of an entry, such that its inverse is the mean of those of
            all observations.
        fineness: The squared differences between neighbouring pixels in the hidden directions, or
            else in those too faint to be learned, over those in all others: above 1 is fine, below
            1 coarse; None if there are none, or signals are no images.
        pairs: What is looked at in pairs: "pixels", "entries", "directions", or "second moments"
            where all are looked at together; "" if nothing was.
        apart: The share of pairs, both of which are seen, that none of the operators shows
            together.
        together: The share of the operators that show a pair together: the least and the mean over
            pairs; None for "second moments".
        complete: Whether pairs were looked at in directions in which A^T A is diagonal for all
            operators, or all moments together, so that `apart` 0 means that no covariance is
            hidden.
        clean: Clean signals that the recipe grants.
        prior: Whether the recipe begins with a prior from elsewhere.
        truth: Whether the recipe has signals to grant some of.
    """

    eigenvalues: Tensor
    errors: Tensor
    floors: Tensor
    observations: int
    operators: int
    shared: bool
    linear: bool
    exact: bool
    signal: float
    noise: float
    fineness: float | None
    pairs: str
    apart: float
    together: tuple[float, float] | None
    complete: bool
    clean: int
    prior: bool
    truth: bool

    @property
    def directions(self) -> int:
        """The number d of directions: the entries of a signal."""
        return len(self.eigenvalues)

    @property
    def _seen(self) -> Tensor:
        return self.eigenvalues > _HIDDEN * self.eigenvalues[0]

    @property
    def _told(self) -> Tensor:
        return self._seen & (self.eigenvalues * self.signal >= self.noise)

    @property
    def hidden(self) -> int:
        """Directions that no operator shows."""
        return self.directions - int(self._seen.sum())

    @property
    def told(self) -> int:
        """Directions in which an observation has, at the mean over observations, more signal than
        noise."""
        return int(self._told.sum())

    @property
    def learned(self) -> int:
        """Directions whose variance all observations together tell to better than half of
        itself."""
        return int((self._seen & (self.errors <= _LEARNED)).sum())

    @property
    def pooled(self) -> int:
        """Directions whose distribution is learned though no single observation tells them: no
        restoration recovers them."""
        return int((self._seen & ~self._told & (self.errors <= _LEARNED)).sum())

    @property
    def faint(self) -> int:
        """Directions that are shown, but too faintly or too seldom to learn their variance."""
        return int((self._seen & (self.floors > _LEARNED)).sum())

    @property
    def unknown(self) -> int:
        """Directions of which too few operators were looked at to know whether their variance is
        learned."""
        return self.directions - self.hidden - self.learned - self.faint

    @property
    def warning(self) -> str | None:
        """What a person should know before the run, in one line; None if nothing is hidden, or if
        the recipe grants what says it."""
        if self.clean or self.prior:
            return None
        if self.hidden:
            return (
                f"{self._hiding()}; no number of observations can say what lies there, only the"
                f" prior: {self._advice()}"
            )
        if self.faint and self.linear:
            part = f"{self.faint:,} of {self.directions:,} directions{self._which()}"
            return (
                f"{self.observations:,} observations show {part} too faintly or too seldom to learn"
                f" them: {self._more()}"
            )
        if self.apart:
            return f"{self._separate()}: {self._remedy()}"
        return None

    def lines(self) -> list[str]:
        """Returns the report in words."""
        found = [self._hiding() + self._range()]
        if not self.exact:
            found.append(f"the numbers of directions are estimates by {_PROBES} random probes")
        scale = (
            f"a white signal of standard deviation {math.sqrt(self.signal):.2g}, noise of"
            f" {math.sqrt(self.noise):.2g}"
        )
        found.append(
            f"an observation has, at the mean, more signal than noise in {self._of(self.told)}"
            f" ({scale})"
        )
        if self.linear:
            found += self._learning()
        if self.pairs and self.apart:
            found.append(f"{self._separate()}: {self._remedy()}")
        elif self.together is not None and self.complete:
            least, mean = (_percent(share) for share in self.together)
            found.append(
                f"any two {self.pairs} are seen together by {least} of the operators or more"
                f" ({mean} at the mean)"
            )
        if self.hidden:
            found.append(
                "no number of observations can say what lies in the hidden directions, only the"
                f" prior: {self._advice()}"
            )
        if not self.linear:
            found.append(
                "the operator is not linear, and this is about signals near those: what leaves y as"
                " it is further off, such as a shift, a reflection or a sign, is not looked at"
            )
        elif not (self.hidden or self.faint or self.unknown or self.apart):
            what = (
                f"of the covariances only some of those between {self.pairs} were"
                if self.pairs
                else "covariances were not"
            )
            short = f"no direction is hidden; {what} looked at"
            whole = (
                "nothing is hidden: mean and covariance can be learned from these observations"
                " alone"
            )
            found.append(whole if self.complete else short)
        return found

    def _learning(self) -> list[str]:
        seen = self.errors[self._seen]
        if not len(seen):
            return []
        share, least = _percent(_LEARNED), "at least " if self.unknown else ""
        found = [
            f"{self.observations:,} observations tell the variance to {share} or better in"
            f" {least}{self._of(self.learned)} (the median of those that are seen:"
            f" {_percent(float(seen.median()))})"
        ]
        if self.pooled:
            found.append(
                f"{self.pooled:,} of these are learned from many observations alone: no single"
                " restoration can recover them"
            )
        if self.unknown:
            found.append(
                f"of {self.unknown:,} directions this is not known: too few of the operators were"
                " looked at"
            )
        if self.faint:
            which = self._which() if not self.hidden else ""
            wanted = self.observations * (float(self.floors[self._seen].max()) / _LEARNED) ** 2
            found.append(
                f"{self.faint:,} directions{which} are shown too faintly or too seldom to learn"
                f" their variance, the worst of which takes {wanted:.1g} observations:"
                f" {self._more()}"
            )
        return found

    def describe(self) -> dict[str, Any]:
        """Returns the report as plain data; `spectrum` is (rank, eigenvalue, error) at up to 64
        ranks, first and last among them."""
        ranks = (
            torch.linspace(0, self.directions - 1, min(self.directions, 64)).round().long().tolist()
        )
        values = [(r, float(self.eigenvalues[r]), float(self.errors[r])) for r in ranks]
        return {
            "directions": self.directions,
            "hidden": self.hidden,
            "told by one observation": self.told,
            "learned": self.learned,
            "pooled": self.pooled,
            "faint": self.faint,
            "unknown": self.unknown,
            "fineness": self.fineness,
            "pairs": {
                "of": self.pairs,
                "never together": self.apart,
                "together": list(self.together) if self.together else None,
                "complete": self.complete,
            },
            "observations": self.observations,
            "operators": self.operators,
            "same operator": self.shared,
            "linear": self.linear,
            "exact": self.exact,
            "signal variance": self.signal,
            "noise variance": self.noise,
            "clean": self.clean,
            "spectrum": [
                [r, value, error if math.isfinite(error) else None] for r, value, error in values
            ],
            "warning": self.warning,
            "text": self.lines(),
        }

    def _of(self, k: int) -> str:
        return (
            f"all {k:,} directions"
            if k == self.directions
            else f"{k:,} of {self.directions:,} directions"
        )

    def _hiding(self) -> str:
        if not self.linear:
            who, verbs = (
                f"the derivatives of the operator at {self.operators} signals together",
                ("hide", "show"),
            )
        elif self.shared:
            who, verbs = "every operator is the same and", ("hides", "shows")
        else:
            who, verbs = (
                f"the operators differ; the {self.operators:,} that were looked at together",
                ("hide", "show"),
            )
        if not self.hidden:
            return f"{who} {verbs[1]} all {self.directions:,} directions"
        return (
            f"{who} {verbs[0]} {'' if self.exact else 'about '}{self.hidden:,} of"
            f" {self.directions:,} directions{self._which()}"
        )

    def _range(self) -> str:
        seen = self.eigenvalues[self._seen]
        if not len(seen):
            return ""
        low, high = float(seen[-1]), float(seen[0])
        where = ("A^T A" if self.shared else "the mean of A^T A") + (
            " in the others" if self.hidden else ""
        )
        return (
            f" ({where}: {high:.2g})"
            if f"{low:.2g}" == f"{high:.2g}"
            else f" ({where}: {low:.2g} to {high:.2g})"
        )

    def _which(self) -> str:
        if self.fineness is None or 0.8 < self.fineness < 1.25:
            return ""
        return f", mostly the {'fine' if self.fineness > 1 else 'coarse'} ones"

    def _advice(self) -> str:
        missing = self.hidden + self.faint
        if self.clean:
            few = (
                f", and how they vary together in no more than {self.clean - 1:,} combinations of"
                f" the {missing:,}"
            )
            return f"{self._granted()}{few if self.clean <= missing else ''}"
        if self.prior:
            return "what the recipe begins with"
        if not self.truth:
            return "name one that was learned elsewhere (`prior:`)"
        return (
            "grant clean images: `clean: 50` tell the variance of each hidden direction to 20 %,"
            f" 200 to 10 %; how they vary together takes more than {missing:,}"
        )

    def _granted(self) -> str:
        return (
            f"the {self.clean:,} clean images of the recipe tell the variance of each to"
            f" {_percent(round(math.sqrt(2 / self.clean), 2))}"
        )

    def _more(self) -> str:
        if self.clean:
            return self._granted()
        if self.prior:
            return "what the recipe begins with says the rest"
        return (
            f"more observations{', clean images' if self.truth else ''} or a prior from elsewhere"
            " must tell it"
        )

    def _separate(self) -> str:
        if self.pairs == "second moments":
            return (
                f"{_percent(self.apart)} of the {self.pairs} are in none of the observations,"
                " though every direction is"
            )
        return f"{_percent(self.apart)} of the pairs of {self.pairs} are never seen together"

    def _remedy(self) -> str:
        if self.clean:
            told = (
                f"the {self.clean:,} clean images of the recipe tell a correlation to"
                f" {1 / math.sqrt(self.clean):.2f}"
            )
        elif self.prior:
            told = "what the recipe begins with says it"
        else:
            told = (
                "clean images tell a correlation to 1/sqrt(k): `clean: 50` to 0.14"
                if self.truth
                else "a prior must (`prior:`)"
            )
        return f"how they vary together is not in the observations; {told}"


def _percent(share: float) -> str:
    return "fewer than 0.1 %" if 0 < share < 5e-4 else f"{100 * share:.3g} %"


class _Found(NamedTuple):
    """What is known of n operators.

    Attributes:
        eigenvalues: Of the mean of A^T A, shape (d,), in any order.
        information: E[w^2] along each, shape (d,).
        operators: How many were looked at.
        vectors: Indices to eigenvectors, (k,) to (k, *shape); None if they are not known.
        pairs: What is looked at in pairs; "" for nothing.
        apart: The share of pairs never seen together.
        together: The least and the mean share of operators that see a pair.
        complete: Whether no covariance is hidden if `apart` is 0.
        ceiling: A bound from above on the information, where it is one from below, shape (d,); None
            where it is known.
    """

    eigenvalues: Tensor
    information: Tensor
    operators: int
    vectors: Callable[[Tensor], Tensor] | None = None
    pairs: str = ""
    apart: float = 0.0
    together: tuple[float, float] | None = None
    complete: bool = True
    ceiling: Tensor | None = None


def identify(plan: Plan) -> Identifiability:
    """Looks at what the operators and the noise of a plan let be known of the signals.

    Operators are drawn as the run will draw them. Where all share their singular vectors (masks,
    blurs with a circular boundary, masks in Fourier space, and one operator that is the same for
    all) everything is exact and all of the training observations are looked at, as far as memory
    allows. Others are formed as matrices, as many as have 8,192 rows together, for signals of up to
    1,024 entries; above that the spectrum is estimated by Lanczos steps on random probes
    (stochastic Lanczos quadrature, Ubaru, Chen & Saad 2017).

    An operator that is not linear is looked at by its derivatives at the first signals of the data,
    or at white Gaussian ones where there are only observations.

    Raises:
        Unsupported: If the operator has no derivative, as JPEG compression.
    """
    A, noise, n = _drawn(plan)
    low, high = plan.facts.range
    signal = ((high - low) / 4) ** 2 if math.isfinite(high - low) and high > low else 1.0
    linear = isinstance(A, LinearOperator)
    if A.straight_through:
        name = plan.recipe.operator.name
        raise Unsupported(
            f"{name} has no derivative, only a stand-in for one: what it hides cannot be computed"
        )
    x = (
        _signals(plan, min(n, _SIGNALS), signal)
        if not linear or "var" not in noise.provides
        else None
    )
    variance = _variance(A, noise, x)
    shared = linear and _same(A)
    if shared:
        A, n = A[0], 1
    if x is not None and not linear:
        A, n = A[torch.arange(len(x))], len(x)
        found = _formed(A, n, plan.train, variance[:n], signal, x)
    else:
        found = _look(A, n, plan.train, variance, signal)
    order = found.eigenvalues.argsort(descending=True)
    values = found.eigenvalues[order].clamp(min=0)
    seen = values > _HIDDEN * values[0]

    def error(information: Tensor) -> Tensor:
        return torch.where(
            seen, (2 / (plan.train * information[order].clamp(min=1e-300))).sqrt(), math.inf
        )

    errors = error(found.information)
    fineness = None
    if found.vectors is not None and len(plan.shape) == 3:
        hidden = ~seen if not bool(seen.all()) else errors > _LEARNED
        fineness = _fineness(found.vectors, order[hidden])
    clean = plan.recipe.clean
    return Identifiability(
        eigenvalues=values,
        errors=errors,
        floors=errors if found.ceiling is None else error(found.ceiling),
        observations=plan.train,
        operators=found.operators,
        shared=shared,
        linear=linear,
        exact=found.vectors is not None,
        signal=signal,
        noise=0.0 if bool((variance == 0).any()) else float(1 / (1 / variance).mean()),
        fineness=fineness,
        pairs=found.pairs if linear else "",
        apart=found.apart if linear else 0.0,
        together=found.together if linear else None,
        complete=linear and found.complete,
        clean=plan.train if clean == "all" else min(clean, plan.train),
        prior=plan.recipe.prior is not None,
        truth=not plan.observed,
    )


def _drawn(plan: Plan) -> tuple[Operator, NoiseModel, int]:
    """Draws the first operators and noise laws of the run, as many as memory allows; returns how
    many, too."""
    seed, n, d = plan.recipe.seed, plan.train, math.prod(plan.shape)

    def draw(k: int, block: int) -> Measurement:
        return Measurement(
            torch.zeros(k),
            *plan.law(k, Rng.generator(seed, "measure", "train", block), plan.recipe.assume),
        )

    few = draw(min(n, 2), 0)
    common = few.shared_paths()
    each = sum(t.numel() for path, t in few.tensors().items() if path not in common) // len(few)
    most = max(min(n, _NUMBERS // max(each, 1), _NUMBERS // (4 * d)), min(n, 2))
    if most < min(n, _BLOCK):
        m = draw(most, 0)
    else:
        parts = [draw(min(_BLOCK, n - first), first // _BLOCK) for first in range(0, most, _BLOCK)]
        tensors = [part.tensors() for part in parts]
        m = parts[0].with_tensors(
            {
                p: t if p in common else torch.cat([part[p] for part in tensors])
                for p, t in tensors[0].items()
            }
        )
    if plan.observed:
        data: Any = plan.data("train")
        measured = getattr(data, "measured", None)
        if measured is not None:
            given = {path: t for path, t in measured(torch.arange(len(m))).items() if path != "y"}
            m = m.with_tensors(m.tensors() | given)
    return m.A, m.noise, len(m)


def _signals(plan: Plan, k: int, signal: float) -> Tensor:
    """Returns k signals: the first of the data, or white Gaussian ones where there are only
    observations."""
    if not plan.observed:
        x = plan.data("train")[torch.arange(k)].x
        assert x is not None
        return x
    low, high = plan.facts.range
    middle = (low + high) / 2 if math.isfinite(low + high) else 0.0
    return middle + math.sqrt(signal) * torch.randn(
        k, *plan.shape, generator=Rng.generator("identify", "signals")
    )


def _variance(A: Operator, noise: NoiseModel, x: Tensor | None) -> Tensor:
    """Returns the variance of the noise of an entry of each observation, or of all together, shape
    (n,) or (1,), in float64.

    Where it differs between entries its inverse is the mean of theirs. A noise that is not Gaussian
    is drawn, at the signals x.
    """
    if "var" in noise.provides:
        var = noise.var().double().flatten(1)
        var = torch.where((var > 0).all(1), 1 / (1 / var).mean(1), 0.0)
        return var[:1] if bool((var == var[0]).all()) else var
    assert x is not None
    first = torch.arange(len(x))
    clean = A[first](x)
    drawn = noise[first].sample(clean, Rng.generator("identify", "noise"))
    error: Tensor = (drawn - clean).double().square().mean().reshape(1)
    return error


def _same(A: Operator) -> bool:
    """Whether all operators of a batch are the same."""
    common = A.shared_paths()
    return all(bool((t == t[:1]).all()) for path, t in A.tensors().items() if path not in common)


def _look(A: Operator, n: int, of: int, variance: Tensor, signal: float) -> _Found:
    """Looks at the spectrum of n linear operators of those of the run, exactly if it can be."""
    single, A = A, A.to(dtype=torch.float64)
    svd = _common(A, n)
    if svd is not None:

        def vectors(index: Tensor) -> Tensor:
            one = A[torch.zeros(len(index), dtype=torch.long)].svd()
            e = torch.zeros(len(index), math.prod(A.shape), dtype=torch.float64).scatter(
                1, index[:, None], 1.0
            )
            found: Tensor = one.v(e).reshape(-1, *A.shape)
            return found

        powers = svd.s.double().square()
        powers = torch.nn.functional.pad(powers, (0, math.prod(A.shape) - powers.shape[1]))
        return _diagonal(
            powers,
            of,
            variance,
            signal,
            vectors,
            _entries(A) if isinstance(A, Mask) else "directions",
        )
    if math.prod(A.shape) <= _DENSE:
        return _formed(single, n, of, variance, signal)
    return _estimated(A, n, variance, signal)


def _entries(A: Operator) -> str:
    return "pixels" if len(A.shape) == 3 else "entries"


def _common(A: Operator, n: int) -> SVD | None:
    """Returns the singular values of the operators where all have the same right singular
    vectors."""
    if "svd" not in A.provides or isinstance(A, Matrix):
        return None
    try:
        few = A[:2].svd() if n > 1 else A.svd()
        if n > 1:
            x = torch.randn(
                1, *A.shape, generator=Rng.generator("identify", "probe"), dtype=torch.float64
            ).expand(2, *A.shape)
            z = few.vt(x.contiguous())
            if not torch.allclose(z[0], z[1], rtol=0, atol=1e-9):
                return None
        return A.svd()
    except Unsupported:
        return None


def _diagonal(
    powers: Tensor,
    of: int,
    variance: Tensor,
    signal: float,
    vectors: Callable[[Tensor], Tensor],
    pairs: str = "",
) -> _Found:
    """The case in which all operators have the same right singular vectors. powers: the squared
    singular values, (n or 1, d)."""
    shown = signal * powers
    level = variance[: len(powers) if len(powers) > 1 else None, None]
    w = torch.where(shown > 0, shown / (shown + level), 0.0)
    values, information = powers.mean(0), w.square().mean(0)
    if not pairs or len(powers) == 1:
        return _Found(values, information, len(powers), vectors)
    return _Found(values, information, len(powers), vectors, pairs, *_together(powers, of))


def _some(index: Tensor, most: int) -> Tensor:
    """Returns a random choice of indices, or all if they are no more than that."""
    return index[torch.randperm(len(index), generator=Rng.generator("identify", "pairs"))[:most]]


def _together(powers: Tensor, of: int) -> tuple[float, tuple[float, float] | None, bool]:
    """Returns the share of the pairs of seen directions that no operator shows together, the least
    and the mean share of operators that show a pair, and whether all is known. Of more than 1,024
    directions a random choice is looked at.

    Where powers, shape (k, d), are those of a part of the operators of the run, a pair counts as
    never seen together only if operators that showed its two directions independently of each other
    would have been expected to show it 15 times; others are not known.
    """
    mean = powers.mean(0)
    index = _some((mean > _HIDDEN * mean.max()).nonzero()[:, 0], _DENSE)
    if len(index) < 2:
        return 0.0, None, True
    shown = (powers[:, index] > _HIDDEN * mean.max()).float()
    upper = torch.triu_indices(len(index), len(index), 1).unbind()
    share = (shown.T @ shown / len(shown))[upper]
    none = share == 0
    never = none
    if len(powers) < of:
        each = shown.mean(0)
        never = none & (len(powers) * each[upper[0]] * each[upper[1]] > 15)
    return (
        float(never.double().mean()),
        (float(share.min()), float(share.mean())),
        bool((never == none).all()),
    )


def _matrices(A: Operator, k: int, side: int, x: Tensor | None) -> Tensor:
    """Returns the first k operators, or their derivatives at x, as matrices (k, m, d): row by row
    or column by column.

    They are applied in the precision of A, float32, and kept in float64: an error of e in A is one
    of e^2 in the small eigenvalues.
    """
    d = math.prod(A.shape)
    shape = A[0](torch.zeros(1, *A.shape)).shape[1:]
    by_row = side < d or x is not None
    basis = torch.eye(side if by_row else d)
    found = []
    for first in range(0, k, each := max(1, 2**22 // (len(basis) * max(side, d)))):
        some = torch.arange(first, min(first + each, k)).repeat_interleave(len(basis))
        part, e = A[some], basis.repeat(len(some) // len(basis), 1)
        if x is not None:
            out = part.vjp(x[some], e.reshape(-1, *shape))
        else:
            out = part.adjoint(e.reshape(-1, *shape)) if by_row else part(e.reshape(-1, *A.shape))
        block = out.detach().reshape(len(some) // len(basis), len(basis), -1)
        found.append(block if by_row else block.mT)
    return torch.cat(found).double()


def _dtype(A: Operator) -> torch.dtype:
    """The precision of an operator."""
    return next((t.dtype for t in A.tensors().values() if t.is_floating_point()), torch.float64)


def _powers(A: Operator, k: int, v: Tensor) -> Tensor:
    """Returns |A_i v_p|^2 of the first k operators and the columns of v, shape (k, columns)."""
    found, x = [], v.T.to(_dtype(A)).reshape(-1, *A.shape)
    for first in range(0, k, each := max(1, 2**16 // len(x))):
        some = torch.arange(first, min(first + each, k))
        y = A[some.repeat_interleave(len(x))](x.repeat(len(some), *[1] * len(A.shape)))
        found.append(y.flatten(1).double().square().sum(1).reshape(len(some), -1))
    return torch.cat(found)


def _formed(
    A: Operator, n: int, of: int, variance: Tensor, signal: float, x: Tensor | None = None
) -> _Found:
    """The case in which the operators are formed as matrices; those of the derivatives at x if they
    are not linear."""
    d, side = math.prod(A.shape), A[0](torch.zeros(1, *A.shape)).numel()
    k = min(n, max(_ROWS // side, 2))
    matrices = _matrices(A, k, side, x)
    rows = matrices.reshape(-1, d)
    mean = rows.T @ rows / k

    def basis(v: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda index: v[:, index].T.reshape(-1, *A.shape)

    if k == 1 or x is not None:
        values, v = torch.linalg.eigh(mean)
        return _diagonal(values.clamp(min=0)[None], of, variance, signal, basis(v))._replace(
            operators=k
        )
    if _commute(matrices):
        # A sum with random weights has the common eigenvectors, also where the mean has eigenvalues
        # in common.
        weights = torch.rand(k, generator=Rng.generator("identify", "weights"), dtype=torch.float64)
        v = torch.linalg.eigh(
            rows.T @ (weights.repeat_interleave(side)[:, None] * rows)
        ).eigenvectors
        values = (rows @ v).square().sum(0) / k
        if float((mean @ v - v * values).abs().max()) < 1e-5 * float(values.max()):
            found = _diagonal(
                _powers(A, min(n, max(k, _APPLIED // d)), v), of, variance, signal, basis(v)
            )
            found = (
                _searched(A, n, found, v, _norm(matrices), variance, signal)
                if found.operators < n
                else found
            )
            kept = v[:, _some((values > _HIDDEN * values.max()).nonzero()[:, 0], _PAIRED)]
            apart, together, complete = _together(
                _powers(A, min(n, 2 * _APPLIED // _PAIRED), kept), of
            )
            return found._replace(
                pairs="directions", apart=apart, together=together, complete=complete
            )
    values, v = torch.linalg.eigh(mean)
    norm, few = _norm(matrices), matrices[: max(1, _ROWS // (2 * side))]
    information = _information(
        few, v, variance.clamp(min=1e-9 * signal * float(values[-1])), signal
    )
    found = _Found(values.clamp(min=0), information, k, basis(v))
    found = _searched(A, n, found, v, norm, variance, signal) if len(few) < n else found
    seen = v[:, values > _HIDDEN * values[-1]]
    if seen.shape[1] <= _SMALL:
        return found._replace(pairs="second moments", apart=_unseen_moments(matrices @ seen))
    apart, together, _ = _together(matrices.square().sum(1), of)
    return found._replace(pairs=_entries(A), apart=apart, together=together, complete=False)


def _norm(matrices: Tensor) -> float:
    """Returns the largest |A_i|^2, by power iteration. matrices: (k, m, d)."""
    x = torch.randn(
        len(matrices),
        matrices.shape[2],
        1,
        generator=Rng.generator("identify", "norm"),
        dtype=torch.float64,
    )
    for _ in range(20):
        x = matrices.mT @ (matrices @ (x / x.norm(dim=1, keepdim=True).clamp(min=1e-300)))
    return float(x.norm(dim=1).max())


def _bounds(values: Tensor, norm: float, variance: Tensor, signal: float) -> tuple[Tensor, Tensor]:
    """Returns bounds on E[w^2] along eigenvectors, from below and from above.

    W >= c A^T A/(c |A|^2 + noise) and E[w^2] >= E[w]^2; w <= 1, and w is at most c t/(c t + noise)
    with t = |A v|^2, which is concave.
    """
    shown, level = signal * values, variance[:, None]
    low = torch.where(shown > 0, shown / (signal * norm + level), 0.0).square().mean(0)
    high = torch.where(shown > 0, shown / (shown + level), 0.0).mean(0)
    return low, high


def _searched(
    A: Operator, n: int, found: _Found, v: Tensor, norm: float, variance: Tensor, signal: float
) -> _Found:
    """Widens what a few operators say: the others may show what these do not.

    The directions that they do not show are looked at with one random combination of the rows of
    every other operator, and the information on all directions is given bounds.
    """
    hidden = (found.eigenvalues <= _HIDDEN * found.eigenvalues.max()).nonzero()[:, 0]
    first = found.operators
    if len(hidden) and first < n:
        shape = A[0](torch.zeros(1, *A.shape)).shape[1:]
        lost, gram = v[:, hidden], torch.zeros(len(hidden), len(hidden), dtype=torch.float64)
        rng = Rng.generator("identify", "search")
        for start in range(first, n, 256):
            some = torch.arange(start, min(start + 256, n))
            rows = (
                A[some]
                .adjoint(torch.randn(len(some), *shape, generator=rng))
                .detach()
                .flatten(1)
                .double()
                @ lost
            )
            gram += rows.T @ rows / n
        values, turn = torch.linalg.eigh(gram)
        v = v.index_copy(1, hidden, lost @ turn)
        found = found._replace(
            eigenvalues=found.eigenvalues.index_copy(0, hidden, values.clamp(min=0)),
            operators=n,
            vectors=lambda index: v[:, index].T.reshape(-1, *A.shape),
        )
    low, high = _bounds(found.eigenvalues, norm, variance, signal)
    return found._replace(
        information=found.information.maximum(low), ceiling=found.information.maximum(high)
    )


def _information(matrices: Tensor, v: Tensor, variance: Tensor, signal: float) -> Tensor:
    """Returns the mean over matrices (k, m, d) of w^2, w = c v^T A^T (c A A^T + noise)^-1 A v, for
    the columns v. variance: (n or 1,)."""
    k, m, d = matrices.shape
    total = torch.zeros(v.shape[1], dtype=torch.float64)
    for matrix, level in zip(
        matrices, variance.expand(k) if len(variance) == 1 else variance[:k], strict=True
    ):
        if m <= d:
            root = torch.linalg.cholesky(
                signal * matrix @ matrix.T + level * torch.eye(m, dtype=torch.float64)
            )
            w = signal * torch.linalg.solve_triangular(root, matrix @ v, upper=False).square().sum(
                0
            )
        else:
            root = torch.linalg.cholesky(
                signal * matrix.T @ matrix + level * torch.eye(d, dtype=torch.float64)
            )
            w = 1 - level * torch.linalg.solve_triangular(root, v, upper=False).square().sum(0)
        total += w.clamp(min=0).square() / k
    return total


def _commute(matrices: Tensor) -> bool:
    """Whether A_i^T A_i and A_j^T A_j commute, so that they have common eigenvectors: looked at on
    a random vector, for the first few."""
    few = matrices[:6]
    x = torch.randn(few.shape[2], generator=Rng.generator("identify", "probe"), dtype=torch.float64)
    for a, b in pairwise(few):
        g, h = a.T @ (a @ x), b.T @ (b @ x)
        if float((a.T @ (a @ h) - b.T @ (b @ g)).norm() * x.norm()) > 1e-5 * float(
            g.norm() * h.norm()
        ):
            return False
    return True


def _unseen_moments(matrices: Tensor) -> float:
    """Returns the share of the second moments of d directions that are in none of the covariances A
    C A^T. matrices: (k, m, d)."""
    d = matrices.shape[2]
    if matrices.shape[1] > d:
        matrices = torch.linalg.qr(matrices).R
    m = matrices.shape[1]
    p, q = torch.triu_indices(d, d)
    a, b = torch.triu_indices(m, m)
    total = torch.zeros(len(p), len(p), dtype=torch.float64)
    for one in matrices[: max(1, _ROWS // len(a))]:
        products = one[a][:, p] * one[b][:, q] + one[a][:, q] * one[b][:, p]
        products = (
            products
            * torch.where(p == q, 0.5, 0.5**0.5)
            * torch.where(a == b, 1.0, 2**0.5)[:, None]
        )
        total += products.T @ products
    values = torch.linalg.eigvalsh(total)
    return float((values < 1e-10 * values[-1]).double().mean())


def _estimated(A: Operator, n: int, variance: Tensor, signal: float) -> _Found:
    """The case of large signals: stochastic Lanczos quadrature of the mean of a few operators.

    The information is that of one operator where all are the same, and otherwise a bound from
    below.
    """
    d = math.prod(A.shape)
    k = min(n, max(2**17 // d, 8))
    each = [A[torch.full((_PROBES,), i)] for i in range(k)]

    def mean(v: Tensor) -> Tensor:
        x = v.reshape(-1, *A.shape)
        return torch.stack([one.adjoint(one(x)).flatten(1) for one in each]).mean(0)

    signs = torch.randint(2, (_PROBES, d), generator=Rng.generator("identify", "probe")).double()
    q = (2 * signs - 1) / d**0.5
    steps = min(_STEPS, d)
    basis = torch.zeros(_PROBES, steps, d, dtype=torch.float64)
    inner = torch.zeros(_PROBES, steps, steps, dtype=torch.float64)
    for j in range(steps):
        basis[:, j] = q
        w = mean(q)
        size = w.norm(dim=1, keepdim=True)
        inner[:, j, j] = (w * q).sum(1)
        for _ in range(2):
            w = w - torch.einsum("pjd,pj->pd", basis, torch.einsum("pjd,pd->pj", basis, w))
        left = w.norm(dim=1, keepdim=True)
        alive = left > 1e-10 * size
        q = torch.where(alive, w / left.clamp(min=1e-300), 0.0)
        if j + 1 < steps:
            inner[:, j, j + 1] = inner[:, j + 1, j] = torch.where(alive, left, 0.0)[:, 0]
    nodes, turns = torch.linalg.eigh(inner)
    weights = turns[:, 0].square().flatten()
    order = nodes.flatten().argsort(descending=True)
    reached = weights[order].cumsum(0) / weights.sum()
    ranks = (torch.arange(d, dtype=torch.float64) + 0.5) / d
    values = nodes.flatten()[order][
        torch.searchsorted(reached, ranks).clamp(max=len(order) - 1)
    ].clamp(min=0)
    norm = float(nodes.max())
    low = torch.where(turns[:, 0].square() > 1e-10, nodes, math.inf).argmin(1)
    if n > k and bool((nodes.gather(1, low[:, None]) <= _HIDDEN * norm).any()):
        # What these few do not show may be shown by others: all of them look at one random
        # direction of it for each probe.
        lost = torch.einsum("pjd,pj->pd", basis, turns[torch.arange(_PROBES), :, low])
        values = torch.where(
            values <= _HIDDEN * norm,
            _powers(A, n, (lost / lost.norm(dim=1, keepdim=True)).T).mean(),
            values,
        )
    if n > 1:
        some = A[:k]
        x = torch.randn(
            k, *A.shape, generator=Rng.generator("identify", "norm"), dtype=torch.float64
        )
        for _ in range(20):
            x = some.adjoint(
                some(
                    x / x.flatten(1).norm(dim=1).clamp(min=1e-300).reshape(-1, *[1] * len(A.shape))
                )
            )
        norm = float(x.flatten(1).norm(dim=1).max())
        low, high = _bounds(values, norm, variance, signal)
        return _Found(values, low, k, complete=False, ceiling=high)
    return _diagonal(values[None], 1, variance, signal, lambda index: index)._replace(vectors=None)


def _fineness(vectors: Callable[[Tensor], Tensor], index: Tensor) -> float | None:
    """Returns the squared differences between neighbours in some of the directions over those in
    all others; None if there are none."""
    if not len(index):
        return None
    one = vectors(index[:1])
    c, h, w = one.shape[1:]
    d, k = c * h * w, len(index)
    x = vectors(index[torch.linspace(0, k - 1, min(k, max(2**20 // d, 1))).round().long()])
    here = float((x.diff(dim=-1).square().sum() + x.diff(dim=-2).square().sum()) / x.square().sum())
    every = (
        2 * c * (h * (w - 1) + (h - 1) * w)
    )  # in all directions together: two for each pair of neighbours
    rest = (every - k * here) / (d - k) if k < d else 0.0
    return here / rest if rest > 0 else None
