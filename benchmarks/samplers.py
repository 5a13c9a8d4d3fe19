"""The time of each posterior sampler over that of the network evaluations that it makes, and
azula's and deepinv's, in one process.

    OMP_NUM_THREADS=1 python benchmarks/samplers.py --json docs/results/samplers.json
    python benchmarks/samplers.py --from docs/results/samplers.json

Random inpainting of 16×16 images, a U-Net of 0.54 million parameters with frozen weights, as an
E-step has it. A sampler runs once with a network that writes down what is asked of it: the rows of
each call, whether a graph was recorded, and the products with its Jacobian. The bare time is that
of the same calls on fixed numbers and nothing else: a call without a graph, or, where products
follow, one with a graph, which costs more, and the products. Sampler, bare calls and peers take
turns; a ratio is the median over turns of the ratios of one turn, with quartiles. With one thread
the processor's time is the wall time of a free core: the table has the former, the JSON both.
Levels are few, so that a run takes seconds; what is compared is the cost of a level.

The C library may give the memory of a graph back to the system and ask for it anew at each level,
which costs up to a quarter of the time, and when it does depends on what the process did before. It
is told to keep what it has; "as it comes" is a few samplers before that.

deepinv's DDRM knows one mask for a batch and is given one. Peers that do not import are left out.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import results
import torch
from invem_plugins.networks.unet import UNet
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.operators.random_mask import random_mask
from torch import Tensor, nn

from invem import Denoiser, Gaussian, Mask, Measurement, Preconditioned, Prior, Rng
from invem.config import Catalog
from invem.running.context import keep_memory

SHAPE = (1, 16, 16)
NOISE = 0.05
ANCESTRAL = {"steps": 8, "covariance": "jacobian", "stepping": "ancestral"}

# What is timed: a label, the sampler, its options, and the peers that do the same.
NAMED: list[tuple[str, str, dict[str, Any], tuple[str, ...]]] = [
    ("mmps, its defaults", "mmps", {"steps": 10}, ()),
    (
        "mmps, Heun, GMRES(1)",
        "mmps",
        ANCESTRAL | {"stepping": "heun", "steps": 6, "iterations": 1},
        (),
    ),
    ("mmps, Heun, GMRES(3)", "mmps", ANCESTRAL | {"stepping": "heun", "steps": 4}, ()),
    (
        "mmps, ancestral, GMRES(1)",
        "mmps",
        ANCESTRAL | {"steps": 12, "iterations": 1},
        ("azula mmps 1",),
    ),
    ("mmps, ancestral, GMRES(3)", "mmps", ANCESTRAL, ("azula mmps 3",)),
    (
        "mmps, ancestral, CG(3)",
        "mmps",
        ANCESTRAL | {"steps": 6, "solver": "cg"},
        ("deepinv mmps 3",),
    ),
    ("dps", "dps", {"steps": 12}, ("azula dps", "deepinv dps")),
    ("pigdm", "pigdm", {"steps": 12, "stepping": "ancestral"}, ("deepinv pigdm",)),
    ("tmpd", "tmpd", {"steps": 8, "stepping": "ancestral"}, ("azula tmpd",)),
    ("ddrm", "ddrm", {"steps": 16}, ("deepinv ddrm",)),
    ("diffpir", "diffpir", {"steps": 16}, ("azula diffpir", "deepinv diffpir")),
]
# Those of the other samplers of the catalogue; one that is not here either takes 12 steps.
OPTIONS: dict[str, dict[str, Any]] = {
    "daps": {"steps": 5, "flow": 3, "inner": 20},
    "langevin": {"steps": 6, "inner": 2},
    "lgd": {"steps": 9},
    "daps-mm": {"steps": 8},
    "matched-gibbs": {"sweeps": 3, "warm": 6},
    "mcg-diff": {"steps": 5, "particles": 3},
    "prior": {"steps": 8},
    "sitcom": {"steps": 2, "inner": 4},
    "split-gibbs": {"sweeps": 3, "levels": 2},
    "twisted-smc": {"steps": 4, "particles": 3},
}
# Those that are also timed in a process as it comes, and compiled.
SOME = ("mmps, ancestral, GMRES(1)", "dps")


@dataclasses.dataclass
class Call:
    """One call of the network: its rows, whether a graph was recorded, and the products taken with
    its Jacobian."""

    rows: int
    graph: bool
    products: int = 0


class Seen(torch.autograd.Function):
    """The identity, which counts the times that a gradient comes back through it."""

    @staticmethod
    def forward(x: Tensor, call: Call) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.call = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        ctx.call.products += 1
        return g, None


class Recorded(Denoiser):
    """A denoiser that writes down its calls."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner
        self.calls: list[Call] = []

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        self.calls.append(Call(len(x_t), torch.is_grad_enabled() and x_t.requires_grad))
        seen = Seen.apply(x_t, self.calls[-1])  # type: ignore[no-untyped-call]
        out: Tensor = self.inner(seen, sigma)
        return out


def network() -> Prior:
    torch.manual_seed(0)
    net = Preconditioned(UNet(SHAPE, channels=[32, 64]), 0.5).eval()
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.05)
    x = torch.randn(500, *SHAPE).cumsum(-1).cumsum(-2) / 16
    moments = Gaussian.fit(x - x.mean(), 64)
    net.mean = moments.mean
    return Prior(net.requires_grad_(False), moments)


def problem(batch: int) -> Measurement:
    A = random_mask(batch, SHAPE, torch.Generator().manual_seed(0))
    noise = gaussian(batch, SHAPE, torch.Generator(), sigma=NOISE)
    x = (
        torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(1)).cumsum(-1).cumsum(-2)
        / 16
    )
    return Measurement(noise.sample(A(x), torch.Generator().manual_seed(2)), A, noise)


def samplers(m: Measurement, prior: Prior) -> list[tuple[str, Any, tuple[str, ...]]]:
    """What `NAMED` names, and whatever else of the catalogue fits inpainting with Gaussian
    noise."""
    catalog = Catalog.load()
    named = [
        (label, catalog.find("samplers", name).load()(**options), peers)
        for label, name, options, peers in NAMED
    ]
    for name in sorted(set(catalog.offers["samplers"]) - {name for _, name, _, _ in NAMED}):
        kind: Any = catalog.find("samplers", name).load()
        known = {field.name for field in dataclasses.fields(kind)}
        sampler = kind(**OPTIONS.get(name, {"steps": 12} if "steps" in known else {}))
        if sampler.needs <= m.provides | prior.provides:
            named.append((name, sampler, ()))
    return named


def _mask(m: Measurement) -> Tensor:
    assert isinstance(m.A, Mask)
    return m.A.mask


def azula(what: str, net: Any, m: Measurement, sampler: Any) -> Callable[[], Any]:
    """One draw by azula's sampler on our levels, down to zero."""
    from azula.denoise import Denoiser as Base
    from azula.denoise import DiracPosterior
    from azula.guidance.diffpir import DiffPIRDenoiser
    from azula.guidance.dps import DPSSampler
    from azula.guidance.mmps import MMPSDenoiser
    from azula.guidance.tmpd import TMPDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.sample import DDIMSampler, DDPMSampler

    class Theirs(Base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = lambda t: (torch.ones_like(t), t)

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> DiracPosterior:
            return DiracPosterior(net(x_t.reshape(-1, *SHAPE), t).reshape(x_t.shape))

    sigmas = sampler.schedule.grid(sampler.steps)
    levels = torch.cat([sigmas, torch.zeros(1)]).float()
    den, mask, y = Theirs(), _mask(m).flatten(1), m.y.flatten(1)
    flat = {"x": torch.randn_like(y) * levels[0], "A": lambda x: mask * x}
    name, _, iterations = what.partition(" ")
    if name == "mmps":
        guided, kind = (
            MMPSDenoiser(
                den, y, flat["A"], IsotropicCovariance(NOISE**2), "gmres", int(iterations)
            ),
            DDPMSampler,
        )
    elif name == "tmpd":
        guided, kind = TMPDenoiser(den, y, flat["A"], NOISE**2), DDPMSampler
    elif name == "diffpir":
        guided, kind = DiffPIRDenoiser(den, y, flat["A"], NOISE**2), DDIMSampler
    else:
        guided, kind = den, DPSSampler
    stepped = type(kind.__name__, (kind,), {"timesteps": property(lambda self: levels)})
    run = (
        stepped(guided, y, flat["A"], silent=True)
        if name == "dps"
        else stepped(guided, silent=True)
    )
    return lambda: run(flat["x"])


def deepinv(what: str, net: Any, m: Measurement, sampler: Any) -> Callable[[], Any]:
    """One draw by deepinv's sampler with as many calls of the network."""
    import deepinv as library
    from deepinv.sampling import DDPMSolver, PosteriorDiffusion, VarianceExplodingDiffusion
    from deepinv.sampling.noisy_datafidelity import MomentMatchingDataFidelity, PiGDMDataFidelity

    noise = library.physics.GaussianNoise(NOISE)
    mask = _mask(m)[:1] if what == "ddrm" else _mask(m)
    physics = library.physics.Inpainting(SHAPE, mask=mask, noise_model=noise)
    sigmas = sampler.schedule.grid(sampler.steps)
    if what == "ddrm":
        model = library.sampling.DDRM(net, sigmas=sigmas.numpy())
        return lambda: model(m.y.clone(), physics)
    if what == "diffpir":
        model = library.sampling.DiffPIR(
            net, library.optim.data_fidelity.L2(), max_iter=sampler.steps
        )
        return lambda: model(m.y, physics)
    if what == "dps":
        model = library.sampling.DPS(net, num_steps=sampler.steps + 1, minus_one_one=False)
        return lambda: model(m.y, physics)
    name, _, iterations = what.partition(" ")
    fidelity = (
        MomentMatchingDataFidelity(net, cg_max_iter=int(iterations))
        if name == "mmps"
        else PiGDMDataFidelity(net)
    )
    sde = VarianceExplodingDiffusion(sigma_min=float(sigmas[-1]), sigma_max=float(sigmas[0]))
    solver = DDPMSolver(timesteps=torch.linspace(1, 0, sampler.steps + 1, dtype=torch.float64))
    model = PosteriorDiffusion(fidelity, net, sde, solver, minus_one_one=False)
    return lambda: model(m.y, physics, denoise_output=False)


def bare(net: Denoiser, calls: list[Call], numbers: Tensor) -> Callable[[], None]:
    """The calls of the network and the products that a sampler makes, on fixed numbers."""

    def run() -> None:
        for call in calls:
            x = numbers[: call.rows].detach()
            if not call.graph:
                with torch.no_grad():
                    net(x, 1.0)
                continue
            with torch.enable_grad():
                out = net(x.requires_grad_(), 1.0)
            for k in range(call.products):
                torch.autograd.grad(
                    out, x, numbers[: call.rows], retain_graph=k + 1 < call.products
                )

    return run


def once(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of one call, on the wall and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def ratio(
    a: list[tuple[float, float]], b: list[tuple[float, float]], which: int = 0
) -> list[float]:
    """The quartiles of a/b, turn by turn, of the time on the wall (0) or of the processor (1)."""
    return [
        round(q, 3)
        for q in statistics.quantiles([x[which] / y[which] for x, y in zip(a, b, strict=True)], n=4)
    ]


def _of_peer(
    build: Callable[..., Callable[[], Any]], what: str, m: Measurement, sampler: Any, net: Any
) -> Callable[[], Any]:
    return build(what, net, m, sampler)


def measure(
    label: str, sampler: Any, peers: tuple[str, ...], prior: Prior, batch: int, turns: int
) -> list[dict[str, Any]]:
    """The rows of one sampler and of its peers at one batch size."""
    m = problem(batch)
    rng = Rng.keyed("benchmark", items=range(batch))
    makers: dict[str, Callable[[Any], Callable[[], Any]]] = {
        "invem": lambda d: lambda: sampler(dataclasses.replace(prior, denoiser=d), m, rng[:])
    }
    for peer in peers:
        library, _, what = peer.partition(" ")
        build = azula if library == "azula" else deepinv
        makers[library] = partial(_of_peer, build, what, m, sampler)
    runs, calls = {}, {}
    for who, make in list(makers.items()):
        recorded = Recorded(prior.denoiser)
        try:
            make(recorded)()
        except (ImportError, RuntimeError) as error:
            if who == "invem":
                raise
            print(f"{label}: {who} is left out: {error}", flush=True)
            continue
        calls[who] = recorded.calls
        runs[who] = make(prior.denoiser)
    numbers = torch.randn(max(call.rows for found in calls.values() for call in found), *SHAPE)
    timed = {
        (who, part): call
        for who in runs
        for part, call in (("run", runs[who]), ("bare", bare(prior.denoiser, calls[who], numbers)))
    }
    spent: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in timed}
    for call in timed.values():
        call()
    for turn in range(turns):
        for key in list(timed) if turn % 2 else reversed(timed):
            spent[key].append(once(timed[key]))
    rows = []
    for who in runs:
        run, alone = spent[who, "run"], spent[who, "bare"]
        row: dict[str, Any] = {"sampler": label, "library": who, "batch": batch}
        row["forwards"] = sum(call.rows for call in calls[who]) / batch
        row["products"] = sum(call.rows * call.products for call in calls[who]) / batch
        row["milliseconds"] = round(1e3 * statistics.median(cpu for _, cpu in run), 1)
        row |= {"over bare": ratio(run, alone, 1), "wall over bare": ratio(run, alone)}
        if who == "invem":
            row["planned"] = list(sampler.cost)
        else:
            ours = spent["invem", "run"]
            row |= {"over invem": ratio(run, ours, 1), "wall over invem": ratio(run, ours)}
        rows.append(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return rows


def compiled(net: Denoiser) -> str:
    """Compiles the backbone; returns why not, or nothing."""
    import torch._functorch.config as config

    # A compiled graph gives its buffers away at the first product, unless told that more will
    # follow.
    config.donated_buffer = False
    begun = time.perf_counter()
    try:
        assert isinstance(net, Preconditioned)
        net.backbone.compile(dynamic=False)
        x = torch.randn(32, *SHAPE)
        bare(net, [Call(32, False), Call(32, True, 2)], x)()
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    took = time.perf_counter() - begun
    return "" if took < 120 else f"compilation took {took:.0f} s"


def cell(row: dict[str, Any] | None, what: str) -> str:
    if not row or what not in row:
        return ""
    low, median, high = row[what]
    return f"{median:.2f} ({low:.2f}–{high:.2f})"


def table(found: dict[str, Any]) -> str:
    """The Markdown table."""
    kept = {
        (row["sampler"], row["library"], row["batch"], row["how"]): row for row in found["rows"]
    }
    cases = sorted(
        {(row["batch"], row["how"]) for row in found["rows"]}, key=lambda case: (case[1], case[0])
    )
    names = [f"batch {batch}{', ' + how if how else ''}" for batch, how in cases]
    over = [(name, case) for name, case in zip(names, cases, strict=True) if not case[1]]
    head = [
        "sampler",
        "",
        "forwards + products",
        *(f"over bare, {name}" for name in names),
        *(f"over invem, {name}" for name, _ in over),
    ]
    lines = ["| " + " | ".join(head) + " |", "|---|---|---:|" + "---:|" * (len(head) - 3)]
    for label, who in dict.fromkeys(
        (row["sampler"], row["library"]) for row in found["rows"] if not row["how"]
    ):
        some = next(
            row for row in found["rows"] if (row["sampler"], row["library"]) == (label, who)
        )
        cells = [
            label if who == "invem" else "",
            who,
            f"{some['forwards']:g} + {some['products']:g}",
        ]
        cells += [cell(kept.get((label, who, *case)), "over bare") for case in cases]
        cells += [cell(kept.get((label, who, *case)), "over invem") for _, case in over]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--from", dest="kept", type=Path, help="Print the table of an earlier JSON."
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="Sizes.")
    parser.add_argument("--turns", type=int, default=3, help="Twice as many at a batch of one.")
    parser.add_argument("--only", nargs="+", help="Labels that begin so.")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.kept:
        print(table(json.loads(options.kept.read_text("utf-8"))))
        return
    torch.set_num_threads(1)
    prior, begun = network(), time.perf_counter()
    rows: list[dict[str, Any]] = []
    chosen = [
        case
        for case in samplers(problem(2), prior)
        if not options.only or case[0].startswith(tuple(options.only))
    ]

    def add(cases: list[Any], batch: int, how: str) -> None:
        turns = max(2, options.turns) * (2 if batch == 1 else 1)
        rows.extend(
            {**row, "how": how}
            for label, sampler, peers in cases
            for row in measure(label, sampler, peers, prior, batch, turns)
        )

    some = [case for case in chosen if case[0] in SOME]
    large = max(options.batches)
    add(some, large, "as it comes")
    kept = keep_memory()
    for batch in options.batches:
        add(chosen, batch, "")
    started = time.perf_counter()
    why = "not asked for" if options.no_compile else compiled(prior.denoiser)
    compilation = round(time.perf_counter() - started)
    if not why:
        add([(label, sampler, ()) for label, sampler, _ in some], large, "compiled")
    wanted = ("azula", "deepinv", "invem", "torch")
    found = {
        "versions": {
            d.metadata["name"]: d.version
            for d in metadata.distributions()
            if d.metadata["name"] in wanted
        },
        "threads": 1,
        "machine": platform.processor() or platform.machine(),
        "parameters": sum(weight.numel() for weight in prior.denoiser.parameters()),
        "memory kept": "yes" if kept else "left out: the C library has no mallopt",
        "compiled": why or f"yes, in {compilation} s",
        "seconds": round(time.perf_counter() - begun),
        "rows": rows,
    }
    if options.json:
        results.write(options.json, found)
    print(table(found))


if __name__ == "__main__":
    main()
