"""`invem plugin new`: a small distribution that is complete, whose tests pass as they are."""

import re
from pathlib import Path

from invem.errors import RecipeError

__all__ = ["KINDS", "write"]

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{dist}"
version = "0.1.0"
description = "{title} for invem."
requires-python = ">=3.11"
dependencies = ["invem"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points.invem]
{name} = "{module}"

[tool.setuptools]
py-modules = ["{module}"]
"""

_README = """\
# {dist}

{title} for invem, under the name `{name}`.

```
pip install -e '.[test]'
pytest
invem info {name}
```
"""

_TEST = """\
from invem.testing import contracts

from {module} import {factory}

test_{factory_lower} = contracts("{kind}", {factory})
"""

_HOOK = """\


@hookimpl
def invem_{kind}():
    return {{"{name}": {factory}}}
"""

_BODIES = {
    "operator": (
        '''\
"""{title}: change `Device` and its law into your device."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from invem import LinearOperator, hookimpl


@dataclass(frozen=True, eq=False)
class Device(LinearOperator):
    """A x = gain * x, with a gain for each pixel of each observation.

    Attributes:
        gain: Shape (B, *shape).
    """

    gain: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.gain * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.gain * y


def {function}(n: int, shape: tuple[int, ...], rng: Generator, *, spread: float = 0.2) -> Device:
    """Measures each pixel with a gain of its own.

    Args:
        n: The number of observations.
        shape: The shape of one signal.
        rng: The source of the gains.
        spread: The standard deviation of the gain, whose mean is one.
    """
    return Device(shape, 1 + spread * torch.randn(n, *shape, generator=rng))
'''
    ),
    "noise": (
        '''\
"""{title}: change `Law` into the noise of your device."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from invem import NoiseModel, hookimpl


@dataclass(frozen=True, eq=False)
class Law(NoiseModel):
    """y = A(x) + sigma z.

    Attributes:
        sigma: Shape (B, 1, ...).
    """

    sigma: Tensor

    def sample(self, clean: Tensor, rng: Generator) -> Tensor:
        return clean + self.sigma * torch.randn(clean.shape, generator=rng, dtype=clean.dtype).to(clean.device)

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        z = (y - clean) / self.sigma
        return -(0.5 * z.square() + self.sigma.log() + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def var(self) -> Tensor:
        return self.sigma.square()


def {function}(n: int, shape: tuple[int, ...], rng: Generator, *, sigma: float = 0.1) -> Law:
    """Adds noise.

    Args:
        n: The number of observations.
        shape: The shape of one measurement.
        rng: The source of what varies between observations; here nothing does.
        sigma: The standard deviation, in units of the data.
    """
    return Law(torch.full((n, *[1] * len(shape)), sigma))
'''
    ),
    "network": (
        '''\
"""{title}: change `{camel}` into your network."""

import math

import torch
from torch import Tensor, nn

from invem import hookimpl


class {camel}(nn.Module):
    """F(x, c_noise): two layers on the flattened signal and the noise level; invem puts EDM's preconditioning around it.

    Args:
        shape: The shape of one signal.
        width: The width of the hidden layer.
    """

    def __init__(self, shape: tuple[int, ...], *, width: int = 128) -> None:
        super().__init__()
        d = math.prod(shape)
        self.enter, self.leave = nn.Linear(d + 1, width), nn.Linear(width, d)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Maps (B, *shape) and c_noise (B,) to (B, *shape)."""
        h = torch.cat([x.flatten(1), c_noise[:, None]], 1)
        out: Tensor = self.leave(nn.functional.silu(self.enter(h)))
        return out.reshape(x.shape)
'''
    ),
    "sampler": (
        '''\
"""{title}: change `{camel}` into your sampler."""

from dataclasses import dataclass

import torch
from torch import Tensor

from invem import Denoiser, Karras, Measurement, PosteriorSampler, Rng, hookimpl, reverse


@dataclass(frozen=True, kw_only=True)
class {camel}(PosteriorSampler):
    """A projection method: at each level the measured part of x_hat is pulled towards y by A^T.

    Attributes:
        steps: Noise levels; the denoiser is called once a level.
        weight: The strength of the pull.
    """

    steps: int = 32
    weight: float = 0.5

    needs = frozenset({{"adjoint"}})

    @property
    def cost(self) -> tuple[int, int]:
        return self.steps, 0

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, m: Measurement, rng: Rng) -> Tensor:
        def posterior(x_t: Tensor, sigma: float) -> Tensor:
            x_hat: Tensor = denoiser(x_t, sigma)
            return x_hat + self.weight * m.A.adjoint(m.y - m.A(x_hat))

        sigmas = Karras().grid(self.steps)
        x_t = float(sigmas[0]) * rng.normal(*m.shape).to(m.y)
        return reverse(posterior, x_t, sigmas, rng)
'''
    ),
    "objective": (
        '''\
"""{title}: change `{camel}` into your loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from invem import Denoiser, Example, Objective, Rng, hookimpl


@dataclass(frozen=True, kw_only=True)
class {camel}(Objective):
    """E |D(x + sigma z, sigma) - x|^2 / sigma^2, log sigma uniform.

    Attributes:
        low: The smallest noise level, in units of the data.
        high: The largest.
    """

    low: float = 0.01
    high: float = 5.0

    needs = frozenset({{"x"}})

    def loss(self, denoiser: Denoiser, batch: Example, rng: Rng) -> Tensor:
        x = batch.x
        assert x is not None
        u = rng.uniform(*[1] * (x.ndim - 1)).to(x)
        sigma = self.low * (self.high / self.low) ** u
        error = (denoiser(x + sigma * rng.normal_like(x), sigma) - x) / sigma
        return torch.mean(error.square().flatten(1), dim=1)
'''
    ),
    "dataset": (
        '''\
"""{title}: change `Signals` into your data."""

from dataclasses import dataclass

import torch
from torch import Tensor

from invem import Example, Rng, hookimpl


@dataclass(frozen=True, eq=False)
class Signals:
    """Stripes of random direction and phase.

    Attributes:
        images: Shape (N, 1, H, W).
    """

    images: Tensor
    range = (-1.0, 1.0)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> Example:
        return Example(self.images[index])


def {function}(split: str, *, size: int = 16, count: int = 256) -> Signals:
    """Draws images of stripes.

    Args:
        split: "train" or "test".
        size: The height and the width, in pixels.
        count: The number of images.
    """
    u = torch.rand(count, 3, generator=Rng.generator("{name}", split))
    at = torch.linspace(-1, 1, size)
    angle, phase, rate = 3.14159 * u[:, 0, None, None], 6.28318 * u[:, 1, None, None], 4 + 8 * u[:, 2, None, None]
    return Signals(torch.sin(rate * (at * angle.cos() + at[:, None] * angle.sin()) + phase)[:, None])
'''
    ),
    "metric": (
        '''\
"""{title}: change `{camel}` into your number."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from invem import Metric, Outcome, hookimpl


@dataclass(frozen=True, kw_only=True)
class {camel}(Metric):
    """The mean absolute error of the mean of the draws, in units of the data."""

    needs = frozenset({{"truth", "draws"}})
    unit = ""
    higher_is_better = False

    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns one value for each observation, shape (N,)."""
        assert outcome.truth is not None and outcome.draws is not None
        return (outcome.draws.mean(1) - outcome.truth).abs().flatten(1).mean(1)
'''
    ),
}

KINDS = tuple(_BODIES)
_CLASSES = ("network", "sampler", "objective", "metric")


def write(name: str, kind: str, folder: Path) -> list[Path]:
    """Writes a distribution with one component: pyproject, module, test and README.

    Args:
        name: The component's name in a recipe, in kebab-case.
        kind: One of `KINDS`.
        folder: Where; it must not exist, or be empty.

    Raises:
        RecipeError: If the name is not kebab-case, the kind is unknown or the folder is not empty.
    """
    if kind not in KINDS:
        raise RecipeError(f"there is no kind '{kind}' (known: {', '.join(KINDS)})")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise RecipeError(
            f"'{name}' is not kebab-case: lower-case words of letters and digits, joined by -"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder}: exists already")
    function = name.replace("-", "_")
    camel = "".join(word.capitalize() for word in name.split("-"))
    words = {
        "name": name,
        "dist": f"invem-{name}",
        "module": f"invem_{function}",
        "title": f"{'An' if kind[0] in 'aeiou' else 'A'} {kind}",
        "function": function,
        "camel": camel,
        "factory": camel if kind in _CLASSES else function,
        "factory_lower": function,
        "kind": f"{kind}s",
    }
    files = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        f"{words['module']}.py": _BODIES[kind] + _HOOK,
        f"test_{words['module']}.py": _TEST,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text.format(**words), "utf-8")
    return [folder / file for file in files]
