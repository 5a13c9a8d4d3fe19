"""Log-likelihood of held-out observations."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from invem import (
    Gaussian,
    Karras,
    Measurement,
    Metric,
    NumericalError,
    Outcome,
    Prior,
    RecipeError,
    Rng,
    Unsupported,
    examples,
)
from invem.denoiser import expand_level

CHUNK, ENTRIES, LARGEST = 256, 2**23, 1024

_LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


@examples({"of": "network"})
@dataclass(frozen=True, kw_only=True)
class ObservationLikelihood(Metric):
    """log p(y) of held-out observations under the prior, per entry of y.

    It needs no clean signal. Every exact round of EM raises it on the training observations.
    Entries of pure noise add a constant for any prior. They are left out of the sum and of the
    count.

    "network" uses the change of variables of Y. Song et al., ICLR 2021, arXiv 2011.13456, eq. 39: d
    log p/d log sigma = tr J - d along dx/d log sigma = x - x_hat. The path does not depend on the
    random vectors, so they are drawn anew at each evaluation. They depend on y, not on its index.

    Attributes:
        of: "moments" is log N(y; A m, A C A^T + S) with the mean m and covariance C of
            `prior.moments`, for linear A and Gaussian noise. It is exact for a Gaussian prior. For
            a network it is the likelihood of its moments, a Gaussian fitted to the same signals,
            and not of the network. "network" is log p_sigma(y) of the denoiser itself, for
            observations of whole signals with white noise. It integrates the probability flow from
            the noise level of y up to 20, where the distribution is taken as N(m, C + sigma^2 I),
            or N(0, sigma^2 I) without moments. A denoiser that is not a posterior mean has no
            density of its own; the value is then that of the distribution from which the flow
            samples.
        steps: Steps of the fourth-order Runge-Kutta method in log sigma, with 4 evaluations of the
            network each. With 16 the error is 1e-3 nats on Gaussians and mixtures.
        probes: Random vectors for the trace of the Jacobian J per evaluation (M. Hutchinson, 1990),
            each a vector-Jacobian product. The estimate is unbiased. With as many as entries the
            trace is exact.
    """

    of: Literal["moments", "network"] = "moments"
    steps: Annotated[int, Ge(1), Le(100_000)] = 16
    probes: Annotated[int, Ge(1)] = 1
    unit: ClassVar[str] = "nats"
    higher_is_better: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(
            {"measurement", "prior", "normal", "adjoint" if self.of == "moments" else "identity"}
        )

    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns nats per entry that depends on x, shape (N,); zero if an observation has none.

        Raises:
            Unsupported: If the operator is not linear, or has more than 1,024 entries, is no mask
                and differs between observations. For "network", if it is not the identity or the
                noise has several levels in one observation.
            RecipeError: If the noise has variance 0 somewhere.
        """
        if outcome.measurement is None or outcome.prior is None:
            raise Unsupported("observation-likelihood needs held-out measurements and the prior")
        m = outcome.measurement
        if not bool((m.noise.var() > 0).all()):
            raise RecipeError(
                "observation-likelihood needs a density, but the noise is 0 somewhere: leave the"
                " metric out"
            )
        if self.of == "network":
            return self._flow(outcome.prior, m).float()
        if "adjoint" not in m.A.provides:
            raise Unsupported("observation-likelihood is for linear operators")
        gaussian = outcome.prior.known_moments().to("cpu", torch.float64)
        return _gaussian(gaussian, m.to("cpu", torch.float64)).float()

    def _flow(self, prior: Prior, m: Measurement) -> Tensor:
        """Returns log p_sigma(y)/d, shape (N,)."""
        sigma = m.level("observation-likelihood with of: network").flatten()
        device = next((weight.device for weight in prior.denoiser.parameters()), m.y.device)
        parts = zip(torch.split(m.y, CHUNK), torch.split(sigma.cpu().double(), CHUNK), strict=True)
        return torch.cat([self._climb(prior, y.to(device), sigma) for y, sigma in parts])

    def _climb(self, prior: Prior, y: Tensor, sigma: Tensor) -> Tensor:
        """Integrates from `sigma`, (B,), upwards; returns log p(y)/d, (B,), on the CPU.

        y: (B, *shape).
        """
        top, d = Karras().sigma_max, y[0].numel()
        rng = Rng.keyed(
            "observation-likelihood",
            items=[hashlib.blake2b(row.cpu().numpy().tobytes()).hexdigest() for row in y],
        )
        u, h = sigma.log(), (math.log(top) - sigma.log()) / self.steps
        x, step, gained = y, expand_level(h, y), torch.zeros_like(sigma)
        for _ in range(self.steps):
            a, da = self._slope(prior, x, u, rng)
            b, db = self._slope(prior, x + step / 2 * a, u + h / 2, rng)
            c, dc = self._slope(prior, x + step / 2 * b, u + h / 2, rng)
            e, de = self._slope(prior, x + step * c, u + h, rng)
            x = x + step / 6 * (a + 2 * b + 2 * c + e)
            gained, u = gained + h / 6 * (da + 2 * db + 2 * dc + de), u + h
        flat = x.flatten(1).cpu().double()
        gaussian = prior.moments
        if gaussian is None:
            end = _low_rank(flat, flat.new_full((1, d), top**2), flat.new_zeros(1, d, 0))
        else:
            gaussian = gaussian.to("cpu", torch.float64)
            end = _low_rank(
                flat - gaussian.mean.flatten(),
                (gaussian.cov.diag + top**2)[None],
                gaussian.cov.factor[None],
            )
        return (end + gained - d / 2 * math.log(2 * math.pi)) / d

    def _slope(self, prior: Prior, x: Tensor, u: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Returns x - x_hat, (B, *shape), and d - tr J, (B,), at the level exp(u).

        The second is on the CPU. x: (B, *shape), u: (B,).
        """
        d = x[0].numel()
        with torch.enable_grad():
            x_t = x.detach().requires_grad_()
            x_hat = prior(x_t, expand_level(u.exp(), x_t))
        if self.probes < d:
            probes = [rng.normal_like(x).sign() for _ in range(self.probes)]
        else:
            probes = [
                e.expand_as(x)
                for e in torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, *x.shape[1:])
            ]
        trace = torch.zeros_like(u)
        for v in probes:
            (pulled,) = torch.autograd.grad(x_hat, x_t, v, retain_graph=True)
            trace = trace + (pulled * v).flatten(1).sum(1).cpu().double() / (
                self.probes if self.probes < d else 1
            )
        return x - x_hat.detach(), d - trace


def _gaussian(prior: Gaussian, m: Measurement) -> Tensor:
    """Returns log N(y; A mean, A C A^T + S) per measured entry, shape (N,)."""
    entrywise = bool(m.provides & {"mask", "identity"})
    size, d = m.y[0].numel(), prior.mean.numel()
    low = entrywise and 2 * prior.cov.factor.shape[1] < size
    common = _spread(prior, m[0]) if not low and m.shares_operator else None
    if size > LARGEST and not entrywise and common is None:
        raise Unsupported(
            f"observation-likelihood solves a dense system for each operator: {size} entries are"
            f" more than {LARGEST}"
        )
    values = []
    for rows in torch.split(
        torch.arange(len(m)), max(1, min(CHUNK, ENTRIES // (size * max(size, d))))
    ):
        part = m[rows]
        seen = (
            torch.ones_like(part.y) if part.A.seen is None else part.A.seen.expand_as(part.y)
        ).flatten(1)
        count = seen.sum(1)
        r = part.residual(prior.mean.expand(len(part), *prior.shape)).flatten(1)
        # A masked entry has residual 0 and variance 1, and adds log 1.
        var = torch.where(seen != 0, part.noise.var().expand_as(part.y).flatten(1), 1.0)
        if common is not None:
            value = _dense(r, common, var[:1] if bool((var == var[:1]).all()) else var)
        elif entrywise:
            first = seen.argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
            a = part.A(torch.ones(len(part), *prior.shape, dtype=r.dtype)).flatten(1)
            r, var, a = (v.gather(1, first) for v in (r, var, a))
            if low:
                value = _low_rank(
                    r,
                    a.square() * prior.cov.diag[first] + var,
                    a[..., None] * prior.cov.factor[first],
                )
            else:
                value = _dense(
                    r,
                    a[:, :, None]
                    * prior.cov.dense()[first[:, :, None], first[:, None]]
                    * a[:, None],
                    var,
                )
        else:
            value = _dense(r, _spread(prior, part), var)
        values.append((value - 0.5 * math.log(2 * math.pi) * count) / count.clamp(min=1))
    return torch.cat(values)


def _spread(prior: Gaussian, m: Measurement) -> Tensor:
    """Returns A C A^T, shape (B, m, m)."""
    root = torch.linalg.cholesky(prior.cov.dense())
    columns = root.T.reshape(-1, 1, *prior.shape).expand(-1, len(m), *prior.shape)
    seen = torch.func.vmap(m.A)(columns).flatten(2)
    return torch.einsum("kbi,kbj->bij", seen, seen)


def _dense(r: Tensor, cov: Tensor, var: Tensor) -> Tensor:
    """Returns log N(r; 0, cov + diag(var)) without the power of 2 pi, shape (B,).

    Args:
        r: (B, m).
        cov: (1 or B, m, m).
        var: (1 or B, m).
    """
    try:
        root = torch.linalg.cholesky(cov + torch.diag_embed(var))
    except _LinAlgError:
        raise NumericalError(
            "observation-likelihood: the covariance of y is not positive definite"
        ) from None
    if len(root) == 1:
        white = torch.linalg.solve_triangular(root[0], r.T, upper=False).T
    else:
        white = torch.linalg.solve_triangular(root, r[..., None], upper=False)[..., 0]
    value: Tensor = -0.5 * white.square().sum(1) - root.diagonal(dim1=1, dim2=2).log().sum(1)
    return value


def _low_rank(r: Tensor, diag: Tensor, factor: Tensor) -> Tensor:
    """Returns log N(r; 0, diag(D) + F F^T) without the power of 2 pi, by Woodbury, shape (B,).

    Args:
        r: (B, m).
        diag: D, (1 or B, m).
        factor: F, (1 or B, m, k).
    """
    scaled = factor / diag[..., None]
    root = torch.linalg.cholesky(
        scaled.mT @ factor + torch.eye(factor.shape[2], dtype=r.dtype, device=r.device)
    )
    inner = torch.linalg.solve_triangular(root, (scaled.mT @ r[..., None]), upper=False)[..., 0]
    squares = (r.square() / diag).sum(1) - inner.square().sum(1)
    value: Tensor = (
        -0.5 * squares - 0.5 * diag.log().sum(1) - root.diagonal(dim1=1, dim2=2).log().sum(1)
    )
    return value
