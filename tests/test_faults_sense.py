"""What observations can tell, said truthfully: each test is named after the kind of fault."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from invem_plugins.datasets.digits import digits
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.noises.laplace import laplace
from invem_plugins.noises.poisson_gaussian import poisson_gaussian
from invem_plugins.operators.gaussian_blur import gaussian_blur
from invem_plugins.operators.identity import identity
from invem_plugins.operators.random_mask import random_mask
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import invem
from invem import Measurement, RecipeError, Rng, report
from invem.analysis import ObservationModel, describe, identify, lines, noise_level
from invem.cli.app import app
from invem.cli.progress import follow as follow_in_words
from invem.door import Run

torch.set_num_threads(1)


def decaying(n, d, last=1e-4):
    """Signals in a basis of no order, with variances from 1 down to `last`, and the variances."""
    spectrum = torch.logspace(0, torch.tensor(last).log10().item(), d, dtype=torch.float64)
    rng = Rng.generator("basis")
    turn = torch.linalg.qr(torch.randn(d, d, generator=rng, dtype=torch.float64)).Q
    z = torch.randn(n, d, generator=rng, dtype=torch.float64)
    return ((z * spectrum.sqrt()) @ turn.T).float(), spectrum


def photographs(n, side, std=0.4):
    """Crops of fields whose power falls as one over the squared frequency, as that of photographs
    does, and the eigenvalues of their covariance."""
    wide = 2 * side
    f = torch.fft.fftfreq(wide, dtype=torch.float64)
    amplitude = 1 / (f[:, None] ** 2 + f**2).sqrt().clamp(min=1 / wide)
    white = torch.randn(n, wide, wide, generator=Rng.generator("white"), dtype=torch.float64)
    x = torch.fft.ifft2(torch.fft.fft2(white) * amplitude).real[:, None, :side, :side]
    lag = torch.fft.ifft2(amplitude.square()).real
    row, column = (
        each.flatten() for each in torch.meshgrid(*2 * [torch.arange(side)], indexing="ij")
    )
    cov = lag[(row[:, None] - row) % wide, (column[:, None] - column) % wide] / lag[0, 0]
    return (x * std / lag[0, 0].sqrt()).float(), std**2 * torch.linalg.eigvalsh(cov).flip(0)


def observed(x, law=identity, noise=gaussian, **options):
    """The observation model of signals in noise."""
    n, shape = len(x), tuple(x.shape[1:])

    def draw(k, block):
        A = law(k, shape, Rng.generator("draw", block))
        measured = tuple(A[0](torch.zeros(1, *shape)).shape[1:])
        return A, noise(k, measured, Rng.generator("noise", block), **options)

    def measured(k, block):
        A, law_of_noise = draw(k, block)
        clean = A(x[1024 * block : 1024 * block + k])
        return Measurement(law_of_noise.sample(clean, Rng.generator("y", block)), A, law_of_noise)

    return ObservationModel(
        draw=draw,
        block=1024,
        operator="law",
        shape=shape,
        range=(-1.0, 1.0),
        observations=n,
        signals=lambda k: x[:k],
        measured=measured,
    )


# The signals that a report compares with the noise


@pytest.mark.parametrize(("n", "off"), [(200, 10), (2000, 3)])
def test_directions_above_the_noise_are_those_of_the_signals(n, off):
    x, spectrum = decaying(n, 64)
    found = identify(observed(x, sigma=0.2))
    assert found.above_noise == pytest.approx(int((spectrum >= 0.04).sum()), abs=off)
    assert found.sensed.observations == n
    assert found.signal == pytest.approx(float(spectrum.mean()), rel=0.15)
    assert found.above_noise + found.pooled < 64


def test_estimated_ratios_are_the_eigenvalues_over_the_noise():
    x, spectrum = decaying(4000, 32, last=1e-2)
    ratios = identify(observed(x, sigma=0.2)).sensed.ratios
    assert torch.allclose(ratios, spectrum / 0.04, rtol=0.15, atol=0.06)


@pytest.mark.parametrize(("std", "count"), [(0.5, 64), (0.1, 0)])
@pytest.mark.parametrize("n", [96, 1000])
def test_white_signals_have_all_directions_or_none_above_the_noise(std, count, n):
    """The eigenvalues of a sample covariance of few white signals spread by a factor of 10."""
    x = std * torch.randn(n, 1, 8, 8, generator=Rng.generator("white"))
    found = identify(observed(x, sigma=0.2))
    assert abs(found.above_noise - count) <= (3 if n == 96 else 0)
    assert found.sensed.few == (n < 128)
    assert ("too few to find" in "\n".join(lines(found))) == (n < 128)


def test_most_directions_of_photographs_are_below_the_noise():
    x, spectrum = photographs(1500, 16)
    truth = int((spectrum >= 0.09).sum())
    found = identify(observed(x, sigma=0.3))
    assert truth < 100
    assert found.above_noise == pytest.approx(truth, abs=0.1 * truth)
    text = "\n".join(lines(found))
    assert f"{found.above_noise} of 256 directions" in text
    assert "its spectrum was estimated from 1,500 observations" in text
    assert describe(found)["told by one observation"] == found.above_noise


def test_masks_and_large_images_have_their_spectrum_estimated_too():
    x, spectrum = photographs(3000, 12)
    masked = identify(
        observed(x, lambda n, shape, rng: random_mask(n, shape, rng, keep=0.5), sigma=0.2)
    )
    truth = int((spectrum / 2 >= 0.04).sum())
    assert masked.above_noise == pytest.approx(truth, abs=0.15 * truth)
    assert masked.signal == pytest.approx(0.16, rel=0.1)
    x, spectrum = photographs(300, 24)
    large = identify(observed(x, sigma=0.3), most_entries=100)
    assert large.sensed.frequencies
    truth = int((spectrum >= 0.09).sum())
    assert large.above_noise == pytest.approx(truth, abs=0.15 * truth)


def test_a_blur_is_judged_by_what_it_lets_through():
    x, _ = photographs(2000, 8)
    sharp, soft = (
        identify(observed(x, lambda n, s, r, w=std: gaussian_blur(n, s, r, std=w), sigma=0.1))
        for std in (0.3, 1.5)
    )
    assert soft.above_noise < sharp.above_noise / 2


@pytest.mark.parametrize(
    ("n", "noise", "options", "why"),
    [
        (20, gaussian, {"sigma": 0.2}, "20 observations are too few"),
        (100, laplace, {}, "the noise is not Gaussian"),
        (100, gaussian, {"sigma": 0.0}, "the noise is 0"),
    ],
)
def test_where_the_spectrum_is_not_known_a_guess_is_called_one(n, noise, options, why):
    x, _ = photographs(n, 8)
    found = identify(observed(x, noise=noise, **options))
    text = "\n".join(lines(found))
    assert found.sensed is None and f"a guess, since {why}" in text


# The level of the noise, and the range of the data, before anything is learned


def level_of(x, law, sigma, assumed, **options):
    """What observations in noise of one level say where another is assumed."""
    model = observed(x, law, sigma=sigma)
    m = model.measured(min(len(x), 1024), 0)
    noise = gaussian(len(m), tuple(m.y.shape[1:]), Rng.generator(0), sigma=assumed)
    return noise_level(replace(m, noise=noise))


def half(n, shape, rng):
    return random_mask(n, shape, rng, keep=0.5)


@pytest.mark.parametrize("law", [identity, half, gaussian_blur])
@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("signals", ["digits", "photographs"])
def test_the_noise_level_lies_where_observations_say_it_does(law, sigma, signals):
    x = digits("train")[torch.arange(1000)].x if signals == "digits" else photographs(100, 32)[0]
    for assumed in (0.02, 0.3):
        found = level_of(x, law, sigma, assumed)
        low, high = found.bracket
        assert low * assumed <= sigma <= high * assumed
        assert found.level >= 0.97 * sigma
        assert not (found.impossible and assumed <= sigma)
        assert not (found.too_small and assumed >= sigma)
    if signals == "digits" and law is not gaussian_blur:
        assert found.level == pytest.approx(sigma, rel=0.1)
    if sigma == 0.3:
        assert level_of(x, law, sigma, 0.1).too_small == (law is not gaussian_blur)
        assert level_of(x, law, sigma, 0.6).impossible


def test_the_noise_level_is_relative_where_levels_differ():
    x, _ = photographs(200, 32)
    model = observed(x, sigma=[0.1, 0.4])
    found = noise_level(model.measured(200, 0))
    assert 0.9 < found.ratio < 1.4 and not found.impossible and not found.too_small
    found = noise_level(observed(0 * x, sigma=[0.1, 0.4]).measured(200, 0))
    assert found.ratio == pytest.approx(1, abs=0.02)


def test_clipped_noise_is_not_called_impossible():
    x = -torch.ones(200, 1, 16, 16)
    m = observed(x, sigma=0.2).measured(200, 0)
    clipped = replace(m, y=m.y.clamp(min=-1))
    assert noise_level(clipped).clipped > 0.4 and not noise_level(clipped).impossible
    assert not noise_level(m).clipped


def frames(folder, scale, sigma):
    """A folder of 16-bit images of photographs in noise, with values up to `scale`."""
    x, _ = photographs(120, 16, std=0.2)
    y = x + sigma * torch.randn(x.shape, generator=Rng.generator("frames"))
    stored = ((y.clamp(-1, 1) + 1) / 2 * scale).round().numpy().astype(np.uint16)
    folder.mkdir()
    for k, image in enumerate(stored[:, 0]):
        Image.fromarray(image).save(folder / f"{k:03d}.png")


RECIPE = """
observations: {{name: folder, root: {root}, channels: 1{more}}}
operator: identity
noise: {{name: gaussian, sigma: {sigma}}}
network: {{name: mlp, width: 16, depth: 1}}
phases:
  - {{name: em, rounds: 2, fit: {{objective: gaussian-moments, rank: 4}}}}
evaluate: {{metrics: [], samples: 0}}
"""


def warned(tmp_path, sigma, more="", scale=65535, true=0.2):
    if not (tmp_path / "frames").exists():
        frames(tmp_path / "frames", scale, true)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(root=tmp_path / "frames", sigma=sigma, more=more))
    return invem.plan(path).warnings


def test_twelve_bits_kept_in_sixteen_are_noticed(tmp_path):
    """The values fill a small part of the range, and the noise is above all that varies."""
    lines = warned(tmp_path, 0.2, scale=4095)
    of_range, of_noise = (line for line in lines if "32 images" not in line)
    assert "observations: the values fill" in of_range and "low: 0, high: 4095" in of_range
    assert "noise: sigma: 0.2 cannot be" in of_noise and "recipe.yaml:4:" in of_noise
    assert not any("\n" in line for line in (of_range, of_noise))
    assert warned(tmp_path, 0.2, ", low: 0, high: 4095") == []
    lines = warned(tmp_path, 0.2, ", low: 0, high: 60000")
    again = next(line for line in lines if "32 images" not in line)
    stated = float(again.split("high: ")[1].rstrip(")"))
    assert 3000 < stated < 4200


@pytest.mark.parametrize(
    ("sigma", "word"), [(0.2, None), (0.15, None), (0.05, "less than"), (0.6, "cannot be")]
)
def test_a_level_that_the_observations_contradict_is_warned_of_with_one_that_fits(
    tmp_path, sigma, word
):
    found = warned(tmp_path, sigma)
    if word is None:
        assert found == []
        return
    (line,) = found
    assert f"sigma: {sigma} " in line and word in line
    fits = float(line.rsplit("about ", 1)[1])
    assert fits == pytest.approx(0.2, rel=0.2)
    assert warned(tmp_path, fits) == []


def test_a_run_keeps_what_was_doubted_and_identify_prints_the_level(tmp_path):
    warned(tmp_path, 0.6)
    done = Run(invem.plan(tmp_path / "recipe.yaml"), tmp_path / "run")
    done.resume()
    kept = json.loads((tmp_path / "run" / "identifiability.json").read_text())
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert any("cannot be" in line for line in about["warnings"])
    # The finest differences of the signals themselves are in it: it is an upper bound.
    x, _ = photographs(120, 16, std=0.2)
    fine = (x[..., :-1, :-1] - x[..., 1:, :-1] - x[..., :-1, 1:] + x[..., 1:, 1:]) / 2
    bound = (0.2**2 + fine.square().mean()).sqrt()
    assert kept["noise level"]["at most"] == pytest.approx(float(bound), rel=0.05)
    shown = CliRunner().invoke(app, ["identify", str(tmp_path / "recipe.yaml")])
    assert "the observations show noise of " in shown.output


def test_an_assumed_level_is_compared_where_signals_are_measured_by_the_recipe(tmp_path):
    text = "data: digits\noperator: random-mask\nnoise: {name: gaussian, sigma: 0.1}\n"
    text += "assume: {noise.sigma: 0.4}\n"
    text += "network: {name: mlp, width: 16, depth: 1}\nphases:\n"
    text += "  - {name: em, rounds: 2, fit: {objective: gaussian-moments, rank: 4}}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    (line,) = invem.plan(tmp_path / "recipe.yaml").warnings
    assert "sigma: 0.4 cannot be" in line and "`assume` sigma to about 0.1" in line
    assert invem.plan(tmp_path / "recipe.yaml", ["assume={noise.sigma: 0.1}"]).warnings == []


# Calibration

BLIND = """
observations: {{name: folder, root: {root}, channels: 1}}
operator: identity
noise: {{name: gaussian, sigma: {sigma}}}
network: {{name: mlp, width: 16, depth: 1}}
phases:
  - {{name: warm-start, rounds: {rounds}{closed}, fit: {{objective: gaussian-moments, rank: 16}}}}
  - {{name: em, rounds: 1, sampler: exact{drawn}, fit: {{objective: dsm, steps: 2, batch: 8}}}}
evaluate: {{metrics: [], samples: 0, observations: 0}}
compute: {{threads: 1}}
"""
BOUNDS = ", calibrate: {noise.sigma: [0.005, 0.9]}"


def blind(tmp_path, sigma, rounds=3, closed="", drawn=""):
    """Carries out a run on noise of 0.2; returns its records and what was calibrated last."""
    if not (tmp_path / "frames").exists():
        frames(tmp_path / "frames", 65535, 0.2)
    text = BLIND.format(
        root=tmp_path / "frames", sigma=sigma, rounds=rounds, closed=closed, drawn=drawn
    )
    (tmp_path / "blind.yaml").write_text(text)
    records = []

    def follow(steps):
        for record in steps:
            records.append(record)
            yield record

    done = Run(invem.plan(tmp_path / "blind.yaml"), tmp_path / "run")
    done.resume(follow=follow)
    last = sorted((tmp_path / "run").glob("*-samples/calibrated.json"))[-1:]
    return records, json.loads(last[0].read_text()) if last else None


def told(records, event):
    return [record.data for record in records if record.event == event]


def test_a_level_that_a_prior_has_learned_as_signal_is_not_called_settled(tmp_path):
    """The prior is learned with a level of 0.03, and has the noise of 0.2 in its covariance. Under
    it, 0.03 is likely."""
    records, found = blind(tmp_path, 0.03, drawn=BOUNDS)
    assert 0.15 < found["values"]["noise.sigma"] < 0.25
    assert found["settled"] is False and found["error"] == {}
    (doubt,) = (each["warning"] for each in told(records, "doubt"))
    assert "phase em, round 0: noise.sigma went to the end" in doubt and "\n" not in doubt
    assert "noise.sigma went to the end" in (tmp_path / "run" / "log.jsonl").read_text()
    assert doubt in report.write(tmp_path / "run").read_text()


def test_draws_that_are_the_observations_are_warned_of(tmp_path):
    records, _ = blind(tmp_path, 0.03)
    (doubt,) = (each["warning"] for each in told(records, "doubt"))
    assert "the draws follow the observations to 0.03" in doubt and "nothing is restored" in doubt


def test_draws_under_the_right_level_are_not(tmp_path):
    records, found = blind(tmp_path, 0.2, rounds=16, drawn=BOUNDS)
    assert not told(records, "doubt")
    assert found["values"]["noise.sigma"] == pytest.approx(0.2, rel=0.12)


def test_a_phase_in_closed_form_calibrates_and_begins_at_what_observations_show(tmp_path):
    records, found = blind(tmp_path, 0.03, closed=BOUNDS)
    first, *later = told(records, "calibrate")
    assert (first["how"], {each["how"] for each in later}) == ("observations", {"moments"})
    for each in (first, *later):
        assert each["values"]["noise.sigma"] == pytest.approx(0.2, rel=0.2)
    assert found["values"] == later[-1]["values"]


def test_trials_of_a_calibration_are_shown(tmp_path, capsys):
    records, _ = blind(tmp_path, 0.2, rounds=1, drawn=BOUNDS)
    trials = told(records, "trial")
    assert {each["trial"] for each in trials} >= {1, 2}
    assert trials[-1]["done"] == trials[-1]["total"]
    for _ in follow_in_words(records):
        pass
    assert "em 1: calibrating noise.sigma, trial 2 of 8 or fewer" in capsys.readouterr().err


def test_a_phase_that_can_calibrate_nothing_is_refused_with_what_fits(tmp_path):
    text = RECIPE.format(root=tmp_path / "frames", sigma=0.2, more="")
    text = text.replace("objective: gaussian-moments, rank: 4", "objective: sure-score")
    text = text.replace("rounds: 2", "calibrate: {noise.sigma: [0.1, 0.3]}")
    frames(tmp_path / "frames", 65535, 0.2)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match="the phase has no sampler: give it one, or calibrate in"):
        invem.plan(tmp_path / "recipe.yaml")


# Noise that the default path does not take

COUNTS = """
data: digits
count: 24
operator: identity
noise: {{name: laplace, scale: 0.05}}
network: {{name: mlp, width: 16, depth: 1}}
phases:
  - {{name: warm-start, {first}fit: {{objective: {objective}}}}}
  - {{name: em, sampler: {sampler}, fit: {{objective: dsm, steps: 2, batch: 8}}}}
evaluate: {{metrics: [], samples: 0, observations: 0}}
compute: {{threads: 1}}
"""


def recommended(tmp_path):
    """What the refusal of the default path recommends: samplers and objectives."""
    path = tmp_path / "counts.yaml"
    path.write_text(COUNTS.format(first="", objective="gaussian-moments", sampler="mmps"))
    with pytest.raises(RecipeError) as refused:
        invem.plan(path)
    first, em = str(refused.value).splitlines()
    assert "counts.yaml:8:" in first and "on observations no objective fits" in first
    classical = first.split("needs no prior (")[1].split(")")[0].split(", ")
    objectives = first.split("these: ")[1].split(";")[0].split(", ")
    assert "approximate the noise by gaussian, with its level at each pixel" in first
    return classical, objectives, em.split("these fit: ")[1].split(", ")


def test_noise_that_is_not_gaussian_is_refused_with_what_fits_and_that_runs(tmp_path):
    classical, objectives, samplers = recommended(tmp_path)
    assert "gaussian-moments" in objectives and "daps" in samplers and classical
    path = tmp_path / "counts.yaml"
    steps = {"dsm": "dsm, steps: 2, batch: 8"}
    pairs = [(first, "gaussian-moments", "dps") for first in classical]
    pairs += [(classical[0], objective, "dps") for objective in objectives[1:]]
    pairs += [(classical[0], "gaussian-moments", sampler) for sampler in samplers]
    for k, (first, objective, sampler) in enumerate(dict.fromkeys(pairs)):
        path.write_text(
            COUNTS.format(
                first=f"sampler: {first}, ",
                objective=steps.get(objective, objective),
                sampler=sampler,
            )
        )
        Run(invem.plan(path, ["count=8"]), tmp_path / f"run-{k}").resume()


def test_a_gaussian_of_a_level_at_each_pixel_stands_in_for_other_noise(tmp_path):
    x = digits("train")[torch.arange(40)].x
    noise = poisson_gaussian(40, (1, 8, 8), Rng.generator(0), peak=50, sigma=0.05)
    y = noise.sample(x, Rng.generator("counts"))
    level = (2 * (y.clamp(min=-0.99) + 1) / 50 + 0.05**2).sqrt()
    save_file({"y": y, "noise.sigma": level}, tmp_path / "y.safetensors")
    text = COUNTS.format(first="", objective="gaussian-moments", sampler="exact")
    text = text.replace("data: digits", "observations: {name: measurements, file: y.safetensors}")
    text = text.replace("y.safetensors", str(tmp_path / "y.safetensors"))
    text = text.replace("{name: laplace, scale: 0.05}", "{NOISE}")
    text = text.replace("{NOISE}", "{name: gaussian, per: pixel, sigma: [0.05, 0.3]}")
    (tmp_path / "approximate.yaml").write_text(text)
    done = Run(invem.plan(tmp_path / "approximate.yaml"), tmp_path / "run")
    done.resume()
    assert torch.equal(done.observations("train").noise.sigma, level[:24])
