"""The contracts: what every component of a kind must do, as functions that measure it.

A test file of a plugin is three lines::

    from invem.testing import contracts
    from my_scanner import random_rows
    test_random_rows = contracts("operators", random_rows)

`invem plugin check NAME` prints the same as a table.
"""

import dataclasses
import inspect
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from invem.batched import Rng
from invem.dataset import Dataset
from invem.denoiser import Denoiser, GaussianDenoiser, Preconditioned, Several, level
from invem.errors import DataError, RecipeError, Unsupported
from invem.gaussian import Gaussian
from invem.interpolant import Interpolant, Interpolating
from invem.measurement import Example, Measurement
from invem.metric import Metric, Outcome
from invem.noise import NoiseModel
from invem.objective import Objective
from invem.operator import LinearOperator, Operator
from invem.sampler import PosteriorSampler
from invem.schedule import Schedule

__all__ = ["KINDS", "SHAPES", "Result", "check", "contracts"]

SHAPES = ((1, 8, 8), (3, 8, 16), (2, 9, 9), (1, 7, 10), (2, 8, 8), (6,))

Law = Callable[..., Any]
_BATCH = 3


class Result(NamedTuple):
    """One contract on one component.

    Attributes:
        contract: Its name.
        passed: Whether it holds, or None where it does not apply.
        value: The number that was measured, the worst over shapes and options.
        tolerance: The largest value that passes, or None for a number that is only reported.
        detail: Where it failed, or why it does not apply.
    """

    contract: str
    passed: bool | None
    value: float | None = None
    tolerance: float | None = None
    detail: str = ""


Measured = tuple[float, float | None]
Contract = Callable[[Any], Measured | None]


def check(kind: str, factory: Law, only: str | None = None) -> list[Result]:
    """Measures every contract of a kind on a component, over several shapes and over the options
    that it gives as `examples`.

    Args:
        kind: "operators", "noises", "networks", "samplers", "objectives", "datasets", "metrics" or
            "schedules".
        factory: What the plugin's hook returns.
        only: The name of one contract, for all but which nothing is measured.

    Raises:
        RecipeError: If there is no such kind.
    """
    if kind not in KINDS:
        raise RecipeError(f"there is no kind '{kind}' (known: {', '.join(KINDS)})")
    cases, table = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        found = list(cases(factory, Path(folder)))
        if not found:
            return [
                Result(
                    name, False, detail="it accepts none of the shapes and options that were tried"
                )
                for name in table
            ]
        return [
            _run(name, contract, found) for name, contract in table.items() if only in (None, name)
        ]


def contracts(kind: str, factory: Law) -> Callable[[str], None]:
    """Returns a pytest test, one case for each contract of the kind."""
    import pytest

    @pytest.mark.parametrize("contract", KINDS[kind][1])
    def test(contract: str) -> None:
        (result,) = check(kind, factory, contract)
        if result.passed is None:
            pytest.skip(result.detail)
        assert result.passed, (
            f"{contract}: {result.value} (at most {result.tolerance}) {result.detail}"
        )

    return test


def _run(name: str, contract: Contract, cases: list[tuple[str, Any]]) -> Result:
    worst, tolerance, where, applied = -math.inf, None, "", False
    for label, case in cases:
        torch.random.manual_seed(0)
        try:
            measured = contract(case)
        except Exception as error:
            return Result(
                name,
                False,
                detail=f"{label}: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
            )
        if measured is None:
            continue
        applied = True
        value, tolerance = measured
        if math.isnan(value) or value > worst:
            worst, where = value, label
            if math.isnan(value):
                break
    if not applied:
        return Result(name, None, detail="does not apply")
    passed = tolerance is None or worst <= tolerance
    return Result(name, passed, worst, tolerance, "" if passed else where)


def _options(
    factory: Law, shape: tuple[int, ...], folder: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    required = [
        p
        for p in inspect.signature(factory).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty
    ]
    if not required:
        yield "defaults", {}
    for given in getattr(factory, "__invem_examples__", ()):
        mine = Path(tempfile.mkdtemp(dir=folder))
        options = dict(given(shape, mine) if callable(given) else given)
        yield (
            ", ".join(
                f"{k}: {v}" for k, v in options.items() if not isinstance(v, str) or "/" not in v
            )
            or "example",
            options,
        )


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the size of b."""
    if a.shape != b.shape:
        raise AssertionError(f"shape {tuple(a.shape)}, not {tuple(b.shape)}")
    if not a.numel():
        return 0.0
    a, b = (
        torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
        for t in (a.detach(), b.detach())
    )
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-12))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _like(x: Tensor, name: str) -> Tensor:
    return torch.randn(x.shape, generator=Rng.generator("contracts", name), dtype=torch.float64).to(
        x
    )


# Operators


@dataclasses.dataclass
class _OperatorCase:
    law: Callable[[int], Operator]
    A: Operator
    x: Tensor
    v: Tensor

    @property
    def linear(self) -> bool:
        return isinstance(self.A, LinearOperator)


def _operators(law: Law, folder: Path) -> Iterator[tuple[str, _OperatorCase]]:
    for shape in SHAPES:
        for label, options in _options(law, shape, folder):

            def draw(
                n: int, shape: tuple[int, ...] = shape, options: dict[str, Any] = options
            ) -> Operator:
                operator: Operator = law(n, shape, Rng.generator("contracts"), **options)
                return operator

            try:
                A = draw(_BATCH).to(dtype=torch.float64)
            except RecipeError:
                continue
            x = 0.4 * _like(torch.empty(_BATCH, *shape, dtype=torch.float64), "x")
            yield f"{shape}, {label}", _OperatorCase(draw, A, x, _like(A(x), "v"))


def _adjoint(case: _OperatorCase) -> Measured | None:
    if not case.linear:
        return None
    y, back = case.A(case.x), case.A.adjoint(case.v)
    if back.shape != case.x.shape:
        raise AssertionError(f"adjoint returns {tuple(back.shape)}, not {tuple(case.x.shape)}")
    size = (y.flatten(1).norm(dim=1) * case.v.flatten(1).norm(dim=1)).clamp(min=1e-12)
    return float(((_inner(y, case.v) - _inner(case.x, back)).abs() / size).max()), 1e-9


def _linear(case: _OperatorCase) -> Measured | None:
    if not case.linear:
        return None
    z = _like(case.x, "z")
    return _distance(case.A(2 * case.x - 3 * z), 2 * case.A(case.x) - 3 * case.A(z)), 1e-9


def _per_sample(case: _OperatorCase) -> Measured:
    A, x = case.A, case.x
    whole = A(x)
    alone = torch.cat([A[i](x[i : i + 1]) for i in range(len(x))])
    moved = torch.cat([x[:1], 3 * x[1:] + 1])
    order = torch.tensor([2, 0, 2])
    pull, moved_v = A.vjp(x, case.v), torch.cat([case.v[:1], -2 * case.v[1:]])
    return max(
        _distance(alone, whole),
        _distance(A(moved)[:1], whole[:1]),
        _distance(A[order](x[order]), whole[order]),
        _distance(A.vjp(x, moved_v)[:1], pull[:1]),
        _distance(
            torch.cat([A[i].vjp(x[i : i + 1], case.v[i : i + 1]) for i in range(len(x))]), pull
        ),
    ), 1e-9


def _vjp(case: _OperatorCase) -> Measured:
    x = case.x.clone().requires_grad_()
    (auto,) = torch.autograd.grad(case.A(x), x, case.v)
    return _distance(case.A.vjp(case.x, case.v), auto), 1e-7


def _differences(case: _OperatorCase) -> Measured | None:
    if case.A.straight_through:
        return None
    d, h = _like(case.x, "d"), 1e-6
    along = _inner((case.A(case.x + h * d) - case.A(case.x - h * d)) / (2 * h), case.v)
    pulled = _inner(case.A.vjp(case.x, case.v), d)
    return float(((along - pulled).abs() / (along.abs() + 1)).max()), 1e-5


def _pinv(case: _OperatorCase) -> Measured | None:
    if "pinv" not in case.A.provides:
        return None
    y = case.A(case.x)
    left = 0.0
    if case.linear:
        # Of any y the pseudo-inverse is a least-squares fit: what is left over is orthogonal to the
        # range of A.
        rest, whole = case.A.adjoint(case.v - case.A(case.A.pinv(case.v))), case.A.adjoint(case.v)
        left = float(rest.abs().max() / whole.abs().max().clamp(min=1e-12))
    return max(_distance(case.A(case.A.pinv(y)), y), left), 1e-3


def _svd(case: _OperatorCase) -> Measured | None:
    if "svd" not in case.A.provides:
        return None
    svd, y = case.A.svd(), case.A(case.x)
    z, r = svd.vt(case.x), svd.s.shape[1]
    if (
        z.shape[1] != math.prod(case.A.shape)
        or r != min(z.shape[1], math.prod(y.shape[1:]))
        or float(svd.s.min()) < 0
    ):
        raise AssertionError(f"s has {r} entries and vt {z.shape[1]}")
    return max(
        _distance(svd.u(svd.s * z[:, :r]), y),
        _distance(svd.v(z), case.x),
        _distance(svd.ut(svd.u(z[:, :r])), z[:, :r]),
        _distance(
            _inner(svd.ut(case.v), z[:, :r])[:, None], _inner(case.v, svd.u(z[:, :r]))[:, None]
        ),
        _distance(z.square().sum(1), case.x.flatten(1).square().sum(1)),
    ), 1e-8


def _pure(case: _OperatorCase) -> Measured:
    x, v = case.x.clone(), case.v.clone()
    before = {name: tensor.clone() for name, tensor in case.A.tensors().items()}
    first = case.A(case.x)
    kept = first.clone()
    case.A(2 * case.x)
    case.A.vjp(case.x, case.v)
    if case.linear:
        case.A.adjoint(case.v)
    again = case.A(case.x)
    changed = any(
        not torch.equal(tensor, before[name]) for name, tensor in case.A.tensors().items()
    )
    inputs = not (torch.equal(x, case.x) and torch.equal(v, case.v))
    return max(_distance(again, kept), _distance(first, kept), float(changed), float(inputs)), 0.0


def _drawn_once(case: _OperatorCase) -> Measured:
    one, two = case.law(_BATCH).tensors(), case.law(_BATCH).tensors()
    state = torch.random.get_rng_state()
    case.law(_BATCH)
    touched = not torch.equal(state, torch.random.get_rng_state())
    return max([_distance(one[name], two[name]) for name in one] + [float(touched)]), 0.0


def _dtype(case: _OperatorCase) -> Measured:
    A, x = case.A.to(dtype=torch.float32), case.x.float()
    y = A(x)
    backs = (
        [A.vjp(x, y)]
        + ([A.adjoint(y)] if case.linear else [])
        + ([A.pinv(y)] if "pinv" in A.provides else [])
    )
    wrong = [t for t in (y, *backs) if t.dtype != torch.float32 or t.device != x.device]
    return max(_distance(y, case.A(case.x)), float(len(wrong))), 1e-4


def _stored(case: _OperatorCase) -> Measured:
    tensors = {name: tensor.clone() for name, tensor in case.A.tensors().items()}
    blank = case.A.with_tensors(
        {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    )
    return _distance(blank.with_tensors(tensors)(case.x), case.A(case.x)), 0.0


def _claims(case: _OperatorCase) -> Measured:
    wrong = 0
    y = case.A(case.x)
    for name in ("adjoint", "pinv"):
        try:
            back = getattr(case.A, name)(y)
            wrong += (
                name not in case.A.provides
                or back.shape != case.x.shape
                or not bool(back.isfinite().all())
            )
        except Unsupported:
            wrong += name in case.A.provides
    try:
        case.A.svd()
        wrong += "svd" not in case.A.provides
    except Unsupported:
        wrong += "svd" in case.A.provides
    return float(wrong), 0.0


def _vmap(case: _OperatorCase) -> Measured:
    several = torch.stack([case.x, 2 * case.x])
    return _distance(
        torch.func.vmap(case.A)(several), torch.stack([case.A(x) for x in several])
    ), 1e-9


def _compiled(case: _OperatorCase) -> Measured | None:
    if case.x.shape[1:] not in (torch.Size((1, 8, 8)), torch.Size((2, 8, 8)), torch.Size((6,))):
        return None
    torch.compiler.reset()
    run = torch.compile(lambda x: case.A(x), backend="eager")
    return _distance(run(case.x), case.A(case.x)), 1e-9


# Noises


@dataclasses.dataclass
class _NoiseCase:
    law: Callable[[int], NoiseModel]
    clean: Tensor
    y: Tensor

    @property
    def noise(self) -> NoiseModel:
        return self.law(len(self.clean))


def _noises(law: Law, folder: Path) -> Iterator[tuple[str, _NoiseCase]]:
    n = 4000
    for shape in ((1, 4, 4), (5,)):
        for label, options in _options(law, shape, folder):

            def draw(
                n: int, shape: tuple[int, ...] = shape, options: dict[str, Any] = options
            ) -> NoiseModel:
                model: NoiseModel = law(n, shape, Rng.generator("contracts"), **options)
                return model

            try:
                noise = draw(n)
            except RecipeError:
                continue
            clean = (
                torch.linspace(-0.8, 0.9, math.prod(shape))
                .reshape(1, *shape)
                .expand(n, *shape)
                .contiguous()
            )
            yield (
                f"{shape}, {label}",
                _NoiseCase(draw, clean, noise.sample(clean, Rng.generator("contracts", "y"))),
            )


def _noise_shape(case: _NoiseCase) -> Measured:
    density = case.noise.log_prob(case.y, case.clean)
    wrong = (
        case.y.shape != case.clean.shape
        or density.shape != (len(case.y),)
        or case.y.dtype != torch.float32
    )
    wrong |= not bool(case.y.isfinite().all() and density.isfinite().all())
    return float(wrong), 0.0


def _noise_score(case: _NoiseCase) -> Measured:
    """The score has mean zero under the law: the largest mean, in standard errors."""
    clean = case.clean.double().requires_grad_()
    noise = case.noise.to(dtype=torch.float64)
    (score,) = torch.autograd.grad(noise.log_prob(case.y.double(), clean).sum(), clean)
    error = score.std(0).clamp(min=1e-12) / len(score) ** 0.5
    return float((score.mean(0).abs() / error).max()), 5.0


def _noise_variance(case: _NoiseCase) -> Measured | None:
    if "var" not in case.noise.provides:
        return None
    var = case.noise.var().expand_as(case.y).double()
    z = (case.y - case.clean).double() / var.sqrt()
    gap = (z.square().mean(0) - 1).abs() / (z.square().std(0) / len(z) ** 0.5).clamp(min=1e-9)
    drift = z.mean(0).abs() * len(z) ** 0.5
    return float(torch.maximum(gap, drift).max()), 5.0


def _noise_repeat(case: _NoiseCase) -> Measured:
    again = case.noise.sample(case.clean, Rng.generator("contracts", "y"))
    rows = torch.tensor([3, 1])
    some = case.noise[rows].log_prob(case.y[rows], case.clean[rows])
    return max(
        _distance(again, case.y), _distance(some, case.noise.log_prob(case.y, case.clean)[rows])
    ), 1e-6


# Networks


@dataclasses.dataclass
class _NetworkCase:
    build: Callable[[], Denoiser]
    x: Tensor

    def random(self) -> Denoiser:
        denoiser = self.build().eval()
        for name, weight in denoiser.named_parameters():
            weight.data = 0.1 * _like(weight.data, name)
        return denoiser


def _networks(factory: Law, folder: Path) -> Iterator[tuple[str, _NetworkCase]]:
    for shape in SHAPES:
        for label, options in _options(factory, shape, folder):

            def build(
                shape: tuple[int, ...] = shape, options: dict[str, Any] = options
            ) -> Denoiser:
                network = factory(shape, **options)
                return network if isinstance(network, Denoiser) else Preconditioned(network, 0.5)

            try:
                build()
            except RecipeError:
                continue
            yield f"{shape}, {label}", _NetworkCase(build, _like(torch.empty(_BATCH, *shape), "x"))


def _broadcast(case: _NetworkCase) -> Measured:
    denoiser, x = case.random(), case.x
    one, levels = denoiser(x, 0.7), torch.full((len(x),), 0.7)
    shaped = levels.reshape(-1, *[1] * (x.ndim - 1))
    return max(
        _distance(denoiser(x, sigma), one) for sigma in (levels, shaped, torch.tensor(0.7))
    ), 1e-4


def _alone(case: _NetworkCase) -> Measured:
    denoiser, x, levels = case.random(), case.x, torch.tensor([0.1, 1.0, 10.0])
    alone = torch.cat([denoiser(x[i : i + 1], float(levels[i])) for i in range(len(x))])
    return _distance(alone, denoiser(x, levels)), 1e-3


def _loaded(case: _NetworkCase) -> Measured:
    one, two = case.random(), case.build().eval()
    two.load_state_dict(one.state_dict())
    return _distance(two(case.x, 0.3), one(case.x, 0.3)), 0.0


def _gradients(case: _NetworkCase) -> Measured:
    denoiser = case.random()
    denoiser(case.x, 0.5).square().sum().backward()
    dead = [
        w
        for w in denoiser.parameters()
        if w.requires_grad and (w.grad is None or not bool(w.grad.any()))
    ]
    return float(len(dead)), 0.0


# Samplers

_NOISE, _JITTER = 0.2, 0.1


def _prior(shape: tuple[int, ...]) -> Gaussian:
    d = math.prod(shape)
    i = torch.arange(d, dtype=torch.float64)
    return Gaussian.full(
        torch.linspace(-0.5, 1, d).reshape(shape), 0.25 * 0.8 ** (i[:, None] - i).abs()
    )


def _informed(prior: Gaussian, x_t: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
    """Returns E[x | x_t, cond], sigma (1 or B, 1): cond is the mask of what x_t shows, or y and the
    mask of what was measured."""
    seen, given = cond[:, -1].double(), sigma.double() ** -2
    known = given * seen if cond.shape[1] == 1 else given + seen / _NOISE**2
    pull = known * x_t if cond.shape[1] == 1 else given * x_t + cond[:, 0] / _NOISE**2
    precision = torch.linalg.inv(prior.cov.dense().double())
    pull = pull + precision @ prior.mean.double()
    x_hat: Tensor = torch.linalg.solve(precision + torch.diag_embed(known.expand(x_t.shape)), pull)
    return x_hat.to(x_t)


class _Conditional(GaussianDenoiser):
    """The exact conditional denoiser for a measurement by a mask, or of the whole."""

    condition = 2

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        return (
            super().forward(x_t, sigma)
            if cond is None
            else _informed(self.moments, x_t, level(sigma, x_t), cond)
        )


def _transported(
    prior: Gaussian, state: Tensor, t: Tensor, cond: Tensor, jitter: float, informed: bool
) -> Tensor:
    """Returns E[x | I_t, cond], t (1 or B, 1), for a measurement by a mask, or of the whole, with
    noise _NOISE."""
    shown, t, state = (cond[:, 1] > 0).double(), t.double(), state.double()
    known = (1 - t) ** 2 / (t * jitter) ** 2
    pull = (1 - t) * (state - t * cond[:, 0].double() if informed else state) / (t * jitter) ** 2
    if informed:
        known, pull = known + shown / _NOISE**2, pull + shown * cond[:, 0].double() / _NOISE**2
    else:
        there = 1 / (t**2 * (_NOISE**2 + jitter**2))
        known, pull = known + shown * (there - known), pull + shown * (there * state - pull)
    precision = torch.linalg.inv(prior.cov.dense().double())
    pull = pull + precision @ prior.mean.double()
    x_hat: Tensor = torch.linalg.solve(
        precision + torch.diag_embed(known.expand(state.shape)), pull
    )
    return x_hat.to(prior.mean)


class _Transport(GaussianDenoiser):
    """The exact denoiser of an interpolant that is told the measurement."""

    condition = 2

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        if cond is None:
            return super().forward(x_t, sigma)
        return _transported(self.moments, x_t, level(sigma, x_t), cond, _JITTER, True)


def _fitted(needs: frozenset[str], prior: Gaussian) -> Denoiser:
    """Returns the exact denoiser of a prior that was fitted so that it can do what a sampler
    needs."""
    if "interpolant" in needs:
        return Interpolant(_Transport(prior), _JITTER, True)
    return (_Conditional if "conditional" in needs else GaussianDenoiser)(prior)


@dataclasses.dataclass
class _SamplerCase:
    sampler: PosteriorSampler
    denoiser: Denoiser
    m: Measurement
    white: Tensor | None = None

    def rng(self, *key: str) -> Rng:
        return Rng.keyed("contracts", *key, items=range(len(self.m)))


def _measure(
    law: str, n: int, shape: tuple[int, ...], x: Tensor | None = None, *key: str
) -> Measurement:
    """A mask, a projection or the whole of x, or of draws of the prior, with noise _NOISE, from the
    operators that come with invem."""
    from invem.config import Catalog

    catalog = Catalog.load()
    known: dict[str, dict[str, Any]] = {
        "random-projection": {"measurements": 3},
        "random-mask": {"keep": 0.5},
    }
    options = known.get(law, {})
    A = catalog.find("operators", law).load()(
        n, shape, Rng.generator("contracts", 3, *key), **options
    )
    clean = A(
        _prior(shape).sample(Rng.keyed("contracts", "truth", items=range(n))) if x is None else x
    )
    noise = catalog.find("noises", "gaussian").load()(
        n, tuple(clean.shape[1:]), Rng.generator(0), sigma=_NOISE
    )
    return Measurement(noise.sample(clean, Rng.generator("contracts", "y", *key)), A, noise)


def _samplers(factory: Law, folder: Path) -> Iterator[tuple[str, _SamplerCase]]:
    found = False
    for law in ("random-mask", "random-projection", "identity"):
        for label, options in (
            _options(factory, (8,), folder) if law != "identity" or not found else ()
        ):
            m = _measure(law, 4, (8,))
            sampler = factory(**options)
            fitted = frozenset({"conditional", "interpolant"})
            denoiser = _fitted(sampler.needs, _prior((8,)))
            if sampler.needs - m.provides - {"moments", "closed form"} - fitted or (
                sampler.needs & fitted and law == "random-projection"
            ):
                continue
            sampler = sampler.tune(denoiser, m, Rng.keyed("contracts", "tune", items=range(4)))
            found = True
            yield f"{law}, {label}", _SamplerCase(sampler, denoiser, m)


def _finite(case: _SamplerCase) -> Measured:
    x = case.sampler(case.denoiser, case.m, case.rng())
    return float(
        x.shape != (len(case.m), *case.m.shape) or not bool(x.isfinite().all()) or x.requires_grad
    ), 0.0


def _deterministic(case: _SamplerCase) -> Measured:
    """The same streams give the same draw; other streams another one, but for a classical
    restoration, which has no use for them."""
    state = torch.random.get_rng_state()
    one, two = (case.sampler(case.denoiser, case.m, case.rng()) for _ in range(2))
    touched = not torch.equal(state, torch.random.get_rng_state())
    same = torch.equal(one, case.sampler(case.denoiser, case.m, case.rng("other")))
    return max(_distance(one, two), float(touched), float(same is case.sampler.prior)), 0.0


def _apart(case: _SamplerCase) -> Measured:
    x = case.sampler(case.denoiser, case.m, case.rng())
    y = torch.cat([case.m.y[:1], 20 * case.m.y[1:] + 3])
    moved = case.sampler(case.denoiser, dataclasses.replace(case.m, y=y), case.rng())
    return _distance(moved[:1], x[:1]), 1e-4


def _batches(case: _SamplerCase) -> Measured:
    x = case.sampler(case.denoiser, case.m, case.rng())
    alone = torch.cat(
        [case.sampler(case.denoiser, case.m[i], case.rng()[i]) for i in range(len(case.m))]
    )
    return _distance(alone, x), 1e-3


def _enough(case: _SamplerCase) -> Measured:
    """With all that it does not declare taken away, it draws the same."""
    A = case.m.A
    hidden = {"adjoint", "pinv", "svd"} - case.sampler.needs
    methods: dict[str, Any] = {name: getattr(Operator, name) for name in hidden}
    if "adjoint" in hidden:
        methods["vjp"] = Operator.vjp
    blind = type("Blind", (type(A),), methods)
    values = {field.name: getattr(A, field.name) for field in dataclasses.fields(A)}
    x = case.sampler(case.denoiser, dataclasses.replace(case.m, A=blind(**values)), case.rng())
    return _distance(x, case.sampler(case.denoiser, case.m, case.rng())), 1e-6


def _cost(case: _SamplerCase) -> Measured:
    rows: list[int] = []
    handle = case.denoiser.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    case.sampler(case.denoiser, case.m, case.rng())
    handle.remove()
    return abs(sum(rows) / len(case.m) - case.sampler.cost[0]), 0.0


def _exact(case: _SamplerCase) -> Tensor:
    """Whitened draws of the first observation, drawn once: with an exact sampler of mean zero and
    covariance one."""
    if case.white is not None:
        return case.white
    n, d = 4000, math.prod(case.m.shape)
    m = case.m[torch.zeros(n, dtype=torch.long)]
    basis = torch.eye(d).reshape(d, *case.m.shape)
    A = case.m.A[torch.zeros(d, dtype=torch.long)](basis).flatten(1).T.double()
    prior = case.denoiser.known_moments()
    C, mean = prior.cov.dense().double(), prior.mean.flatten().double()
    S = torch.diag(case.m.noise.var()[:1].expand_as(case.m.y[:1]).flatten().double())
    gain = C @ A.T @ torch.linalg.inv(A @ C @ A.T + S)
    centre, cov = mean + gain @ (case.m.y[0].flatten().double() - A @ mean), C - gain @ A @ C
    x = (
        case.sampler(case.denoiser, m, Rng.keyed("contracts", "exact", items=range(n)))
        .flatten(1)
        .double()
    )
    case.white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(cov), (x - centre).T, upper=False
    ).T
    return case.white


def _bias(case: _SamplerCase) -> Measured | None:
    if not case.sampler.prior:
        return None
    return float(_exact(case).mean(0).abs().max()), None


def _spread(case: _SamplerCase) -> Measured | None:
    if not case.sampler.prior:
        return None
    values = torch.linalg.eigvalsh(torch.cov(_exact(case).T))
    return float((values - 1).abs().max()), None


# Objectives

_OBJECTIVE = 2048


class _Near(Denoiser):
    """E[x | x_t, cond], and at every noise level as far from it, in units of what a network there
    learns."""

    def __init__(
        self, prior: Gaussian, far: float = 0.0, objective: Objective | None = None
    ) -> None:
        super().__init__()
        self.prior, self.far, self.sigma_data, self.objective = prior, far, 0.5, objective

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        sigma = level(sigma, x_t)
        x_hat = self.prior.denoise(x_t, sigma) if cond is None else self._told(x_t, sigma, cond)
        return x_hat + self.far * sigma / (1 + sigma**2) * x_t

    def _told(self, x_t: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        if not isinstance(self.objective, Interpolating):
            return _informed(self.prior, x_t, sigma, cond)
        flow = _transported(
            self.prior, x_t, sigma, cond, self.objective.jitter, self.objective.informed
        )
        told = cond.flatten(2).any(2).any(1).reshape(-1, *[1] * (x_t.ndim - 1))
        return torch.where(told, flow, self.prior.denoise(x_t, sigma))


@dataclasses.dataclass
class _ObjectiveCase:
    objective: Objective
    prior: Gaussian
    batch: Example

    @property
    def m(self) -> Measurement:
        assert self.batch.measurement is not None
        return self.batch.measurement

    @property
    def clean(self) -> Example:
        """The signals without their measurements: images that a recipe grants."""
        return Example(self.batch.x)

    @property
    def measured(self) -> bool:
        """Whether it learns from measurements and makes no use of signals beside them."""
        return "measurement" in self.objective.needs and "x" not in self.objective.needs

    @property
    def distils(self) -> bool:
        """Whether it trains several networks, from the prior before it: no loss of one denoiser,
        and no data."""
        return self.objective.networks > 1

    @property
    def batches(self) -> list[Example]:
        """What it can be given: the signals with their measurements, and images that a recipe
        grants."""
        return [self.batch] + ([self.clean] if self.measured and not self.distils else [])

    def denoiser(self, make: Callable[[], Denoiser]) -> Denoiser:
        """Returns a denoiser, or as many as it trains together, beside the prior as what they are
        learned from."""
        if not self.distils:
            return make()
        return self.objective.wrap(
            Several(make() for _ in range(self.objective.networks)),
            self.m,
            GaussianDenoiser(self.prior),
        )

    def loss(self, denoiser: Denoiser, batch: Example, n: int = _OBJECTIVE) -> Tensor:
        return self.objective.loss(denoiser, batch, self.rng(n))

    def rng(self, n: int = _OBJECTIVE) -> Rng:
        return Rng.keyed("contracts", "objective", items=range(n))


def _objectives(factory: Law, folder: Path) -> Iterator[tuple[str, _ObjectiveCase]]:
    n, shape = _OBJECTIVE, (8,)
    x = _prior(shape).sample(Rng.keyed("contracts", "truth", items=range(n)))
    for law in ("random-mask", "identity"):
        m = _measure(law, n, shape)
        for label, options in _options(factory, shape, folder):
            objective = factory(**options)
            if objective.needs - m.provides - {"x", "measurement", "closed form", "moments"}:
                continue
            if law == "random-mask" or objective.needs & {"identity", "svd"}:
                yield f"{law}, {label}", _ObjectiveCase(objective, _prior(shape), Example(x, m))


def _per_draw(case: _ObjectiveCase) -> Measured | None:
    """That of the first does not change with the others, nor with their number; all are finite, and
    those of others change with them."""
    if case.objective.closed_form:
        return None
    denoiser, x, m, few = case.denoiser(lambda: _Near(case.prior)), case.batch.x, case.m, 3
    assert x is not None
    y = torch.cat([m.y[:1], m.y[1:] + 5])
    moved = Example(torch.cat([x[:1], x[1:] + 5]), dataclasses.replace(m, y=y))
    worst = 0.0
    for given, changed in zip(
        case.batches, (moved, moved._replace(measurement=None)), strict=False
    ):
        loss, other = case.loss(denoiser, given), case.loss(denoiser, changed)
        measured = given.measurement
        alone = case.loss(
            denoiser,
            Example(x[:few], None if measured is None else measured[torch.arange(few)]),
            few,
        )
        ignored = not case.distils and torch.equal(other[1:], loss[1:])
        wrong = loss.shape != (len(x),) or not bool(loss.isfinite().all()) or ignored
        worst = max(
            worst, float(wrong), _distance(other[:1], loss[:1]), _distance(alone, loss[:few])
        )
    return worst, 1e-5


def _trains(case: _ObjectiveCase) -> Measured | None:
    if case.objective.closed_form:
        return None

    class Net(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.sigma_data = torch.nn.Linear(8, 8), 0.5

        def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
            out: Tensor = self.layer(x_t)
            return out

    dead = 0
    for given in case.batches:
        net = case.denoiser(Net)
        case.loss(net, given).mean().backward()  # type: ignore[no-untyped-call]
        dead += sum(w.grad is None or not bool(w.grad.any()) for w in net.parameters())
    return float(dead), 0.0


def _minimum(case: _ObjectiveCase) -> Measured | None:
    """How far the loss of the exact denoiser lies above that of two others, in standard errors of
    the difference.

    An objective on measurements is held to it where A = I, on granted images, and where the
    denoiser is told the mask: what some learn from a mask is not E[x | x_t].
    """
    if case.objective.closed_form or case.distils:
        return None
    whole = not case.measured or "identity" in case.m.provides or case.objective.condition > 0
    worst = -math.inf
    for given in ([case.batch] if whole else []) + ([case.clean] if case.measured else []):
        exact, *others = (
            case.loss(_Near(case.prior, far, case.objective), given).detach().double()
            for far in (0.0, -0.2, 0.2)
        )
        for other in others:
            gap = exact - other
            worst = max(worst, float(gap.mean() / gap.std() * len(gap) ** 0.5))
    return worst, -3.0


def _closed(case: _ObjectiveCase) -> Measured | None:
    """From clean signals the closed form finds their mean: the largest error, in units of its
    standard error."""
    if not case.objective.closed_form:
        return None
    x = case.batch.x
    assert x is not None
    fitted = case.objective.solve(
        GaussianDenoiser(Gaussian.standard(case.prior.shape)), lambda: [(Example(x), case.rng())]
    )
    moments = fitted.known_moments()
    return float(((moments.mean - case.prior.mean).abs() / (x.std(0) / len(x) ** 0.5)).max()), 5.0


# Data sets


def _datasets(factory: Law, folder: Path) -> Iterator[tuple[str, Dataset]]:
    for label, options in _options(factory, (1, 8, 8), folder):
        for split in ("train", "test"):
            try:
                data: Dataset = factory(split, **options)
            except DataError:
                continue
            yield f"{split}, {label}", data


def _indexed(data: Dataset) -> Measured:
    rows = torch.tensor([min(3, len(data) - 1), 0, min(3, len(data) - 1)])
    x, alone = data[rows].x, data[rows[1:2]].x
    assert x is not None and alone is not None
    wrong = (
        x.shape[1:] != torch.Size(data.shape)
        or x.dtype != torch.float32
        or not bool(x.isfinite().all())
    )
    return max(float(wrong), _distance(x[1:2], alone), _distance(x[0], x[2])), 0.0


def _ranged(data: Dataset) -> Measured:
    x = data[torch.arange(min(len(data), 64))].x
    assert x is not None
    low, high = data.range
    return max(low - float(x.min()), float(x.max()) - high, 0.0), 1e-6


# Metrics


@dataclasses.dataclass
class _MetricCase:
    metric: Metric
    state: Mapping[str, Tensor]
    good: Outcome
    bad: Outcome


def _metrics(factory: Law, folder: Path) -> Iterator[tuple[str, _MetricCase]]:
    shape = (1, 8, 8)
    n = 200
    prior = _prior(shape)

    def keyed(name: str, count: int = n) -> Rng:
        return Rng.keyed("contracts", name, items=range(count))

    truth, other, more, trained = (
        prior.sample(keyed(name)) for name in ("truth", "other", "more", "trained")
    )
    labels = (truth.flatten(1).sum(1) > truth.flatten(1).sum(1).median()).long()
    z = _like(truth, "z")
    wide, wrong = other + z, Gaussian(prior.mean + 0.5, prior.cov)
    for label, options in _options(factory, shape, folder):
        try:
            metric = factory(**options)
        except (RecipeError, DataError):
            continue
        law = "identity" if "identity" in metric.needs else "random-mask"
        m = _measure(law, n, shape)
        simulated, off = (_measure(law, n, shape, x, "simulated") for x in (other, wide))
        draws = prior.posterior(
            m[torch.arange(n).repeat_interleave(4)], keyed("draws", 4 * n)
        ).reshape(n, 4, *shape)
        again = prior.posterior(simulated, keyed("again"))
        good = Outcome(
            (-1.0, 1.0),
            truth,
            draws,
            m,
            other,
            more,
            m,
            simulated,
            again,
            trained,
            GaussianDenoiser(prior),
        )
        bad = dataclasses.replace(
            good, draws=draws + 0.5 * z.flip(0)[:, None], samples=wide, simulated=off
        )
        bad = dataclasses.replace(
            bad, trained=wide + 0.01 * z.flip(0), denoiser=GaussianDenoiser(wrong)
        )
        yield label, _MetricCase(metric, metric.prepare(Example(truth, label=labels)), good, bad)


def _best(case: _MetricCase) -> Measured:
    """How much a bad outcome is better than a good one, which must be less than nothing."""
    good, bad = (
        float(case.metric(outcome, case.state).double().mean()) for outcome in (case.good, case.bad)
    )
    target = case.metric.target
    if target is not None:
        return abs(good - target) - abs(bad - target), 0.0
    return (bad - good) * (1.0 if case.metric.higher_is_better else -1.0), 0.0


def _same_value(case: _MetricCase) -> Measured:
    state = torch.random.get_rng_state()
    one, two = (case.metric(case.good, case.state) for _ in range(2))
    return max(
        _distance(one, two), float(not torch.equal(state, torch.random.get_rng_state()))
    ), 0.0


def _any_order(case: _MetricCase) -> Measured:
    """Observations and samples, with all that belongs to each, come in another order."""
    groups = (
        ("truth", "draws", "measurement"),
        ("samples", "simulated", "resimulated"),
        ("reference",),
        ("observed",),
        ("trained",),
    )
    changes: dict[str, Any] = {}
    for group in groups:
        parts = {name: getattr(case.good, name) for name in group}
        order = torch.randperm(len(parts[group[0]]), generator=Rng.generator("contracts", *group))
        changes |= {name: part[order] for name, part in parts.items()}
    turned = case.metric(dataclasses.replace(case.good, **changes), case.state)
    return _distance(
        turned.double().mean(), case.metric(case.good, case.state).double().mean()
    ), 1e-4


def _needed(case: _MetricCase) -> Measured:
    """What it declares is what it reads: all else may be missing."""
    kept = {
        name: getattr(case.good, name) for name in case.metric.needs if hasattr(case.good, name)
    }
    value = case.metric(Outcome(case.good.range, **kept), case.state)
    return _distance(value, case.metric(case.good, case.state)), 1e-6


# Schedules


def _schedules(factory: Law, folder: Path) -> Iterator[tuple[str, Schedule]]:
    for label, options in _options(factory, (), folder):
        yield label, factory(**options)


def _decreasing(schedule: Schedule) -> Measured:
    wrong = 0
    for steps in (2, 3, 100):
        grid = schedule.grid(steps)
        ends = schedule.sigma(torch.tensor([0.0, 1.0], dtype=torch.float64))
        wrong += (
            grid.shape != (steps,)
            or grid.dtype != torch.float64
            or not bool((grid[1:] < grid[:-1]).all() and (grid > 0).all())
        )
        wrong += not torch.allclose(grid[[0, -1]], ends)
    return float(wrong), 0.0


KINDS: dict[str, tuple[Callable[[Law, Path], Iterator[tuple[str, Any]]], dict[str, Contract]]] = {
    "operators": (
        _operators,
        {
            "adjoint": _adjoint,
            "linear": _linear,
            "per sample": _per_sample,
            "vjp is the derivative": _vjp,
            "vjp by differences": _differences,
            "A pinv A = A": _pinv,
            "svd": _svd,
            "changes nothing": _pure,
            "drawn once": _drawn_once,
            "dtype and device": _dtype,
            "stored whole": _stored,
            "claims": _claims,
            "vmap": _vmap,
            "compile": _compiled,
        },
    ),
    "noises": (
        _noises,
        {
            "shapes": _noise_shape,
            "score": _noise_score,
            "variance": _noise_variance,
            "same again": _noise_repeat,
        },
    ),
    "networks": (
        _networks,
        {
            "sigma broadcasts": _broadcast,
            "per sample": _alone,
            "saved and loaded": _loaded,
            "gradient reaches all": _gradients,
        },
    ),
    "samplers": (
        _samplers,
        {
            "finite": _finite,
            "same again": _deterministic,
            "samples apart": _apart,
            "batch size": _batches,
            "needs are enough": _enough,
            "cost": _cost,
            "error of the mean": _bias,
            "error of the covariance": _spread,
        },
    ),
    "objectives": (
        _objectives,
        {
            "a loss for each": _per_draw,
            "gradient reaches all": _trains,
            "least when exact": _minimum,
            "closed form": _closed,
        },
    ),
    "datasets": (_datasets, {"indexing": _indexed, "range": _ranged}),
    "metrics": (
        _metrics,
        {
            "best is best": _best,
            "needs are enough": _needed,
            "same again": _same_value,
            "any order": _any_order,
        },
    ),
    "schedules": (_schedules, {"decreasing": _decreasing}),
}
