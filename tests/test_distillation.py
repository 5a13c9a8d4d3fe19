"""Restoration score distillation: its gradient on a Gaussian in closed form, what a teacher need
not know, and a whole run."""

import json
import math
import shutil

import pytest
import torch
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.objectives.rsd import RSD, Distilled
from invem_plugins.operators.identity import identity
from pooled import Pooled
from torch import nn

from invem import (
    Denoiser,
    Example,
    Gaussian,
    Measurement,
    Prior,
    RecipeError,
    Rng,
    Run,
    Unsupported,
    config,
)
from invem.denoiser import expand_level
from invem.errors import Stopped
from invem.objective import edm_weight, noise_levels, score_matching
from invem.planning.make import make
from invem.prior import ExactDenoiser
from invem.running.evaluate import unconditional
from invem.running.loop import carry_out
from invem.running.priors import newest_weights
from invem.storage.directory import Round

D, SIGMA, N = 3, 0.7, 200_000
MEAN, STD = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.0, 0.5, 2.0])
AT = {"p_mean": math.log(SIGMA), "p_std": 1e-6}  # one level, so that there is a closed form


def law(mean, std):
    return Gaussian.full(mean, torch.diag(std.double() ** 2))


class Known(Denoiser):
    """E[x | x_t] under N(mean, diag(std^2)), or the generator mean + std z, with both to be
    learned."""

    sigma_data = 0.5

    def __init__(self, mean, std, start=None):
        super().__init__()
        self.centre, self.std = nn.Parameter(mean.clone()), nn.Parameter(std.clone())
        self.start = start

    def forward(self, x_t, sigma, cond=None):
        if self.start is not None:
            return self.centre + self.std * x_t / self.start
        share = self.std**2 / (self.std**2 + expand_level(sigma, x_t) ** 2)
        return self.centre + share * (x_t - self.centre)


def measured(n):
    A = identity(n, (D,), Rng.generator("A"))
    noise = gaussian(n, (D,), Rng.generator("noise"), sigma=0.3)
    return Measurement(torch.zeros(n, D), A, noise)


def pair(mean, std, teacher=None, **options):
    """The networks for a generator of N(mean, std^2) and the exact denoiser of its law."""
    objective = RSD(**options)
    made = iter([Known(mean, std), Known(mean, std, objective.init_sigma)])
    prior = Prior.of(law(MEAN, STD)) if teacher is None else Prior(teacher)
    return objective, objective.build(lambda: next(made), prior, measured(1))


def gradients(objective, denoiser, n=N):
    """The mean and the standard error of the gradient of the generator's mean and standard
    deviation, from parts of the batch."""
    generator, found = denoiser.generator, []
    for k in range(20):
        loss = objective.loss(
            denoiser, Example(None, measured(n // 20)), Pooled.keyed("rsd", k, items=range(n // 20))
        ).mean()
        found.append(torch.stack(torch.autograd.grad(loss, [generator.centre, generator.std])))
    each = torch.stack(found)
    return each.mean(0), each.std(0) / len(each) ** 0.5


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
def test_the_gradient_is_that_of_the_closed_form_and_points_to_the_teacher(alpha):
    mean, std = MEAN + torch.tensor([0.4, -0.2, 0.0]), STD * torch.tensor([1.0, 1.5, 0.6])
    objective, denoiser = pair(mean, std, alpha=alpha, **AT)
    weight = float(edm_weight(denoiser.student, torch.tensor(SIGMA)))
    theirs, ours = STD**2 / (STD**2 + SIGMA**2), std**2 / (std**2 + SIGMA**2)
    gap = theirs - ours
    by_std = 2 * weight / D * std * gap * ((1 - alpha) * gap + ours - 1)
    # d = gap (x_t - mean) + (1 - theirs)(MEAN - mean), and its mean times the slopes of what it is
    # multiplied with
    shift = (1 - theirs) * (MEAN - mean)
    by_mean = weight / D * (2 * (1 - alpha) * gap * shift + (ours - 1) * shift)
    found, error = gradients(objective, denoiser)
    assert ((found - torch.stack([by_mean, by_std])).abs() < 4.5 * error + 1e-4).all()
    if alpha:
        away = torch.stack([mean - MEAN, std - STD])
        assert (torch.stack([by_mean, by_std])[away != 0].sign() == away[away != 0].sign()).all()


@pytest.mark.parametrize(("alpha", "towards"), [(1.0, 1), (1.2, -1)])
def test_a_generator_that_is_far_too_wide_is_sent_further_by_the_published_alpha(alpha, towards):
    objective, denoiser = pair(MEAN, 10 * STD, alpha=alpha, p_mean=math.log(0.1), p_std=1e-6)
    found, error = gradients(objective, denoiser)
    assert (towards * found[1] > 4 * error[1]).all()


def test_the_teacher_s_own_law_is_where_it_rests():
    for alpha in (0.0, 1.2):
        objective, denoiser = pair(MEAN, STD, alpha=alpha)
        found, _ = gradients(objective, denoiser, 2000)
        assert found.abs().max() < 1e-5


class Blind(ExactDenoiser):
    """Exact at levels from 0.3 on, and wrong below."""

    def forward(self, x_t, sigma, cond=None):
        return torch.where(expand_level(sigma, x_t) < 0.3, 0.0, super().forward(x_t, sigma))


def test_a_teacher_that_knows_no_level_below_the_noise_of_the_data_is_enough():
    teacher = Blind(law(MEAN, STD))
    assert gradients(*pair(MEAN, STD, teacher, least=0.3), 2000)[0].abs().max() < 1e-5
    found, error = gradients(*pair(MEAN, STD, teacher))
    assert (found.abs() > 10 * error).any()


def test_the_student_is_fitted_to_the_generator_s_signals_and_each_network_to_its_own_part():
    objective, denoiser = pair(MEAN + 0.3, 1.2 * STD)
    student, generator = denoiser.student, denoiser.generator
    batch, n = Example(None, measured(64)), 64

    def loss():
        return objective.loss(denoiser, batch, Rng.keyed("parts", items=range(n))).mean()

    rng = Rng.keyed("parts", items=range(n))
    x = denoiser.generated(rng.normal(D)).detach()
    sigma = noise_levels(rng, x)
    alone = score_matching(student, x, sigma, edm_weight(student, sigma), rng).mean()
    expected = torch.autograd.grad(alone, [student.centre, student.std])
    found = torch.autograd.grad(loss(), [student.centre, student.std])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    objective_alone, _ = torch.autograd.grad(
        loss() - alone.detach(), [generator.centre, generator.std]
    )
    assert objective_alone.abs().sum() > 0


def test_a_loss_is_of_its_sample():
    objective, denoiser = pair(MEAN + 0.3, 1.2 * STD)
    many = objective.loss(denoiser, Example(None, measured(8)), Rng.keyed("own", items=range(8)))
    few = objective.loss(denoiser, Example(None, measured(3)), Rng.keyed("own", items=range(3)))
    assert many.shape == (8,) and torch.allclose(many[:3], few, atol=1e-6)


def test_what_it_was_not_given():
    objective, denoiser = pair(MEAN, STD)
    with pytest.raises(RecipeError, match="observations"):
        objective.loss(denoiser, Example(torch.zeros(2, D)), Rng.keyed("no", items=range(2)))
    with pytest.raises(RecipeError, match="two networks"):
        objective.loss(
            Known(MEAN, STD), Example(None, measured(2)), Rng.keyed("no", items=range(2))
        )
    with pytest.raises(Unsupported):
        objective.prior(denoiser, None).known_exact()


RECIPE = """
seed: 0
data: {name: synthetic, size: 2, train: 512, test: 64}
operator: identity
noise: {name: gaussian, sigma: 0.3}
network: {name: mlp, width: 48, depth: 2}
phases:
  - name: learn
    rounds: 8
    fit: {objective: gaussian-moments, rank: 2}
  - name: distil
    fit: {objective: rsd, steps: 800, batch: 128, lr: 1.0e-2, moments: 2, decay: cosine,
          checkpoint: 100}
evaluate: {metrics: [frechet, psnr], samples: 1024, observations: 8, sampler: {name: mmps,
      steps: 6}, steps: 6}
compute: {threads: 1}
"""


def planned(tmp_path, text=RECIPE, *changes):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, "utf-8")
    return make(config.load(path, list(changes)), config.Catalog.load())


def test_a_run_distils_a_prior_into_a_generator_of_its_law(tmp_path):
    out = tmp_path / "run"
    made = planned(tmp_path)
    work = Run(made, out)
    work.resume()
    teacher, found = work.prior_at("learn", 7), work.prior
    assert isinstance(found.denoiser, Distilled) and found.denoiser.teacher is None
    x = unconditional(work.context, found, 4096, "test", 0).flatten(1).double()
    moments = teacher.known_moments()
    cov, std = moments.cov.dense().double(), moments.cov.dense().diagonal().double().sqrt()
    assert ((x.mean(0) - moments.mean.flatten()).abs() < 0.1 * std).all()
    assert ((torch.cov(x.T) - cov).abs() < 0.15 * std[:, None] * std).all()
    one, two = (Rng.keyed("again", items=range(5)) for _ in range(2))
    assert torch.equal(
        found.generator(one, made.shape, torch.empty(0)),
        found.denoiser.generated(two.normal(*made.shape)),
    )
    passes = next(row for row in lines(out) if row["event"] == "fit" and row["name"] == "distil")[
        "passes"
    ]
    assert (
        passes == 800 * 128 * 2 * 3
    )  # generator, student, student fixed; the teacher is no network


def test_a_network_that_is_trained_next_goes_on_from_the_student(tmp_path):
    short = (
        RECIPE.replace("rounds: 8", "rounds: 1")
        .replace("steps: 800", "steps: 2")
        .replace("samples: 1024", "samples: 4")
    )
    last = """  - name: last
    sampler: {name: mmps, steps: 2}
    fit: {objective: dsm, steps: 1, lr: 1.0e-9, batch: 8, moments: 2}
evaluate:"""
    made = planned(tmp_path, short.replace("evaluate:", last), "phases.distil.rounds=2")
    out = tmp_path / "run"
    work = Run(made, out)
    work.resume()
    pair, last = work.prior_at("distil", 1), work.prior_at("last", 0)
    x_t = torch.randn(3, *made.shape, generator=torch.Generator().manual_seed(0))
    kept = newest_weights(work.context, Round(2, 0))
    assert kept.networks == ("student.", "generator.")
    (weights,) = kept.of_networks(1, averaged=True)
    assert all(
        torch.allclose(tensor, weights[name], atol=1e-6)
        for name, tensor in last.denoiser.state_dict().items()
    )
    assert pair(x_t, 0.5).shape == x_t.shape
    assert pair.generator(Rng.keyed("x", items=range(3)), made.shape, x_t).shape == x_t.shape
    assert last.generator is None
    shutil.rmtree(out / "2-000-denoiser")
    with pytest.raises(RecipeError, match="module around the network"):
        planned(tmp_path, RECIPE, f"prior={out}")


def test_a_run_that_was_stopped_ends_with_the_same_bytes(tmp_path):
    short = RECIPE.replace("rounds: 8", "rounds: 1").replace("steps: 800", "steps: 8")
    made = planned(tmp_path, short, "evaluate={samples: 0, observations: 0}")
    whole, parts, asked = tmp_path / "whole", tmp_path / "parts", []
    list(carry_out(made, whole))

    def stop():
        asked.extend([1] * (parts / "0-000-denoiser" / "denoiser.safetensors").exists())
        return 143 * (len(asked) > 4)

    with pytest.raises(Stopped):
        list(carry_out(made, parts, stop))
    assert list(parts.glob("1-000-denoiser/step-*.safetensors"))
    list(carry_out(made, parts))
    one, two = (folder / "1-000-denoiser" / "denoiser.safetensors" for folder in (whole, parts))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            "phases.0={name: first, fit: {objective: rsd, steps: 1}}",
            "rsd needs a prior whose mean .*: a phase before it must learn one",
        ),
        ("phases.distil.fit.clean=0.5", "the prior before it alone"),
    ],
)
def test_what_a_plan_refuses(tmp_path, change, reason):
    with pytest.raises(RecipeError, match=reason):
        planned(tmp_path, RECIPE, "clean=4", change)


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
