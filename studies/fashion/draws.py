"""What the posterior draws of a run have and lack beside the true signals: where a prior that was
learned from them loses.

    python studies/fashion/draws.py RUN LABEL [--json docs/results/draws.json]

For a run on one of the study's tasks (docs/benchmarks.md): the draws that each phase with a sampler
learned from, exact draws under each prior in closed form that followed the first phase, and
unconditional samples of the last prior if that is a network. Of each: the Fréchet distance to the
test images in the features of the study, the total variance of those features over that of the test
images, the power in bands of spatial frequency over that of the true signals of the same
observations, and how much the energy above 0.3 cycles a pixel differs from image to image (standard
deviation over mean) over the same of the true signals. The rows are added to the file under the
label.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from invem_plugins.metrics.frechet import Frechet
from torch import Tensor

from invem import Outcome
from invem.door import open as open_run
from invem.running.evaluate import unconditional
from invem.running.loop import rounds_of
from invem.running.measure import believed
from invem.storage.directory import Round

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import results as files

BANDS = ((0.0, 0.2), (0.2, 0.3), (0.3, 0.45), (0.45, 0.71))


def spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cosine transform of images around their mean, (N, H, W), and the frequency of
    each entry in cycles per pixel, (H, W)."""
    y = (x - x.mean(0)).double().squeeze(1)
    k = torch.arange(y.shape[-1], dtype=torch.float64)
    basis = torch.cos(math.pi * (k + 0.5) * k[:, None] / len(k)) * (2 / len(k)) ** 0.5
    basis[0] /= 2**0.5
    return basis @ y @ basis.T, (k[:, None] ** 2 + k**2).sqrt() / (2 * len(k))


def described(
    x: Tensor,
    truth: Tensor,
    reference: Tensor,
    metric: Frechet,
    state: dict[str, Tensor],
    range_: tuple[float, float],
) -> dict[str, Any]:
    """Returns the row of a set of signals."""
    find = metric.feature_map(range_, state)
    ours, theirs = (find(part).double() for part in (x, reference))
    (mine, place), (known, _) = spectrum(x), spectrum(truth)
    bands = [(place >= low) & (place < high) for low, high in BANDS]
    power = [
        float(mine.square().mean(0)[band].sum() / known.square().mean(0)[band].sum())
        for band in bands
    ]
    fine = [(z.square() * (place > 0.3)).sum((1, 2)) for z in (mine, known)]
    differ = [float(e.std() / e.mean()) for e in fine]
    return {
        "frechet": float(metric(Outcome(range_, samples=x, reference=reference), state)),
        "variance": float(ours.var(0).sum() / theirs.var(0).sum()),
        "power": power,
        "differ": differ[0] / differ[1],
    }


@torch.no_grad()
def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name and the row of each set of signals of a finished run."""
    run = open_run(path)
    metric, data = Frechet(features="classifier"), run.plan.data("test")
    reference = data[torch.arange(min(len(data), 10_000))].x
    data = run.plan.data("train")
    index = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:8192]
    state = metric.prepare(data[index])
    truth = data[torch.arange(run.plan.train)].x
    low, high = run.plan.facts.range

    def row(x: Tensor) -> dict[str, Any]:
        return described(x, truth, reference, metric, state, (low, high))

    m = run.context.observations("train").at(believed(run.context, Round(0, 0)))
    yield "true signals", row(truth)
    for p, stage in enumerate(run.plan.stages):
        name = stage.phase.name
        if stage.sampler is not None:
            yield f"{name}, draws", row(run.draws(p, 0)[:: stage.phase.draws])
        prior = run.prior_at(p, rounds_of(run.context, p) - 1)
        if p and prior.exact is not None:
            parts = [
                prior.exact.posterior(m[i], run.context.rng("draws", p, items=i.tolist()))
                for i in torch.arange(len(m)).split(512)
            ]
            yield f"{name}, exact", row(torch.cat(parts))
    if prior.exact is None:
        yield "samples", row(unconditional(run.context, prior, run.plan.train, "generate", 0, 0))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("label")
    parser.add_argument("--json", type=Path, default=Path("docs/results/draws.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(options.json.read_text("utf-8")) if options.json.exists() else {}
    kept[options.label] = {}
    for name, row in rows(options.run):
        kept[options.label][name] = row
        shares = " ".join(f"{share:.2f}" for share in row["power"])
        print(
            f"{name:24} {row['frechet']:.5f} {row['variance']:.3f} {row['differ']:.2f} {shares}",
            flush=True,
        )
    files.write(options.json, kept)


if __name__ == "__main__":
    main()
