"""Every component of the catalogue goes through the contracts of its kind; and the contracts catch
what they are for."""

from dataclasses import dataclass

import pytest
import torch
from invem_plugins.formats.safetensors import Safetensors
from invem_plugins.objectives.dsm import DSM
from invem_plugins.objectives.gaussian_moments import GaussianMoments
from invem_plugins.samplers.dps import DPS
from invem_plugins.samplers.prior import PriorSampler

from invem import Gaussian, LinearOperator, Operator, RecipeError, StoppingRule, config, report
from invem.config import Catalog
from invem.denoiser import Wrapper
from invem.errors import MissingExtra
from invem.measurement import linear_condition
from invem.objective import ParameterGroup
from invem.testing import (
    KINDS,
    Kind,
    Result,
    check,
    contracts,
    exact_priors,
    example_measurement,
    example_prior,
    run_contract,
)

CATALOG = Catalog.load()
# Samplers that call the denoiser or the likelihood a thousand times and more for one draw.
LONG = {"daps", "split-gibbs", "mcg-diff", "sitcom", "langevin", "twisted-smc"}
COMPONENTS = [
    pytest.param(kind, name, marks=[pytest.mark.slow] if name in LONG else [])
    for kind in KINDS
    for name in sorted(CATALOG.offers[kind])
]


def test_every_kind_has_contracts():
    assert tuple(KINDS) == config.KINDS


@pytest.mark.parametrize(("kind", "name"), COMPONENTS, ids=lambda word: word)
def test_component(kind, name):
    try:
        results = check(kind, CATALOG.find(kind, name).load())
    except MissingExtra as error:
        pytest.skip(str(error))
    assert [r for r in results if r.passed is False] == []
    assert any(r.passed for r in results)


# Mutants: an operator or a sampler with one mistake, and the contract that must catch it.


@dataclass(frozen=True, eq=False)
class Right(LinearOperator):
    weight: torch.Tensor

    def __call__(self, x):
        return self.weight * x

    def adjoint(self, y):
        return self.weight * y


class AdjointOfTheFirst(Right):
    def adjoint(self, y):
        return self.weight[:1] * y


class AdjointIsItsInput(Right):
    def adjoint(self, y):
        return y


class WrongScale(Right):
    def adjoint(self, y):
        return 1.01 * self.weight * y


class KeepsState(Right):
    def __call__(self, x):
        count = self.__dict__["count"] = self.__dict__.get("count", 0) + 1
        return self.weight * x * (1 + 0.1 * count)


class Redrawn(Right):
    def __call__(self, x):
        return (torch.rand(self.weight.shape) < 0.5) * x

    def adjoint(self, y):
        return (torch.rand(self.weight.shape) < 0.5) * y


class ChangesItsInput(Right):
    def __call__(self, x):
        return x.mul_(self.weight)


class MixesTheBatch(Right):
    def __call__(self, x):
        return self.weight * x / x.abs().max()

    adjoint = Operator.adjoint


class NotLinear(Right):
    def __call__(self, x):
        return self.weight * x + 1


class FalsePinv(Right):
    def pinv(self, y):
        return self.weight * y


class UpCasts(Right):
    def __call__(self, x):
        return self.weight.double() * x


def law(kind):
    return lambda n, shape, rng: kind(shape, 1 + torch.rand(n, *shape, generator=rng))


@pytest.mark.parametrize(
    ("mutant", "contract"),
    [
        (AdjointOfTheFirst, "adjoint"),
        (AdjointIsItsInput, "adjoint"),
        (WrongScale, "adjoint"),
        (KeepsState, "changes nothing"),
        (Redrawn, "changes nothing"),
        (ChangesItsInput, "changes nothing"),
        (MixesTheBatch, "per sample"),
        (NotLinear, "linear"),
        (FalsePinv, "A pinv A = A"),
        (UpCasts, "dtype and device"),
    ],
)
def test_an_operator_with_a_mistake_is_caught(mutant, contract):
    assert all(r.passed is not False for r in check("operators", law(Right)))
    failed = {r.contract for r in check("operators", law(mutant)) if r.passed is False}
    assert contract in failed


def test_a_law_that_uses_the_global_generator_is_caught():
    (result,) = check(
        "operators", lambda n, shape, rng: Right(shape, torch.rand(n, *shape)), "drawn once"
    )
    assert result.passed is False


@dataclass(frozen=True, kw_only=True)
class WholeBatchNorm(DPS):
    """DPS as in four public codes: the norm is that of the batch."""

    def __call__(self, prior, m, rng, start=None):
        sigmas = self.schedule.grid(self.steps).tolist()
        x_t = sigmas[0] * rng.normal(*m.shape)
        for sigma, s in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            with torch.enable_grad():
                x_t = x_t.detach().requires_grad_()
                x_hat = prior(x_t, sigma)
                (grad,) = torch.autograd.grad((m.y - m.A(x_hat)).norm(), x_t)
            keep = s**2 / sigma**2
            x_t = x_hat.detach() + keep * (x_t.detach() - x_hat.detach()) - grad
            if s > 0:
                x_t = x_t + s * (1 - keep) ** 0.5 * rng.normal_like(x_t)
        return x_t.detach()


def test_the_norm_of_the_batch_is_caught():
    failed = {
        r.contract for r in check("samplers", lambda: WholeBatchNorm(steps=16)) if r.passed is False
    }
    assert {"samples apart", "batch size"} <= failed
    assert all(r.passed is not False for r in check("samplers", lambda: DPS(steps=16)))


class BeginsElsewhere(PriorSampler):
    """Has no use for the signals that it is begun at."""

    def __call__(self, prior, m, rng, start=None):
        return super().__call__(prior, m, rng)


class Counted(Wrapper):
    """A network beside a weight that its state leaves out."""

    def __init__(self, network):
        super().__init__(network)
        self.register_buffer("scale", torch.rand(()), persistent=False)

    def forward(self, x_t, sigma, cond=None):
        return self.scale * super().forward(x_t, sigma, cond)


class ForgetsAWeight(DSM):
    def build(self, make_network, prior, m):
        return Counted(make_network())


class HoldsAWeightTwice(DSM):
    def parameter_groups(self, model):
        weights = list(model.parameters())
        return [ParameterGroup(1.0, weights), ParameterGroup(0.1, weights[:1])]


class LeavesAWeightOut(DSM):
    def parameter_groups(self, model):
        return [ParameterGroup(1.0, list(model.parameters())[:1])]


class ReadsAnotherBack(GaussianMoments):
    def closed_form(self, tensors):
        return Gaussian.standard(tuple(tensors["mean"].shape))


class EndsAtOnce(StoppingRule):
    def __call__(self, rounds):
        return "it is enough"


class AsksHowOften(StoppingRule):
    """Ends a phase when it was asked twice, whatever the rounds."""

    def __init__(self):
        self.asked = 0

    def __call__(self, rounds):
        self.asked += 1
        return "it was asked twice" if self.asked > 1 else None


class ReadsAnything(Safetensors):
    def read(self, path, expected):
        try:
            return super().read(path, expected)
        except Exception:
            return {"y": torch.zeros(1, *expected.shape)}


class LosesASample(Safetensors):
    def write(self, path, tensors, about):
        super().write(path, {name: 0.9 * tensor for name, tensor in tensors.items()}, about)


class TakesEveryFile(Safetensors):
    def accepts(self, path):
        return True


class Drawing(report.Figure):
    title, caption = "A drawing", "One that is always there."

    def draw(self, run):
        return "<svg/>"


class DrawsByChance(Drawing):
    def draw(self, run):
        return f"<svg>{torch.rand(()).item()}</svg>" if run.evaluations else None


class DrawsText(Drawing):
    def draw(self, run):
        return "a fine picture" if run.evaluations else None


class NeedsRestorations(Drawing):
    def draw(self, run):
        return f"<svg>{run.restorations.label}</svg>" if run.evaluations else None


@pytest.mark.parametrize(
    ("kind", "mutant", "contract"),
    [
        ("samplers", BeginsElsewhere, "begins where it is told"),
        ("objectives", ForgetsAWeight, "weights in the state"),
        ("objectives", HoldsAWeightTwice, "every weight once"),
        ("objectives", LeavesAWeightOut, "every weight once"),
        ("objectives", ReadsAnotherBack, "read back"),
        ("stops", EndsAtOnce, "no evidence is no reason"),
        ("stops", AsksHowOften, "same answer twice"),
        ("formats", ReadsAnything, "refuses a damaged file"),
        ("formats", LosesASample, "read back"),
        ("formats", TakesEveryFile, "reads or writes"),
        ("figures", Drawing, "an empty run"),
        ("figures", DrawsByChance, "same bytes twice"),
        ("figures", DrawsText, "pictures"),
        ("figures", NeedsRestorations, "a part is missing"),
    ],
)
def test_a_mistake_is_caught_by_its_contract(kind, mutant, contract):
    assert [r.passed for r in check(kind, mutant, contract)] == [False]


def test_the_contracts_of_an_author_are_a_test():
    test = contracts("operators", law(Right))
    test("adjoint")
    with pytest.raises(AssertionError, match="adjoint"):
        contracts("operators", law(WrongScale))("adjoint")
    with pytest.raises(RecipeError, match="there is no kind"):
        check("operator", law(Right))


def test_a_law_that_accepts_nothing_fails():
    def refuses(n, shape, rng):
        raise RecipeError("no")

    assert check("operators", refuses)[0] == Result(
        "adjoint", False, detail="it accepts none of the shapes and options that were tried"
    )


def test_a_law_that_accepts_nothing_fails_each_contract_that_is_asked_for():
    def refuses(n, shape, rng):
        raise RecipeError("no")

    assert [r.contract for r in check("operators", refuses)] == list(KINDS["operators"].contracts)
    assert [r.contract for r in check("operators", refuses, "svd")] == ["svd"]


# A new contract is one function.


@pytest.fixture
def gadgets():
    kind = Kind("gadgets", "Tried as they are.", lambda factory, folder: iter(()))

    @kind.contract("size", tolerance=2.0)
    def size(case):
        """The size is small,
        in units of nothing.

        A remark.
        """
        return case

    return kind


def test_a_contract_is_registered_with_its_tolerance_and_its_sentence(gadgets):
    (contract,) = gadgets.contracts.values()
    assert (contract.name, contract.tolerance) == ("size", 2.0)
    assert contract.sentence == "The size is small, in units of nothing."


@pytest.mark.parametrize(
    ("cases", "result"),
    [
        ([("a", 1.0), ("b", 2.0)], Result("size", True, 2.0, 2.0, "")),
        ([("a", 3.0), ("b", 4.0), ("c", 1.0)], Result("size", False, 4.0, 2.0, "b")),
        ([("a", None), ("b", 1.0)], Result("size", True, 1.0, 2.0, "")),
        ([("a", None)], Result("size", None, detail="does not apply")),
    ],
)
def test_the_worst_case_is_the_result(gadgets, cases, result):
    assert run_contract(gadgets.contracts["size"], cases) == result


def test_a_case_that_is_not_a_number_or_raises_fails(gadgets):
    cases = [("a", 1.0), ("b", float("nan")), ("c", 9.0)]
    result = run_contract(gadgets.contracts["size"], cases)
    assert result.passed is False and result.detail == "b"

    @gadgets.contract("broken", tolerance=None)
    def broken(case):
        raise ValueError("no  such\nnumber")

    result = run_contract(gadgets.contracts["broken"], cases)
    assert result == Result("broken", False, detail="a: ValueError: no such number")


# The problem that samplers and objectives are tried on has the answer that it says.


@pytest.mark.parametrize("observed", ["mask", "whole"])
def test_the_exact_denoisers_know_the_posterior_mean(observed):
    prior, m = example_prior((8,)), example_measurement(observed, 4, (8,))
    C, mean = prior.cov.dense().double(), prior.mean.double()
    A = m.matrices()
    gain = C @ A.mT @ torch.linalg.inv(A @ C @ A.mT + 0.2**2 * torch.eye(8, dtype=torch.float64))
    expected = mean + torch.einsum("bdm,bm->bd", gain, m.y.double() - A @ mean)
    (known,) = exact_priors(frozenset({"conditional"}), prior, m)
    x_hat = known(torch.zeros(4, 8), 1e4, linear_condition(m))
    assert torch.allclose(x_hat.double(), expected, atol=1e-4)


def test_the_examples_differ_between_observations_and_not_between_calls():
    for observed in ("mask", "projection"):
        one, two = (example_measurement(observed, 4, (8,)) for _ in range(2))
        assert torch.equal(one.y, two.y)
        assert not one.shares_operator
        other = example_measurement(observed, 4, (8,), None, "other")
        x = torch.ones(4, 8)
        assert not torch.equal(one.A(x), other.A(x))
