"""The bias of the default path under photon noise, on problems whose true posterior is known.

    python benchmarks/poisson.py [--out docs/results/poisson.json]

Methods for Gaussian noise are given a variance that was estimated from y (`NoiseModel.given`). Two
posteriors are compared, both by quadrature on a grid of one unknown number: under the law of
Poisson itself, and under the Gaussian with the variance that was estimated. What differs is the
bias of the approximation, without the error of any sampler or prior. Signals are

- "entry": one number of a mixture of two Gaussians. Its variance comes from its own count;
- "image": a bright spot of unknown height on a dim ground, 16x16. Variances come from windows.

Told for each peak: the mean of the error of the posterior mean and its root mean square, in true
posterior standard deviations, and the ratio of the standard deviations.
"""

import argparse
from pathlib import Path

import torch
from invem_plugins.noises.poisson import poisson
from invem_plugins.noises.poisson_gaussian import poisson_gaussian
from results import write
from torch import Tensor

from invem import NoiseModel, Rng

PEAKS = (5.0, 20.0, 100.0)
COUNT = 1000  # observations of a problem
GRID = 1501


def problem(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns signals on a grid, (G, 1, H, W) or (G, 1), and log weights of the prior, (G,)."""
    u = torch.linspace(-0.99, 1, GRID, dtype=torch.float64)
    if name == "entry":
        density = 0.6 * torch.exp(-0.5 * ((u + 0.4) / 0.25) ** 2) / 0.25
        density += 0.4 * torch.exp(-0.5 * ((u - 0.4) / 0.2) ** 2) / 0.2
        return u[:, None], density.log(), u
    at = torch.linspace(-1, 1, 16, dtype=torch.float64)
    spot = torch.exp(-(at[:, None] ** 2 + at[None] ** 2) / 0.3)
    x = -0.8 + 0.5 * (u[:, None, None, None] + 1) * spot
    return x, -0.5 * (u / 0.5) ** 2, u


def posteriors(noise: NoiseModel, y: Tensor, x: Tensor, prior: Tensor) -> list[Tensor]:
    """Returns the weights of the grid under the true law and under the Gaussian, each (n, G)."""
    found = []
    var = noise.given(y).var()
    for k in range(len(y)):
        rows = torch.full((len(x),), k)
        true = noise[rows].log_prob(y[rows], x)
        near = -0.5 * ((y[k] - x).square() / var[k]).flatten(1).sum(1)
        found.append(torch.stack([torch.softmax(each + prior, 0) for each in (true, near)]))
    return list(torch.stack(found, 1))


def bias(name: str, peak: float, sigma: float = 0.0, n: int = COUNT) -> dict[str, float]:
    """Returns the bias of n observations of a problem.

    Args:
        name: "entry" or "image".
        peak: Photons of a value of 1.
        sigma: The standard deviation of read-out noise, in units of the data; 0 is none.
        n: How many.
    """
    x, prior, u = problem(name)
    rng, shape = Rng.generator("poisson", name), tuple(x.shape[1:])
    rows = torch.multinomial(prior.exp(), n, replacement=True, generator=rng)
    drawn = (
        poisson_gaussian(n, shape, rng, peak=peak, sigma=sigma)
        if sigma
        else poisson(n, shape, rng, peak=peak)
    )
    noise = drawn.to(dtype=torch.float64)
    true, near = posteriors(noise, noise.sample(x[rows], rng), x, prior)
    mean, other = true @ u, near @ u
    std, wide = (
        ((weights @ u.square()) - centre.square()).clamp(min=1e-12).sqrt()
        for weights, centre in ((true, mean), (near, other))
    )
    error = (other - mean) / std
    return {
        "bias": round(float(error.mean()), 4),
        "rms": round(float(error.square().mean().sqrt()), 4),
        "std": round(float((wide / std).mean()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The bias of the variance of photon noise.")
    parser.add_argument("--out", type=Path, default=Path("docs/results/poisson.json"))
    rows = [
        {"signals": name, "peak": peak, "sigma": sigma, **bias(name, peak, sigma)}
        for name in ("entry", "image")
        for sigma in (0.0, 0.1)
        for peak in PEAKS
    ]
    for row in rows:
        print(row)
    write(parser.parse_args().out, {"observations": COUNT, "rows": rows})


if __name__ == "__main__":
    main()
