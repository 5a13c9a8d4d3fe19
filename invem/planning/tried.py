"""Components tried on one small batch before they are used: mistakes that no shape shows.

What they are tried on is drawn from a generator of its own, so that a run has the same random
numbers with these checks as without.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from invem.batched import Rng
from invem.config.settings import settings_unchanged
from invem.denoiser import Denoiser, Preconditioned
from invem.errors import PluginError
from invem.operator import LinearOperator, Operator
from invem.planning.origin import Origins

__all__ = ["try_network", "try_operator"]

_NEAR = 1e-3  # relative; single precision is 1,000 to 10,000 times better
_LEVEL = 0.5  # the noise level that a network is tried at, in units of the data


def try_operator(operator: Operator, n: int, origins: Origins) -> None:
    """Applies operators to random signals, to see that they are functions.

    Args:
        operator: n operators.
        n: How many.
        origins: The components of the plan, for the message.

    Raises:
        PluginError: If a second call gives another answer, if a call changes its input, or if a
            linear operator is not linear, or its adjoint is not its adjoint.
    """

    def refuse(reason: str) -> PluginError:
        return PluginError(f"{origins.of(operator)}: {reason}")

    x, z = (0.4 * _normal(n, operator.shape, k) for k in range(2))
    given = x.clone()
    with torch.no_grad(), settings_unchanged(lambda: origins.of(operator)):
        y = operator(x)
        if not torch.equal(x, given):
            raise refuse("it changed the signals that it was given; it must leave them as they are")
        if not _near(operator(x), y):
            raise refuse(
                "it is not deterministic: a second call gave other measurements; what is random in"
                " it belongs into its factory, which is given a generator"
            )
        if not isinstance(operator, LinearOperator):
            return
        if not _near(operator(2 * x - 3 * z), 2 * y - 3 * operator(z)):
            raise refuse(
                "it is a LinearOperator, and not linear: A(2 x - 3 z) is not 2 A(x) - 3 A(z); make"
                " it an Operator"
            )
        v = _normal(n, tuple(y.shape[1:]), 2)
        back = operator.adjoint(v)
        if tuple(back.shape) != tuple(x.shape):
            raise refuse(
                f"its adjoint returned the shape {tuple(back.shape)}, not {tuple(x.shape)}"
            )
        gap = (y * v).flatten(1).sum(1) - (x * back).flatten(1).sum(1)
        size = y.flatten(1).norm(dim=1) * v.flatten(1).norm(dim=1)
        if bool((gap.abs() > _NEAR * size.clamp(min=1e-6)).any()):
            raise refuse("its adjoint is not that of A: <A x, v> is not <x, A^T v>")


def try_network(
    network: Denoiser, shape: tuple[int, ...], device: torch.device, origins: Origins
) -> None:
    """Calls a network in evaluation mode on two random signals, and leaves it as it was.

    Args:
        network: The network, on its device.
        shape: The shape of one signal.
        device: The device.
        origins: The components of the plan, for the message.

    Raises:
        PluginError: If it does not answer for each signal, if an answer depends on the other
            signals, if a second call answers otherwise, or if a call changes its input.
    """
    inner = network.backbone if isinstance(network, Preconditioned) else network

    def refuse(reason: str) -> PluginError:
        return PluginError(f"{origins.of(inner)}: {reason}")

    x = _normal(2, shape, 3).to(device)
    cond = _normal(2, (network.condition, *shape), 4).to(device) if network.condition else None
    sigma = torch.full((2,), _LEVEL, device=device)
    with _evaluating(network), _watched(inner, refuse), torch.no_grad(), origins.naming():
        with settings_unchanged(lambda: origins.of(inner)):
            out = network(x, sigma, cond)
            again = network(x, sigma, cond)
        if not isinstance(out, Tensor) or out.shape != x.shape:
            found = tuple(getattr(out, "shape", ()))
            raise refuse(f"it returned the shape {found}, not one signal each, {tuple(x.shape)}")
        if not _near(again, out):
            raise refuse("it is not deterministic in evaluation mode: a second call gave another x")
        alone = [
            network(x[i : i + 1], sigma[i : i + 1], None if cond is None else cond[i : i + 1])
            for i in range(2)
        ]
        if not _near(torch.cat(alone), out, 10 * _NEAR):
            raise refuse("its answer for a signal changes with the other signals of the batch")


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Puts a network into evaluation mode, and afterwards each of its parts as it was."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _watched(network: nn.Module, refuse: Callable[[str], PluginError]) -> Iterator[None]:
    """Compares the tensors that a network is called with before and after each call."""
    kept: list[Tensor] = []

    def before(_: nn.Module, given: tuple[object, ...]) -> None:
        kept[:] = [value.clone() for value in given if isinstance(value, Tensor)]

    def after(_: nn.Module, given: tuple[object, ...], __: object) -> None:
        now = [value for value in given if isinstance(value, Tensor)]
        if not all(torch.equal(old, new) for old, new in zip(kept, now, strict=True)):
            raise refuse("it wrote into its input; it must leave that as it is")

    handles = [network.register_forward_pre_hook(before), network.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _normal(n: int, shape: tuple[int, ...], key: int) -> Tensor:
    return torch.randn(n, *shape, generator=Rng.generator("tried", key), dtype=torch.float32)


def _near(a: Tensor, b: Tensor, tolerance: float = _NEAR) -> bool:
    """Whether tensors agree, relative to the largest value; values that are not finite must be the
    same."""
    if a.shape != b.shape:
        return False
    finite = a.isfinite() & b.isfinite()
    gap = torch.where(finite, a - b, 0).abs().amax() if a.numel() else torch.zeros(())
    size = torch.where(finite, b, 0).abs().amax().clamp(min=1e-6) if a.numel() else gap
    same = torch.equal(a.isnan(), b.isnan()) and torch.equal(a.isfinite(), b.isfinite())
    return same and bool(gap <= tolerance * size)
