"""The input of a sampler: y, A and the noise model."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Generator, Tensor

from invem.batched import Batched, Rng, to_float64
from invem.errors import Unsupported
from invem.noise import NoiseModel
from invem.operator import SVD, Operator

__all__ = ["Example", "Measurement", "linear_condition", "remeasure"]


@dataclass(frozen=True, eq=False)
class Measurement(Batched):
    """A batch of B likelihoods p(y | x). It does not hold the true x, so no sampler can see it.

    Attributes:
        y: The observations, shape (B, *measurement shape).
        A: The forward operators.
        noise: The noise models.
    """

    y: Tensor
    A: Operator
    noise: NoiseModel

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one signal."""
        return self.A.shape

    @property
    def provides(self) -> frozenset[str]:
        """The capabilities of the operator, of the noise, and of both together.

        The latter are "identity", "signal", "derivative", "density" and "one level" (see
        `invem.capability`).
        """
        found = set(self.A.provides | self.noise.provides)
        if not self.A.straight_through:
            found.add("derivative")
        if "adjoint" in found or self.y.shape[1:] == torch.Size(self.shape):
            found.add("signal")
        if self.y.device.type == "meta" or not len(self):
            return frozenset(found)
        if self.changes_nothing:
            found.add("identity")
        if "var" not in found:
            return frozenset(found | {"density"})
        var = self.noise.var().expand_as(self.y).flatten(1)
        if bool((var > 0).all()):
            found.add("density")
        # A variance that follows the signal has one level for a flat signal alone.
        if "normal" in found and not bool((var != var[:, :1]).any()):
            found.add("one level")
        return frozenset(found)

    def completed(self) -> Self:
        """Returns the measurement with a noise that knows what y says of it (`NoiseModel.given`).

        What makes or reads measurements calls it; it is not stored.
        """
        return replace(self, noise=self.noise.given(self.y, self.A.seen))

    @property
    def changes_nothing(self) -> bool:
        """Whether A is the identity, tested on up to 256 observations.

        One is not enough: a mask can show all of one signal and hide entries of the next.
        """
        rows = torch.linspace(0, len(self) - 1, min(len(self), 256), dtype=torch.float64).long()
        return bool(self[rows].unchanged.all())

    @property
    def unchanged(self) -> Tensor:
        """Whether A is the identity for each observation, shape (B,), by one probe.

        The probe has no zero and is not smooth: a mask and a blur change it.
        """
        if self.y.shape[1:] != torch.Size(self.shape) or not len(self):
            return torch.zeros(len(self), dtype=torch.bool, device=self.y.device)
        golden = 0.6180339887498949
        probe = 1 + (golden * torch.arange(self.y[0].numel(), dtype=torch.float64)).frac()
        probe = probe.to(self.y).reshape(self.y[:1].shape).expand_as(self.y)
        return (self.A(probe) == probe).flatten(1).all(1)

    @property
    def one_level(self) -> Tensor:
        """Whether the entries of each observation have noise of one variance, shape (B,).

        A variance must be known. Only Gaussian noise has one level.
        """
        if "normal" not in self.noise.provides:
            return torch.zeros(len(self), dtype=torch.bool, device=self.y.device)
        var = self.noise.var().expand_as(self.y).flatten(1)
        return (var == var[:, :1]).all(1)

    @property
    def shares_operator(self) -> bool:
        """Whether all observations were made with the same operator."""
        return _repeats_the_first(self.A)

    @property
    def shares_operator_and_noise(self) -> bool:
        """Whether all observations were made with the same operator and have the same noise."""
        return self.shares_operator and _repeats_the_first(self.noise)

    def matrices(self) -> Tensor:
        """Returns linear operators as matrices on flattened signals, shape (B, m, d), float64.

        For few entries: A is called d times.
        """
        d = math.prod(self.shape)
        basis = torch.eye(d, dtype=self.y.dtype, device=self.y.device).reshape(d, 1, *self.shape)
        return to_float64(
            torch.stack([self.A(e.expand(len(self), *self.shape)).flatten(1) for e in basis], -1)
        )

    def residual(self, x: Tensor) -> Tensor:
        """Returns y - A(x), shape of y, with zeros in the entries of y that no x affects.

        Its norm then does not count the noise of those entries.
        """
        r = self.y - self.A(x)
        return r if self.A.seen is None else r * self.A.seen

    def floored(self, sigma: float) -> Self:
        """Returns the measurement with a noise variance of at least sigma^2.

        It is for solvers that divide by the variance.
        """
        return replace(self, noise=_Floored(self.noise, sigma**2))

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns log p(y | x), shape (B,). x: (B, *shape)."""
        return self.noise.log_prob(self.y, self.A(x))

    def score(self, x: Tensor) -> Tensor:
        """Returns the gradient of log p(y | x) with respect to x, shape (B, *shape)."""
        with torch.enable_grad():
            clean = self.A(x).detach().requires_grad_()
            (grad,) = torch.autograd.grad(self.noise.log_prob(self.y, clean).sum(), clean)
        return self.A.vjp(x, grad)

    def level(self, name: str) -> Tensor:
        """Returns the standard deviation of the noise for A = I, shape (B, 1, ...).

        Args:
            name: The component that calls, for the message.

        Raises:
            Unsupported: If A is another operator, or the noise level differs between the entries of
                an observation.
        """
        var = self.noise.var().expand_as(self.y).flatten(1)
        if not self.changes_nothing or bool((var != var[:, :1]).any()):
            raise Unsupported(
                f"{name} needs operator: identity, and noise of one level for all entries of an"
                " observation"
            )
        return var[:, 0].sqrt().reshape(-1, *[1] * (self.y.ndim - 1))

    def spectral_noise(self, svd: SVD) -> Tensor:
        """Returns the standard deviation of the noise in each coordinate of V^T x, shape (B, d).

        It is noise/s, and infinite where s is zero.

        Raises:
            Unsupported: If the noise level differs between the entries of an observation.
        """
        var = self.noise.var().expand_as(self.y).flatten(1)
        if bool((var != var[:, :1]).any()):
            raise Unsupported(
                "in the singular basis the noise must have one level for all entries of an"
                " observation"
            )
        s = svd.s.expand(len(self), -1)
        seen = s > 1e-6 * s.amax(1, keepdim=True)
        kappa = torch.where(seen, var[:, :1].sqrt() / torch.where(seen, s, 1), torch.inf)
        return _padded(kappa, self.shape, torch.inf)

    def spectral_data(self, svd: SVD) -> Tensor:
        """Returns U^T y / s in each coordinate of V^T x, shape (B, d), and zero where s is zero."""
        s = svd.s.expand(len(self), -1)
        seen = s > 1e-6 * s.amax(1, keepdim=True)
        return _padded(
            torch.where(seen, svd.ut(self.y) / torch.where(seen, s, 1), 0), self.shape, 0.0
        )


def _repeats_the_first(batch: Batched) -> bool:
    """Whether each tensor of a batch has the same value for all samples."""
    common = batch.shared_paths()
    return all(
        bool((tensor == tensor[:1]).all())
        for path, tensor in batch.tensors().items()
        if path not in common
    )


def _padded(z: Tensor, shape: tuple[int, ...], value: float) -> Tensor:
    more = math.prod(shape) - z.shape[1]
    return torch.cat([z, z.new_full((len(z), more), value)], 1)


@dataclass(frozen=True, eq=False)
class _Floored(NoiseModel):
    """Noise of known variance, which counts as at least `least`."""

    inner: NoiseModel
    least: float

    def sample(self, clean: Tensor, rng: Generator) -> Tensor:
        return self.inner.sample(clean, rng)

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        return self.inner.log_prob(y, clean)

    def var(self) -> Tensor:
        return self.inner.var().clamp(min=self.least)

    @property
    def provides(self) -> frozenset[str]:
        return self.inner.provides


class Example(NamedTuple):
    """A batch of signals, of measurements, or of both, for an objective.

    Attributes:
        x: Signals (posterior draws, or a clean subset), shape (B, *shape); or None.
        measurement: The measurement of each signal; or None.
        label: Class labels of the signals, shape (B,), if the data set has them. For evaluation
            only.
    """

    x: Tensor | None
    measurement: Measurement | None = None
    label: Tensor | None = None


def _full_precision(x: Tensor) -> AbstractContextManager[None]:
    """Disables autocast, which is meant for networks, for measurements."""
    kind = x.device.type
    return (
        torch.autocast(kind, enabled=False)
        if torch.amp.is_autocast_available(kind)
        else nullcontext()
    )


def linear_condition(m: Measurement) -> Tensor:
    """Returns [A^T y, A^T 1], shape (B, 2, *shape), the condition of a conditional network.

    A must be linear. For a mask these are the measured entries and the mask, for denoising y and
    ones: all of y and A. For other operators that differ between observations, or a noise level
    that does, they do not determine A and the noise. The network then learns E[x | x_t] given this
    condition.
    """
    with _full_precision(m.y):
        return torch.stack([m.A.adjoint(m.y), m.A.adjoint(torch.ones_like(m.y))], 1)


@torch.no_grad()
def remeasure(m: Measurement, x: Tensor, rng: Rng) -> Measurement:
    """Returns the measurements with new y' ~ p(y | x), in full precision even under autocast.

    The noise of each sample is drawn from its own stream.

    Args:
        m: For A and the noise; its y is not used.
        x: Signals, shape (B, *shape).
        rng: B streams.
    """
    with _full_precision(x):
        clean = m.A(x)
    if "normal" in m.noise.provides:
        return replace(m, y=clean + m.noise.var().sqrt() * rng.normal_like(clean))
    streams = [Rng.generator("measured anew", seed) for seed in rng.seeds]
    y = torch.cat([m.noise[i].sample(clean[i : i + 1], stream) for i, stream in enumerate(streams)])
    return replace(m, y=y).completed()
