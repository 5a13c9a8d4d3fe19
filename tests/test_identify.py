"""The identifiability report: spectra that are known, errors that are those of estimates, and words
that say so."""

import functools
import json
import math
from pathlib import Path

import pytest
import torch
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.noises.laplace import laplace
from invem_plugins.operators.fourier_mask import fourier_mask
from invem_plugins.operators.gamma import gamma
from invem_plugins.operators.gaussian_blur import gaussian_blur
from invem_plugins.operators.half_mask import half_mask
from invem_plugins.operators.identity import identity
from invem_plugins.operators.radon import radon
from invem_plugins.operators.random_mask import random_mask
from invem_plugins.operators.random_projection import random_projection
from safetensors.torch import save_file
from test_cli import invem

from invem import Mask, Matrix, Rng, Unsupported
from invem import config as recipe
from invem.analysis import ObservationModel, describe, identify, lines, warning
from invem.config import Catalog
from invem.operator import chain
from invem.planning.make import make
from invem.planning.observation_model import observation_model

ROOT = Path(__file__).parent.parent
CATALOG = Catalog.load()
C = 0.25  # the variance that the report takes a signal of range -1 to 1 to have


def model(
    law, shape, n=1000, noise=gaussian, clean=0, prior=False, x=None, observed=False, **options
):
    """An observation model of range -1 to 1. x: the signals."""

    def draw(k, block):
        rng = Rng.generator(0, "measure", "train", block)
        A = law(k, shape, rng)
        return A, noise(
            k,
            tuple(A[0](torch.zeros(1, *shape)).shape[1:]),
            rng,
            **(options or ({"sigma": 0.1} if noise is gaussian else {})),
        )

    return ObservationModel(
        draw=draw,
        block=1024,
        operator="law",
        shape=shape,
        range=(-1.0, 1.0),
        observations=n,
        signals=None if observed else lambda k: x[:k],
        clean=clean,
        prior=prior,
    )


def of_recipe(name, *overrides):
    loaded = recipe.load(ROOT / "recipes" / name, list(overrides))
    return identify(observation_model(make(loaded, CATALOG)))


def fixed(matrix):
    return lambda n, shape, rng: Matrix(shape, matrix.expand(n, -1, -1).contiguous())


def some_matrix(rows, d, key=0):
    return torch.randn(1, rows, d, generator=Rng.generator("matrix", key))


def test_the_identity_shows_all():
    found = identify(model(identity, (1, 5, 4), n=500))
    assert torch.equal(found.eigenvalues, torch.ones(20, dtype=torch.float64))
    assert torch.allclose(
        found.errors, torch.full((20,), math.sqrt(2 / 500) * (1 + 0.01 / C), dtype=torch.float64)
    )
    assert (found.hidden, found.above_noise, found.learned, found.pooled, found.faint) == (
        0,
        20,
        20,
        0,
        0,
    )
    assert found.shared and found.exact and found.complete and found.operators == 1
    assert warning(found) is None
    assert (
        lines(found)[-1]
        == "nothing is hidden: mean and covariance can be learned from these observations alone"
    )


def test_a_random_mask_shows_each_pixel_at_its_rate_and_pairs_at_its_square():
    n, p = 3000, 0.3
    found = identify(model(lambda k, s, r: random_mask(k, s, r, keep=p), (1, 6, 6), n=n))
    assert bool(((found.eigenvalues - p).abs() < 5 * math.sqrt(p * (1 - p) / n)).all())
    least, mean = found.together
    assert mean == pytest.approx(p**2, abs=5 * math.sqrt(p**2 / n))
    assert least == pytest.approx(p**2, abs=5 * math.sqrt(p**2 * (1 - p**2) / n))
    assert found.apart == 0 and found.pairs == "pixels" and found.operators == n
    expected = (2 / (n * found.eigenvalues)).sqrt() * (1 + 0.01 / C)
    assert torch.allclose(found.errors, expected)


def test_pairs_across_halves_are_never_seen():
    shape = (1, 6, 6)

    def sides(n, shape, rng):
        left = (torch.arange(6) < 3).float().expand(1, 6, 6)
        return Mask(shape, torch.where(torch.rand(n, 1, 1, 1, generator=rng) < 0.5, left, 1 - left))

    found = identify(model(sides, shape))
    assert found.hidden == 0 and found.learned == 36
    assert found.apart == pytest.approx(18 * 18 / (36 * 35 / 2))
    assert "51.4 % of the pairs of pixels are never seen together" in warning(found)
    # Four sides: what no side shows together are the pixels of opposite quarters.
    found = identify(model(lambda n, s, r: half_mask(n, s, r, side="random"), shape))
    assert found.apart == pytest.approx(2 * 9 * 9 / (36 * 35 / 2))


def test_one_half_hides_the_other():
    found = identify(model(half_mask, (1, 6, 6)))
    assert (found.hidden, found.learned, found.apart) == (18, 18, 0)
    assert found.shared and bool(found.errors[18:].isinf().all())
    assert "mostly" not in lines(found)[0]
    assert "hides 18 of 36 directions" in warning(found) and "`clean: 50`" in warning(found)


@pytest.mark.parametrize("boundary", ["reflect", "circular", "zero"])
def test_a_blur_has_its_squared_singular_values(boundary):
    shape, d = (1, 7, 6), 42
    law = lambda n, s, r: gaussian_blur(n, s, r, std=0.8, size=5, boundary=boundary)  # noqa: E731
    found = identify(model(law, shape))
    A = law(d, shape, Rng.generator(0))
    matrix = A(torch.eye(d).reshape(d, *shape)).flatten(1).T.double()
    assert torch.allclose(found.eigenvalues, torch.linalg.svdvals(matrix) ** 2, atol=1e-6)
    assert found.shared


def test_a_fixed_projection_hides_the_rest():
    matrix = some_matrix(3, 8)
    found = identify(model(fixed(matrix), (8,)))
    assert found.hidden == 5 and found.learned == 3 and found.shared
    assert torch.allclose(
        found.eigenvalues[:3], torch.linalg.svdvals(matrix[0].double()) ** 2, atol=1e-5
    )
    assert found.fineness is None


def test_random_projections_hide_nothing():
    found = identify(model(lambda n, s, r: random_projection(n, s, r, measurements=3), (8,)))
    assert found.hidden == 0 and not found.shared
    assert bool(((found.eigenvalues - 3 / 8).abs() < 0.06).all())
    assert found.pairs == "second moments" and found.apart == 0 and found.complete


def test_two_projections_that_see_every_direction_do_not_see_every_covariance():
    """Each of two gives the 10 second moments of its 4 numbers, of the 36 of 8 directions."""

    def either(n, shape, rng):
        both = torch.cat([some_matrix(4, 8, "a"), some_matrix(4, 8, "b")])
        return Matrix(shape, both[torch.randint(2, (n,), generator=rng)])

    found = identify(model(either, (8,)))
    assert found.hidden == 0
    assert found.apart == pytest.approx(16 / 36)
    assert "44.4 % of the second moments" in warning(found)


def test_columns_of_fourier_space_are_looked_at_in_fourier_space():
    """In pixels everything is seen by every operator; of 8 equispaced columns those of one offset,
    and their mirror images, are."""
    law = lambda n, s, r: fourier_mask(n, s, r, acceleration=4, centre=0.0, pattern="equispaced")  # noqa: E731
    complex_pairs = identify(model(law, (2, 8, 8)))
    assert complex_pairs.pairs == "directions" and complex_pairs.complete
    assert complex_pairs.apart == pytest.approx(6 * 32 * 32 / (128 * 127 / 2))
    real_pairs = identify(model(law, (1, 8, 8)))
    assert real_pairs.pairs == "directions" and real_pairs.complete
    assert real_pairs.apart == pytest.approx((16 * 32 + 16 * 16 + 16 * 32) / (64 * 63 / 2))


def test_errors_are_those_of_estimates():
    """400 data sets of a Gaussian signal: the spread of the estimated variance along each singular
    vector."""
    matrix, n, sets, sigma = some_matrix(4, 6), 300, 400, 0.5
    found = identify(model(fixed(matrix), (6,), n=n, sigma=sigma))
    _, s, vt = torch.linalg.svd(matrix[0].double(), full_matrices=False)
    x = math.sqrt(C) * torch.randn(sets, n, 6, generator=Rng.generator("x"), dtype=torch.float64)
    z = x @ vt.T + sigma / s * torch.randn(
        sets, n, 4, generator=Rng.generator("z"), dtype=torch.float64
    )
    estimates = z.square().mean(1) - sigma**2 / s**2
    assert torch.allclose(estimates.mean(0), torch.full((4,), C, dtype=torch.float64), rtol=0.1)
    assert torch.allclose(estimates.std(0) / C, found.errors[:4], rtol=0.12)


@pytest.mark.parametrize("rows", [2, 9])
def test_errors_of_operators_that_differ_are_the_information_bound(rows):
    """Against half the sum of (v^T A^T Cov[y]^-1 A v)^2, by dense algebra: the Fisher information
    of y ~ N(0, c A A^T + noise)."""
    n, d, sigma = 40, 5, 0.7

    def law(n, shape, rng):
        return Matrix(shape, torch.randn(n, rows, d, generator=rng))

    given = model(law, (d,), n=n, sigma=sigma)
    found = identify(given)
    A = given.draw(n, 0)[0].matrix.double()
    values, v = torch.linalg.eigh((A.mT @ A).mean(0))
    cov = C * A @ A.mT + sigma**2 * torch.eye(rows, dtype=torch.float64)
    shown = A @ v
    information = (shown * torch.linalg.solve(cov, shown)).sum(1).square().sum(0) / 2
    assert torch.allclose(found.eigenvalues, values.flip(0), rtol=1e-5)
    assert torch.allclose(found.errors, (information.rsqrt() / C).flip(0), rtol=1e-5)


def test_noise_of_all_kinds():
    for p in (
        model(identity, (6,), sigma=[0.1, 0.4]),
        model(identity, (6,), sigma=[0.1, 0.4], per="pixel"),
    ):
        found = identify(p)
        inverse = (1 / 0.01 - 1 / 0.16) / (
            2 * math.log(4)
        )  # the mean of 1/sigma^2 for log sigma uniform
        assert 1 / found.noise == pytest.approx(inverse, rel=0.1)
    found = identify(model(lambda n, s, r: random_mask(n, s, r, keep=0.5), (6,), sigma=0.0))
    assert found.noise == 0 and found.above_noise == 6
    assert torch.allclose(found.errors, (2 / (1000 * found.eigenvalues)).sqrt())
    heavy = identify(
        model(identity, (1, 8, 8), noise=laplace, x=torch.zeros(64, 1, 8, 8), scale=0.2)
    )
    assert heavy.noise == pytest.approx(2 * 0.04, rel=0.2)


def test_weak_directions_are_pooled_or_faint():
    """Singular values chosen so that one direction is told, one is learned from all alone, one is
    too faint and one is hidden."""
    matrix = torch.diag(torch.tensor([1.0, 0.1, 0.02, 1e-5]))[None]
    found = identify(model(fixed(matrix), (4,), n=5000, sigma=0.1))
    assert (found.above_noise, found.pooled, found.learned, found.faint, found.hidden) == (
        1,
        1,
        2,
        1,
        1,
    )
    assert "hides 1 of 4 directions" in warning(found)
    shown = identify(model(fixed(matrix[:, :3, :3]), (3,), n=5000, sigma=0.1))
    assert "1 of 3 directions too faintly" in warning(shown)
    # As many observations as it says are enough.
    wanted = 5000 * (float(shown.errors[-1]) / 0.5) ** 2
    assert (
        identify(model(fixed(matrix[:, :3, :3]), (3,), n=math.ceil(wanted), sigma=0.1)).faint == 0
    )


def test_an_operator_that_is_not_linear_is_looked_at_by_its_derivatives():
    x = torch.rand(64, 1, 4, 4, generator=Rng.generator("x")) * 1.8 - 0.9
    found = identify(model(gamma, (1, 4, 4), x=x))
    slopes = 2.2 * ((x.double() + 1) / 2) ** 1.2
    assert torch.allclose(
        found.eigenvalues, slopes.square().mean(0).flatten().sort(descending=True).values, rtol=1e-4
    )
    assert not found.linear and found.operators == 64
    assert "derivatives of the operator at 64 signals" in lines(found)[0]
    assert "is not looked at" in lines(found)[-1]
    seen = identify(model(gamma, (1, 4, 4), observed=True))
    assert not seen.linear and seen.eigenvalues.shape == (16,)


def test_an_operator_without_a_derivative_is_refused():
    jpeg = CATALOG.find("operators", "jpeg").load()
    with pytest.raises(Unsupported, match="no derivative"):
        identify(model(jpeg, (1, 8, 8)))


def test_the_estimate_of_large_signals_is_near_the_truth():
    law = lambda n, s, r: radon(n, s, r, angles=4)  # noqa: E731
    exact = identify(model(law, (1, 16, 16)))
    found = identify(model(law, (1, 16, 16)), most_entries=16)
    assert exact.exact and not found.exact
    assert float(found.eigenvalues[0]) == pytest.approx(float(exact.eigenvalues[0]), rel=0.05)
    assert float(found.eigenvalues.sum()) == pytest.approx(float(exact.eigenvalues.sum()), rel=0.15)
    assert abs(found.hidden - exact.hidden) < 0.1 * 256
    assert abs(found.learned - exact.learned) < 0.1 * 256
    assert "estimates" in lines(found)[1]


def test_the_bound_of_large_signals_is_a_bound():
    law = functools.partial(CATALOG.find("operators", "structured-projection").load(), share=0.5)
    exact = identify(model(law, (1, 8, 8), n=300))
    bound = identify(model(law, (1, 8, 8), n=300), most_entries=16)
    assert bool((bound.errors >= 0.98 * exact.errors).all())
    assert warning(bound) is None


@pytest.mark.parametrize("limit", [1024, 16])
@pytest.mark.parametrize("last", ["identity", "gaussian-blur"])
def test_what_the_first_operators_miss_is_looked_for_in_the_others(limit, last):
    """A pixel in fifty is seen: the hundred operators that are looked at closely do not show a
    tenth of them, the 3,000 of the run do."""
    after = CATALOG.find("operators", last).load()

    def law(n, shape, rng):
        return chain(
            random_mask(n, shape, rng, keep=0.02),
            after(n, shape, rng, **({} if last == "identity" else {"std": 0.5, "size": 3})),
        )

    found = identify(model(law, (1, 12, 12), n=3000), most_entries=limit)
    assert found.hidden == 0 and found.faint == 0 and warning(found) is None
    assert found.learned + found.unknown == 144
    assert float(found.eigenvalues.sum()) == pytest.approx(
        144 * 0.02, rel=0.5 if last == "identity" else 0.8
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "denoising.yaml",
            [
                "every operator is the same and shows all 64 directions (A^T A: 1)",
                "nothing is hidden",
            ],
        ),
        (
            "inpainting.yaml",
            [
                "operators differ",
                "show all 64 directions",
                "any two pixels are seen together",
                "nothing is hidden",
            ],
        ),
        (
            "blur.yaml",
            [
                "hides 4 of 64 directions, mostly the fine ones",
                "50 clean images of the recipe",
                "variance of each to 20 %",
            ],
        ),
    ],
)
def test_the_words_on_the_recipes(name, words):
    found = of_recipe(name)
    text = "\n".join(lines(found))
    for word in words:
        assert word in text
    assert warning(found) is None
    assert json.loads(json.dumps(describe(found), allow_nan=False))["directions"] == 64


def test_a_blur_without_clean_images_is_warned_of():
    found = of_recipe("blur.yaml", "clean=0", "phases.0.fit={objective: gaussian-moments}")
    assert "no number of observations" in warning(
        found
    ) and "grant clean images: `clean: 50`" in warning(found)
    assert "\n" not in warning(found)
    begun = identify(model(half_mask, (1, 6, 6), prior=True))
    assert warning(begun) is None and "what the recipe begins with" in lines(begun)[-1]
    few = identify(model(half_mask, (1, 6, 6), clean=10))
    assert warning(few) is None and "no more than 9 combinations of the 18" in lines(few)[-1]


def test_operators_that_came_with_the_observations_are_looked_at(tmp_path):
    mask = torch.ones(40, 1, 8, 8)
    mask[..., :3] = 0
    mask[:10, :, 0] = 0
    save_file({"y": mask.clone(), "A.mask": mask}, tmp_path / "y.safetensors")
    given = f"observations={{name: measurements, file: {tmp_path / 'y.safetensors'}, test: 0.5}}"
    found = of_recipe("inpainting.yaml", "data=null", given, "evaluate.metrics=[]")
    assert found.hidden == 24 and found.operators == 20
    assert sorted(set(found.eigenvalues.tolist())) == [0.0, 0.5, 1.0]
    assert "`prior:`" in warning(found) and not found.truth


def test_the_command():
    done = invem("identify", ROOT / "recipes" / "blur.yaml")
    assert done.stdout.startswith("every operator is the same and hides 4 of 64 directions")
    found = json.loads(
        invem("identify", ROOT / "recipes" / "blur.yaml", "operator.std=0.5", "--json").stdout
    )
    assert found["hidden"] == 0 and found["spectrum"][0][1] > found["spectrum"][-1][1] > 0
    assert invem("identify", ROOT / "recipes" / "none.yaml", code=2).stderr
    words = [
        ROOT / "recipes" / "blur.yaml",
        "operator=jpeg",
        "phases.1.sampler={name: dps, guidance: norm}",
    ]
    assert "no derivative" in invem("identify", *words, code=2).stderr


def test_a_plan_is_analysed_with_the_operators_of_its_run():
    """Blocks of 1,024, each with a stream of its own; signals and clean images as in the recipe."""
    loaded = recipe.load(ROOT / "recipes" / "inpainting.yaml", ["clean=7", "seed=3"])
    made = make(loaded, CATALOG)
    found = observation_model(made)
    assert found.block == 1024 and found.observations == made.train and found.clean == 7
    assert found.shape == made.shape and not found.prior and found.stored is None
    expected = made.model.draw(4, Rng.generator(3, "measure", "train", 1))[0]
    assert torch.equal(found.draw(4, 1)[0].mask, expected.mask)
    assert torch.equal(found.signals(5), made.data("train")[torch.arange(5)].x)
