"""What a draw costs: network forwards, vector-Jacobian products, calls of the operator, memory."""

import contextlib
import dataclasses
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invem.denoiser import Denoiser
from invem.operator import SVD, Operator

__all__ = ["Counter", "peak_memory", "reset_peak_memory", "wait_for_device"]


@dataclass
class Counter:
    """Counts the rows that pass through the network, its derivative and the operator.

    Attributes:
        forwards: Rows through the denoiser.
        products: Rows whose gradient passed back through it: vector-Jacobian products.
        operator: Rows through A.
        adjoint: Rows through A^T, gradients that passed back through A among them.
        pinv: Rows through the pseudo-inverse.
        rotations: Rows through a factor of the singular value decomposition.
    """

    forwards: int = 0
    products: int = 0
    operator: int = 0
    adjoint: int = 0
    pinv: int = 0
    rotations: int = 0
    _depth: int = 0

    def per_draw(self, draws: int) -> dict[str, Any]:
        """Returns each count divided by the number of draws."""
        counts = {name: n for name, n in vars(self).items() if not name.startswith("_")}
        return {name: n / draws for name, n in counts.items()}

    @contextlib.contextmanager
    def watch(self, denoiser: Denoiser) -> Iterator[None]:
        """Counts the rows that pass the denoiser, and those whose gradient passes back."""

        def on_gradient(grad: Tensor) -> None:
            self.products += len(grad)

        def on_forward(_: Any, __: Any, out: Tensor) -> None:
            self.forwards += len(out)
            if out.requires_grad:
                out.register_hook(on_gradient)  # type: ignore[no-untyped-call]

        handle = denoiser.register_forward_hook(on_forward)
        try:
            yield
        finally:
            handle.remove()

    def counting(self, A: Operator) -> Operator:
        """Returns the operator in a subclass of its class that counts.

        It provides the same as A. A call from within a call does not count. A gradient that passes
        back through a call of A counts as an adjoint.
        """
        kind = type(A)
        methods: dict[str, Any] = {
            "__call__": self._counted(kind, "__call__", "operator"),
            "vjp": self._counted(kind, "vjp", "adjoint"),
        }
        for name in ("adjoint", "pinv"):
            if name in A.provides:
                methods[name] = self._counted(kind, name, name)
        if "svd" in A.provides:
            methods["svd"] = self._counted_svd(kind)
        subclass = type(kind.__name__, (kind,), methods)
        made: Operator = subclass(**{f.name: getattr(A, f.name) for f in dataclasses.fields(A)})
        return made

    def _counted(self, kind: type[Operator], name: str, counter: str) -> Callable[..., Any]:
        inner = getattr(kind, name)

        def on_gradient(grad: Tensor) -> None:
            self.adjoint += len(grad)

        def call(own: Operator, *values: Tensor) -> Any:
            with self._inside():
                out = inner(own, *values)
            if self._depth == 0:
                setattr(self, counter, getattr(self, counter) + len(values[0]))
                if name == "__call__" and out.requires_grad:
                    out.register_hook(on_gradient)
            return out

        return call

    def _counted_svd(self, kind: type[Operator]) -> Callable[[Operator], SVD]:
        def counted(rotate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            def call(x: Tensor) -> Tensor:
                self.rotations += len(x)
                return rotate(x)

            return call

        def svd(own: Operator) -> SVD:
            with self._inside():
                found = kind.svd(own)
            return SVD(found.s, *(counted(rotate) for rotate in found[1:]))

        return svd

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1


def reset_peak_memory(device: torch.device) -> None:
    """Lets the peak of `peak_memory` begin anew, where the system can do so."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # Linux only
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """Returns the peak in MiB since `reset_peak_memory`.

    On CUDA it is that of the allocator, on a CPU that of the process. Where the system cannot begin
    anew, it is the peak since the process began.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def wait_for_device(device: torch.device) -> None:
    """Waits until the device has done what was asked, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
