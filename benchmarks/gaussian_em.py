"""EM on a Gaussian prior in 8 dimensions, half of the entries hidden, noise 0.1, 40 rounds: what
each E-step does to the covariance.

Writes the smallest and the largest eigenvalue of the learned covariance relative to the true one to
docs/results/gaussian-em.json. About 4 minutes on one core.
"""

from pathlib import Path

import results
import torch
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.operators.random_mask import random_mask
from invem_plugins.samplers.mmps import MMPS

from invem import Gaussian, Measurement, Prior, Rng

D, N, ROUNDS, SHOWN = 8, 8192, 40, (1, 5, 10, 20, 40)


def main() -> None:
    torch.set_num_threads(1)
    i = torch.arange(D, dtype=torch.float64)
    true = 0.8 ** (i[:, None] - i).abs()
    x = Gaussian.full(torch.linspace(-1, 2, D), true).sample(Rng.keyed("x", items=range(N)))
    A = random_mask(N, (D,), Rng.generator("A"), keep=0.5)
    noise = gaussian(N, (D,), Rng.generator("noise"), sigma=0.1)
    m = Measurement(noise.sample(A(x), Rng.generator("y")), A, noise)
    settings = [
        ("corrected", 24),
        ("corrected", 8),
        ("heun", 24),
        ("ancestral", 24),
        ("ancestral", 64),
    ]
    samplers = {
        f"mmps, {name}, {steps} steps": MMPS(stepping=name, steps=steps) for name, steps in settings
    }
    rows = []
    for label, sampler in {"exact posterior": None, **samplers}.items():
        prior, found = Gaussian.standard((D,)), {}
        for r in range(ROUNDS):
            rng = Rng.keyed("e-step", r, items=range(N))
            draws = prior.posterior(m, rng) if sampler is None else sampler(Prior.of(prior), m, rng)
            prior = Gaussian.fit(draws, D)
            values = torch.linalg.eigvals(torch.linalg.solve(true, prior.cov.dense().double())).real
            if r + 1 in SHOWN:
                found[r + 1] = [round(float(values.min()), 3), round(float(values.max()), 3)]
        rows.append(
            {"e-step": label, "forwards": sampler.cost[0] if sampler else 0, "eigenvalues": found}
        )
        print(rows[-1], flush=True)
    path = Path(__file__).parent.parent / "docs" / "results" / "gaussian-em.json"
    results.write(path, {"torch": torch.__version__, "observations": N, "rows": rows})


if __name__ == "__main__":
    main()
