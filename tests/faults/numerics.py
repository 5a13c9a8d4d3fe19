"""Numbers that are not finite, and components whose numbers are wrong."""

import shutil
import textwrap
from pathlib import Path

from faults.base import RECIPE, Budget, Done, Tally, case, invem

GROUP = "Numbers"

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar
import torch
from torch import nn, Tensor
from invem import LinearOperator, Objective, Operator, PosteriorSampler, hookimpl

CALLS = [0]

class Net(nn.Module):
    """The network of the recipe; its calls are counted."""
    def __init__(self, shape):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(shape))
    def forward(self, x, c_noise, cond=None):
        CALLS[0] += 1
        out = self.scale * x + self.shift
        return {network}

@dataclass(frozen=True, eq=False)
class Scan(LinearOperator):
    def __call__(self, x):
        return x.flip(-1)
    def adjoint(self, y):
        return {adjoint}

@dataclass(frozen=True, kw_only=True)
class Loss(Objective):
    needs: ClassVar[frozenset] = frozenset({{"x"}})
    def loss(self, model, batch, rng):
        CALLS[0] += 1
        loss = (model(batch.x, 0.5) - batch.x).square().flatten(1).mean(1)
        return {loss}

@dataclass(frozen=True, kw_only=True)
class Sampler(PosteriorSampler):
    needs: ClassVar[frozenset] = frozenset()
    def __call__(self, prior, m, rng):
        CALLS[0] += 1
        x = m.y.clone()
        return {sampler}

@hookimpl
def invem_networks():
    return {{"frail-net": Net}}
@hookimpl
def invem_operators():
    return {{"frail-scan": lambda n, shape, rng: Scan(tuple(shape))}}
@hookimpl
def invem_objectives():
    return {{"frail-loss": Loss}}
@hookimpl
def invem_samplers():
    return {{"frail-sampler": Sampler}}
'''
WHOLE = {"network": "out", "adjoint": "y.flip(-1)", "loss": "loss", "sampler": "x"}
ITEM = "torch.where(torch.arange(len({0})).view(-1, *[1] * ({0}.ndim - 1)) == 1, {1}, {0})"
NAN, INF = "{} * float('nan')", "{} * float('inf')"


def broken(tmp: Path, *words: object, recipe: str = RECIPE, **wrong: str) -> Done:
    """Runs a command with a plugin one of whose components is wrong."""
    folder = tmp / "plugins"
    folder.mkdir(exist_ok=True)
    (folder / "frail.py").write_text(textwrap.dedent(PLUGIN.format(**WHOLE | wrong)))
    path = tmp / "recipe.yaml"
    path.write_text(recipe, "utf-8")
    env = {"INVEM_PLUGINS_DIR": str(folder)}
    return invem([str(path) if word == "RECIPE" else word for word in words], tmp / "said", env=env)


NETWORKS = {
    f"{value} at call {k}{', one item' if one else ''}": (
        f"{ITEM.format('out', wrong.format('out')) if one else wrong.format('out')}"
        f" if CALLS[0] >= {k} else out"
    )
    for value, wrong in (("NaN", NAN), ("infinity", INF))
    for k in (1, 3, 8, 13, 18)
    for one in (False, True)
}


@case(
    GROUP, "a network that returns NaN or infinity from its k-th call on, for all or for one item"
)
def networks_not_finite(tmp: Path, budget: Budget, tally: Tally) -> None:
    for name, wrong in NETWORKS.items():
        words = ("run", "RECIPE", "network=frail-net", "--out", tmp / "run")
        done = broken(tmp, *words, network=wrong)
        fine = done.is_refusal(3, naming="frail-net") or done.is_refusal(5, naming="finite")
        tally.judge(fine, f"{name}: {done.code} {done.err[-300:]}", refused=True)
        if done.code == 0:
            tally.reasons[-1] += " finished"
        shutil.rmtree(tmp / "run", ignore_errors=True)


LOSSES = {
    "infinite": INF.format("loss"),
    "NaN": NAN.format("loss"),
    "NaN at step 3": f"{NAN.format('loss')} if CALLS[0] > 2 else loss",
    "NaN of one item": ITEM.format("loss", NAN.format("loss")),
    "infinite gradient": "loss * float('inf')",
    "huge": "loss * 1e38",
    "cut off from the weights": "loss.detach()",
}


@case(GROUP, "a loss that is infinite, NaN, of one item NaN, or huge")
def losses_not_finite(tmp: Path, budget: Budget, tally: Tally) -> None:
    for name, wrong in LOSSES.items():
        words = (
            "run",
            "RECIPE",
            "phases.em.fit={objective: frail-loss, steps: 6, batch: 4}",
            "--out",
            tmp / "run",
        )
        done = broken(tmp, *words, loss=wrong)
        if done.code == 0 and name == "huge":
            tally.survived += 1  # the gradient is clipped
        else:
            fine = done.is_refusal(3, 5)
            tally.judge(fine, f"{name}: {done.code} {done.err[-300:]}", refused=True)
        shutil.rmtree(tmp / "run", ignore_errors=True)


@case(GROUP, "a fit that diverges")
def divergence(tmp: Path, budget: Budget, tally: Tally) -> None:
    for rate in (1e5, 1e15, 1e30):
        fit = f"{{objective: dsm, steps: 60, batch: 4, lr: {rate}, warmup: 0, clip: 1.0e+30}}"
        out = tmp / "run"
        done = broken(tmp, "run", "RECIPE", f"phases.em.fit={fit}", "--out", out)
        tally.judge(
            done.is_refusal(2, 5), f"lr {rate}: {done.code} {done.err[-300:]}", refused=True
        )
        shutil.rmtree(out, ignore_errors=True)


SAMPLERS = {
    "NaN": (NAN.format("x"), False),
    "NaN of one item": (ITEM.format("x", NAN.format("x")), False),
    "NaN of one item, once": (f"{ITEM.format('x', NAN.format('x'))} if CALLS[0] == 1 else x", True),
    "infinity of one item": (ITEM.format("x", INF.format("x")), False),
    "all the same": ("torch.zeros_like(x)", False),
}


@case(GROUP, "a sampler whose draws are NaN or all the same; NaN once is drawn again")
def samplers_not_finite(tmp: Path, budget: Budget, tally: Tally) -> None:
    for name, (wrong, survives) in SAMPLERS.items():
        out = tmp / "run"
        words = (
            "run",
            "RECIPE",
            "phases.em.sampler=frail-sampler",
            "phases.em.refresh=1.0",
            "evaluate.phases=[em]",
            "--out",
            out,
        )
        done = broken(tmp, *words, sampler=wrong)
        if survives:
            tally.judge(done.code == 0, f"{name}: {done.code} {done.err[-300:]}")
        else:
            fine = done.is_refusal(
                3, 5, naming="finite" if "N" in name or "inf" in name else "same"
            )
            tally.judge(fine, f"{name}: {done.code} {done.err[-300:]}", refused=True)
        shutil.rmtree(out, ignore_errors=True)


@case(GROUP, "an operator with a wrong adjoint, as `invem plugin check` sees it")
def wrong_adjoint(tmp: Path, budget: Budget, tally: Tally) -> None:
    done = broken(tmp, "plugin", "check", "operators/frail-scan")
    tally.judge(done.code == 0, f"the right one: {done.code} {done.out[-300:]} {done.err[-300:]}")
    for wrong in (
        "y",
        "-y.flip(-1)",
        "y.flip(-1) * 1.01",
        "y.flip(-1).roll(1, -1)",
        "y * 0",
        NAN.format("y"),
    ):
        done = broken(tmp, "plugin", "check", "operators/frail-scan", adjoint=wrong)
        fine = done.is_clean and done.code == 1 and "adjoint" in done.out
        tally.judge(fine, f"{wrong}: {done.code} {done.out[-300:]} {done.err[-300:]}", refused=True)


@case(GROUP, "a noise level of 0, negative, NaN, infinite or beyond what float32 holds")
def noise_levels(tmp: Path, budget: Budget, tally: Tally) -> None:
    for level in ("0", "-0.1", ".nan", ".inf", "1e-30", "1e-45", "1e10", "1e15", "1e30", "1e300"):
        out = tmp / "run"
        done = broken(tmp, "run", "RECIPE", f"noise.sigma={level}", "--out", out)
        if done.code == 0:
            text = (out / "metrics.jsonl").read_text()
            tally.judge("NaN" not in text and "Infinity" not in text, f"{level}: {text[-200:]}")
        else:
            tally.judge(
                done.is_refusal(2, 5), f"{level}: {done.code} {done.err[-300:]}", refused=True
            )
        shutil.rmtree(out, ignore_errors=True)
