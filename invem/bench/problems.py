"""The problems of `invem bench`: a prior, its measurements and, where the prior is in closed form,
the exact posterior."""

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from invem import config as recipes
from invem import store
from invem.batched import Rng, wide
from invem.cli.progress import follow
from invem.config import Catalog
from invem.denoiser import Denoiser, GaussianDenoiser, level
from invem.diffusion import generate
from invem.errors import DataError, RecipeError, suggest
from invem.linear import Mask, blur
from invem.measurement import Measurement
from invem.mixture import Mixture
from invem.operator import LinearOperator, Operator
from invem.planning.plan import make
from invem.running.run import Run, run
from invem.schedule import Karras

__all__ = [
    "DIGITS",
    "NAMES",
    "SUMMARIES",
    "Isotropic",
    "Posterior",
    "Problem",
    "Truth",
    "build",
    "finished",
    "of_run",
]

Truth = Literal["held-out", "prior"]

_LARGEST = 1024  # dimensions in which a dense posterior covariance is still quick


class Isotropic(Denoiser):
    """The exact denoiser of a mixture of Gaussians N(m_k, s^2 I) of one width s, by products of
    matrices.

    With r_k the posterior probabilities of the components and m = sum_k r_k m_k, x_hat = m +
    s^2/(s^2 + sigma^2) (x_t - m): thirty times as fast as `MixtureDenoiser`, which knows any
    covariances.
    """

    def __init__(self, prior: Mixture) -> None:
        super().__init__()
        self.prior = prior
        self.moments = prior.moments()
        self.var = float(prior.covs[0, 0, 0])

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        means, x = wide(self.prior.means.flatten(1)), wide(x_t.flatten(1))
        total = self.var + wide(level(sigma, x_t)).reshape(-1, 1) ** 2
        log_r = wide(self.prior.weights).log() + (x @ means.T - 0.5 * means.square().sum(1)) / total
        near = log_r.softmax(-1) @ means
        return (near + self.var / total * (x - near)).to(x_t.dtype).reshape(x_t.shape)

    def posterior(self, m: Measurement, rng: Rng) -> Tensor:
        return self.prior.posterior(m, rng)


@dataclass(frozen=True, eq=False)
class Posterior:
    """p(x | y) of N observations under a mixture of K Gaussians, linear A and Gaussian noise: a
    mixture again. Float64, on the CPU.

    Attributes:
        weights: The probabilities of the components given y, shape (N, K).
        means: Their means, flattened, shape (N, K, d).
        roots: The Cholesky factors of their covariances, shape (N, K, d, d).
        mean: E[x | y], shape (N, d).
        cov: Cov[x | y], shape (N, d, d).
    """

    weights: Tensor
    means: Tensor
    roots: Tensor
    mean: Tensor
    cov: Tensor

    @classmethod
    def of(cls, prior: Mixture, m: Measurement) -> "Posterior":
        """Conditions each component on y by dense algebra."""
        prior, m = prior.to("cpu", torch.float64), m.to("cpu", torch.float64)
        n, d, shape = len(m), math.prod(prior.shape), prior.shape
        basis = torch.eye(d, dtype=torch.float64).reshape(d, *shape).repeat(n, *[1] * len(shape))
        A = m[torch.arange(n).repeat_interleave(d)].A(basis).reshape(n, d, -1).mT[:, None]
        y, var = m.y.flatten(1)[:, None], m.noise.var().expand_as(m.y).flatten(1)
        mean, cov = prior.means.flatten(1), prior.covs
        total = A @ cov @ A.mT + torch.diag_embed(var)[:, None]
        gap = y - (A @ mean[..., None])[..., 0]
        chol = torch.linalg.cholesky(total)
        white = torch.linalg.solve_triangular(chol, gap[..., None], upper=False)[..., 0]
        log_w = (
            prior.weights.log()
            - 0.5 * white.square().sum(-1)
            - chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        )
        weights = log_w.softmax(-1)
        half = torch.linalg.solve_triangular(chol, A @ cov, upper=False)
        means = mean + (half.mT @ white[..., None])[..., 0]
        covs = cov - half.mT @ half
        whole = torch.einsum("nk,nki->ni", weights, means)
        off = means - whole[:, None]
        spread = torch.einsum("nk,nkij->nij", weights, covs) + torch.einsum(
            "nk,nki,nkj->nij", weights, off, off
        )
        return cls(weights, means, torch.linalg.cholesky(covs), whole, spread)

    def draw(self, k: int, rng: Rng) -> Tensor:
        """Draws k flattened signals for each observation, shape (N, k, d). rng: N k streams."""
        n, _, d = self.means.shape
        total = self.weights.cumsum(1)
        u = rng.uniform(1, dtype=torch.float64).reshape(n, k) * total[:, -1:]
        part = torch.searchsorted(total, u).clamp(max=total.shape[1] - 1)
        z = rng.normal(d, dtype=torch.float64).reshape(n, k, d)
        row = torch.arange(n)[:, None]
        return self.means[row, part] + torch.stack(
            [(r[p] @ e[..., None])[..., 0] for r, p, e in zip(self.roots, part, z, strict=True)]
        )


@dataclass(frozen=True, eq=False)
class Problem:
    """What samplers are compared on.

    Attributes:
        name: What it is called.
        definition: What it is, as text; the recipe of a run.
        denoiser: The prior.
        measure: (seed, split, n) -> n signals (n, *shape) and their measurements, for the split
            "test" or "validation".
        shape: The shape of one signal.
        range: The lowest and the highest value of a signal; of a prior in closed form, two standard
            deviations about its mean.
        truth: Whether the signals are "held-out" or drawn from the "prior".
        device: Where it is computed.
        prior: The prior in closed form, or None.
        limit: The most observations of one seed, or None.
        source: The run directory, or None.
    """

    name: str
    definition: str
    denoiser: Denoiser
    measure: Callable[[int, str, int], tuple[Tensor, Measurement]]
    shape: tuple[int, ...]
    range: tuple[float, float]
    truth: Truth
    device: str
    prior: Mixture | None = None
    limit: int | None = None
    source: str | None = None

    @property
    def digest(self) -> str:
        """Says which problem it is: two of one name with other definitions are not to be
        compared."""
        return hashlib.sha256(self.definition.encode()).hexdigest()[:16]

    @property
    def image(self) -> bool:
        """Whether signals are images that are large enough to look at."""
        return len(self.shape) == 3 and min(self.shape[1:]) >= 8

    def posterior(self, m: Measurement) -> Posterior | None:
        """Returns the exact posterior, where prior, operator and noise have one in closed form."""
        if (
            self.prior is None
            or not isinstance(m.A, LinearOperator)
            or "var" not in m.noise.provides
        ):
            return None
        return Posterior.of(self.prior, m) if bool((m.noise.var() > 0).all()) else None


# Priors in closed form.


@dataclass(frozen=True)
class _Closed:
    summary: str
    prior: Callable[[], Mixture]
    operator: Callable[[Catalog, int, tuple[int, ...], Generator], Operator]
    sigma: float


def _gaussian(*shape: int) -> Mixture:
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return Mixture(torch.ones(1), torch.zeros(1, *shape), 0.8 ** (i[:, None] - i).abs()[None])


def _grid(d: int) -> Mixture:
    """The 25 modes of MCG-diff (Cardoso et al. 2024, arXiv 2308.07983), all divided by 8: means (i,
    j, i, j, ...), i and j in -2..2."""
    pairs = torch.cartesian_prod(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0))
    return _isotropic(
        pairs.repeat(1, d // 2),
        0.125,
        -torch.rand(25, generator=Rng.generator("bench", "weights")).log(),
    )


def _curve() -> Mixture:
    """A random closed curve of three modes in 5 dimensions (as DiEM, arXiv 2405.13712), 200 narrow
    Gaussians along it."""
    t, k = 2 * math.pi * torch.arange(200)[:, None] / 200, torch.arange(1.0, 4.0)
    modes = (
        torch.randn(6, 5, generator=Rng.generator("bench", "curve")) / torch.cat([k, k])[:, None]
    )
    x = torch.cat([(k * t).cos(), (k * t).sin()], 1) @ modes
    return _isotropic(x / x.square().mean().sqrt(), 0.06, torch.ones(200))


def _isotropic(means: Tensor, std: float, weights: Tensor) -> Mixture:
    k, d = means.shape
    return Mixture(
        weights / weights.sum(), means, (std**2 * torch.eye(d)).expand(k, d, d).contiguous()
    )


def _mask(*kept: int) -> Callable[[Catalog, int, tuple[int, ...], Generator], Operator]:
    def law(_: Catalog, n: int, shape: tuple[int, ...], __: Generator) -> Operator:
        mask = torch.zeros(n, *shape)
        mask[:, list(kept)] = 1
        return Mask(shape, mask)

    return law


def _project(rows: int) -> Callable[[Catalog, int, tuple[int, ...], Generator], Operator]:
    def law(catalog: Catalog, n: int, shape: tuple[int, ...], rng: Generator) -> Operator:
        operator: Operator = catalog.find("operators", "random-projection").load()(
            n, shape, rng, measurements=rows
        )
        return operator

    return law


def _blur(_: Catalog, n: int, shape: tuple[int, ...], __: Generator) -> Operator:
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    return blur("gaussian-blur", shape, kernel.expand(n, 1, 5), "circular")


_AR = "8 dimensions, mean 0, C_ij = 0.8^|i-j|"
_MODES = "25 modes of width 0.125 at (i, j, i, j, ...), i and j in -2..2, of random weights, in"
_CLOSED = {
    "gaussian": _Closed(
        f"{_AR}; entries 0, 2, 3, 6 measured, noise 0.1",
        lambda: _gaussian(8),
        _mask(0, 2, 3, 6),
        0.1,
    ),
    "gaussian-loud": _Closed(
        f"{_AR}; entries 0, 2, 3, 6 measured, noise 0.5",
        lambda: _gaussian(8),
        _mask(0, 2, 3, 6),
        0.5,
    ),
    "gaussian-blur": _Closed(
        f"{_AR}; circular blur by (1 4 6 4 1)/16, noise 0.1", lambda: _gaussian(1, 1, 8), _blur, 0.1
    ),
    "mixture-2": _Closed(
        f"{_MODES} 2 dimensions; 1 random projection, noise 0.1", lambda: _grid(2), _project(1), 0.1
    ),
    "mixture-8": _Closed(
        f"{_MODES} 8 dimensions; 1 random projection, noise 0.1", lambda: _grid(8), _project(1), 0.1
    ),
    "mixture-8-mask": _Closed(
        f"{_MODES} 8 dimensions; entries 0, 4 measured, noise 0.1",
        lambda: _grid(8),
        _mask(0, 4),
        0.1,
    ),
    "mixture-80": _Closed(
        f"{_MODES} 80 dimensions; 4 random projections, noise 0.1",
        lambda: _grid(80),
        _project(4),
        0.1,
    ),
    "manifold": _Closed(
        "a closed curve in 5 dimensions, width 0.06; 2 random projections, noise 0.05",
        _curve,
        _project(2),
        0.05,
    ),
}


def _closed(name: str, catalog: Catalog, device: str) -> Problem:
    law = _CLOSED[name]
    prior = law.prior()
    moments, shape = prior.moments(), prior.shape
    moved = prior.to(device)
    denoiser = GaussianDenoiser(moved.moments()) if len(prior.weights) == 1 else Isotropic(moved)
    noises = catalog.find("noises", "gaussian").load()

    def measure(seed: int, split: str, n: int) -> tuple[Tensor, Measurement]:
        x = prior.sample(Rng.keyed(seed, "bench", split, "truth", items=range(n)))
        rng = Rng.generator(seed, "bench", split, "measure")
        A = law.operator(catalog, n, shape, rng)
        noise = noises(n, tuple(A(x).shape[1:]), rng, sigma=law.sigma)
        return x, Measurement(noise.sample(A(x), rng), A, noise).to(device)

    middle, width = (
        float(moments.mean.mean()),
        2 * float(moments.cov.dense().diagonal().mean().sqrt()),
    )
    span = (middle - width, middle + width)
    return Problem(
        name,
        f"{name}: {law.summary}",
        denoiser.eval(),
        measure,
        shape,
        span,
        "prior",
        device,
        prior,
    )


# Priors that are networks.

DIGITS = """\
# The prior of `invem bench digits`: 8×8 handwritten digits, learned from the clean images, a minute
# on two CPU cores.
seed: 0
data: digits
operator: {name: random-mask, keep: 0.4}
noise: {name: gaussian, sigma: 0.1}
network: {name: unet, channels: [32, 64]}
clean: all
phases:
  - name: clean
    fit: {objective: dsm, on: clean, steps: 800, batch: 128, lr: 2.0e-3, decay: cosine,
          ema: 0.99, moments: 40}
evaluate: {samples: 0, observations: 256, posterior: 0}
"""


def _digits(catalog: Catalog, device: str, truth: Truth) -> Problem:
    """Trains the prior once, into the user's cache, and benches that run from then on."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "invem" / "bench" / f"digits-{hashlib.sha256(DIGITS.encode()).hexdigest()[:12]}"
    source = folder.with_suffix(".yaml")
    if not source.exists():
        store.write_text(source, DIGITS)
    opened = Run(make(recipes.load(source, [f"compute.device={device}"]), catalog), folder)
    if not finished(opened):
        for _ in follow(run(opened.plan, folder)):
            pass
    return replace(of_run(opened, truth), name="digits", definition=DIGITS)


def finished(run: Run) -> bool:
    """Whether a run has the last prior of its recipe."""
    fits = [(p, stage) for p, stage in enumerate(run.plan.stages) if stage.objective is not None]
    p, _ = fits[-1] if fits else (0, run.plan.stages[0])
    return (run.out / f"{p}-{run.rounds(p) - 1:03d}-denoiser" / "denoiser.safetensors").exists()


def of_run(run: Run, truth: Truth = "held-out") -> Problem:
    """Returns the problem of a run: its newest prior, and its held-out observations.

    The last quarter of the held-out observations, in a random order, is kept for the tuning. The
    others are taken in turn: seed s has the s-th n of them, from the start again where they end.

    Args:
        run: A run with a finished prior.
        truth: "held-out" for the truth and the measurements that the run has stored; "prior" for
            signals drawn from the prior itself (256 steps of Heun's rule), measured by the same
            operators and noise, for which an exact sampler would be calibrated.

    Raises:
        RecipeError: If the run has no held-out observations, or no truth and it is wanted.
        DataError: If it has no finished prior.
    """
    denoiser, shape = run.last_denoiser(), run.plan.shape
    try:
        m = run.measurement("test", run.believed())
    except DataError:
        raise RecipeError(
            f"{run.out}: the run has no held-out observations; begin one with"
            " evaluate.observations=64"
        ) from None
    files = sorted((run.out / "truth").glob("[0-9]*.safetensors"))
    if truth == "held-out" and not files:
        raise RecipeError(f"{run.out}: the run has no truth to compare with; add --truth prior")
    x = torch.cat([store.read(file)["x"] for file in files]) if files else torch.empty(0)
    if len(m) < 2:
        raise RecipeError(
            f"{run.out}: at least 2 held-out observations are needed, and the run has {len(m)}"
        )
    order = torch.randperm(len(m), generator=Rng.generator("bench", "order"))
    kept = len(m) - max(1, len(m) // 4)
    splits = {"test": order[:kept], "validation": order[kept:]}
    prior = None
    if isinstance(denoiser, GaussianDenoiser) and math.prod(shape) <= _LARGEST:
        moments = denoiser.known_moments().to("cpu")
        prior = Mixture(torch.ones(1), moments.mean[None], wide(moments.cov.dense())[None])

    def measure(seed: int, split: str, n: int) -> tuple[Tensor, Measurement]:
        rows = splits[split][(torch.arange(n) + seed * n) % len(splits[split])]
        mine = m[rows]
        if truth == "held-out":
            return x[rows], mine.to(run.device)
        rng = Rng.keyed(seed, "bench", split, "truth", items=range(n))
        like = torch.empty(0, device=run.device)
        drawn = (
            prior.sample(rng)
            if prior is not None
            else generate(denoiser, Karras().grid(256), rng, shape, like).cpu()
        )
        y = mine.noise.sample(mine.A(drawn), Rng.generator(seed, "bench", split, "measure"))
        return drawn, replace(mine, y=y).to(run.device)

    about: dict[str, Any] = store.read_json(run.out / "run.json")
    low, high = run.plan.facts.range
    limit = kept if truth == "held-out" else None
    device, source = str(run.device), str(run.out)
    return Problem(
        about["name"],
        about["recipe"],
        denoiser,
        measure,
        shape,
        (low, high),
        truth,
        device,
        prior,
        limit,
        source,
    )


SUMMARIES = {name: law.summary for name, law in _CLOSED.items()} | {
    "digits": (
        "8×8 handwritten digits, a small U-Net trained once on clean images; 60 % of the pixels"
        " hidden, noise 0.1"
    )
}
NAMES = tuple(SUMMARIES)


def build(name: str, catalog: Catalog, truth: Truth = "held-out", device: str = "auto") -> Problem:
    """Returns a built-in problem.

    Args:
        name: One of `NAMES`.
        catalog: Where operators and noises are found.
        truth: Of "digits" only; a prior in closed form is where the signals of the others come
            from.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        RecipeError: If there is no such problem, or no such device.
    """
    if name not in NAMES:
        raise RecipeError(
            f"there is no problem, recipe or run '{name}'{suggest(name, NAMES)} (known problems:"
            f" {', '.join(NAMES)})"
        )
    device = _device(device)
    return _digits(catalog, device, truth) if name == "digits" else _closed(name, catalog, device)


def _device(device: str) -> str:
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there.get(device, False):
        raise RecipeError(f"--device: '{device}' is not available on this machine; use cpu or auto")
    return device
