"""What every step of a run is given: plan, directory, device, random streams, and when to stop."""

import ctypes
import shlex
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from invem.batched import Rng
from invem.errors import NumericalError, Stopped
from invem.gaussian import Gaussian
from invem.measurement import Measurement
from invem.planning.checked import drawn
from invem.planning.device import device_of
from invem.planning.plan import Plan, Stage
from invem.prior import Prior
from invem.running.observations import Observations
from invem.running.records import Record
from invem.sampler import PosteriorSampler
from invem.storage.directory import Round, RunDirectory

__all__ = ["Context", "all_finite", "keep_memory"]

_TUNED_ON = 16  # observations that a sampler finds its automatic options on


class Context:
    """A plan, the directory that it is carried out in, and the device.

    Args:
        plan: The checked plan.
        directory: The run directory.
        stop: Asked between small pieces of work; a number other than zero is the exit code to stop
            with.
    """

    def __init__(
        self, plan: Plan, directory: RunDirectory, stop: Callable[[], int] = lambda: 0
    ) -> None:
        self.plan, self.recipe, self.directory = plan, plan.recipe, directory
        compute = plan.recipe.compute
        self.device = device_of(compute.device)
        accelerated = self.device.type == "cuda"
        self.bfloat16 = compute.precision == "bfloat16" or (
            compute.precision == "auto" and accelerated
        )
        self.compile = accelerated if compute.compile == "auto" else compute.compile
        self.cancelled = False
        self.known_data: set[str] = set()  # splits whose digest was compared
        self._stop = stop
        self._observations: dict[str, Observations] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one signal."""
        return self.plan.shape

    def stage(self, at: Round) -> Stage:
        """Returns the phase of a round, with its components."""
        return self.plan.stages[at.phase]

    def where(self, at: Round) -> str:
        """Returns the round in words, for messages."""
        return f"phase {self.stage(at).phase.name}, round {at.number}"

    def way_on(self, at: Round, change: str) -> str:
        """Returns the command that goes on with a change of the phase of a round, for messages."""
        path = shlex.quote(str(self.directory.path))
        return f"invem resume {path} phases.{self.stage(at).phase.name}.{change}"

    def named(self, at: Round) -> dict[str, object]:
        """Returns the round as it stands in records."""
        return {"phase": at.phase, "name": self.stage(at).phase.name, "round": at.number}

    def log(self, event: str, **data: object) -> Record:
        """Appends an event to the log of the run and returns it as a record."""
        self.directory.log(event, **data)
        return Record(event, dict(data))

    # Stopping

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop."""
        return bool(self._stop()) or self.cancelled

    def check(self) -> None:
        """Stops the run if it was asked to.

        Raises:
            Stopped: If it was.
            DataError: If the run was removed.
        """
        self.directory.check_there()
        code = self._stop()
        if code or self.cancelled:
            message = f"stopped; go on with: invem resume {self.directory.path}"
            raise Stopped(message, code)

    def pieces(self, n: int, size: int) -> Iterator[Tensor]:
        """Yields 0, 1, ..., n - 1 in pieces; between two of them the run may stop."""
        for first in range(0, n, size):
            self.check()
            yield torch.arange(first, min(first + size, n))

    # Random streams

    def rng(self, *key: int | str, items: Iterable[int]) -> Rng:
        """Returns one stream per item, derived from the seed of the recipe and a key."""
        return Rng.keyed(self.recipe.seed, *key, items=list(items))

    def generator(self, *key: int | str) -> torch.Generator:
        """Returns one generator for a key, for what is drawn for many items at once."""
        return Rng.generator(self.recipe.seed, *key)

    # Sampling

    def observations(self, split: str) -> Observations:
        """Returns the measurements of a split, which are read and verified once."""
        if split not in self._observations:
            self._observations[split] = Observations(
                self.plan.model, self.directory.measurements(split), (self.recipe.seed, split)
            )
        return self._observations[split]

    def standard(self) -> Prior:
        """Returns the standard normal: the prior where none is learned yet."""
        return Prior.of(Gaussian.standard(self.shape).to(self.device))

    def tuned(
        self, sampler: PosteriorSampler, prior: Prior, m: Measurement, *key: int | str
    ) -> PosteriorSampler:
        """Returns the sampler with its automatic options set on the first few measurements."""
        few = range(min(_TUNED_ON, len(m)))
        first = m[torch.tensor(few, dtype=torch.long)].to(self.device)
        return sampler.tune(prior, first, self.rng(*key, items=few))

    def sample(
        self,
        sampler: PosteriorSampler,
        prior: Prior,
        m: Measurement,
        rows: Tensor,
        batch: int,
        *key: int | str,
    ) -> Iterator[tuple[int, Tensor]]:
        """Draws one signal for each of some rows of m, in pieces.

        Args:
            sampler: The sampler.
            prior: The prior.
            m: Measurements.
            rows: The rows of m, shape (N,); draw i has the stream (key, i).
            batch: How many are drawn at once.
            key: The purpose, for the random streams.

        Yields:
            How many are done, and the draws of the piece on the CPU, shape (B, *shape).
        """
        for index in self.pieces(len(rows), batch):
            rng = self.rng(*key, items=index.tolist())
            here = m[rows[index]].to(self.device)
            x = drawn(sampler, prior, here, rng, self.plan.origins)
            yield int(index[-1]) + 1, x.cpu()

    def posterior_mean(
        self, sampler: PosteriorSampler, prior: Prior, m: Measurement, draws: Tensor
    ) -> Tensor | None:
        """Returns the posterior mean of each measurement: exact where the sampler knows it without
        draws, the mean of the draws elsewhere.

        Args:
            sampler: The sampler.
            prior: The prior.
            m: N measurements.
            draws: K posterior draws of each, shape (N, K, *shape), on the CPU.

        Returns:
            The means on the CPU, shape (N, *shape); None if none is known without draws.
        """
        parts: list[Tensor] = []
        for index in self.pieces(len(m), self.recipe.evaluate.batch):
            with self.plan.origins.naming():
                parts.append(sampler.posterior_mean(prior, m[index].to(self.device)).cpu())
        mean = torch.cat(parts)
        unknown = mean.flatten(1).isnan().all(1)
        if bool(unknown.all()):
            return None
        mean[unknown] = draws[unknown].mean(1)
        return mean


def all_finite(x: Tensor, what: str, way: str) -> Tensor:
    """Returns x.

    Args:
        x: Signals, shape (B, *shape).
        what: What they are, in words.
        way: What may help where they are not finite, for the message.

    Raises:
        NumericalError: If some of its rows are not finite.
    """
    bad = int((~x.flatten(1).isfinite().all(1)).sum())
    if bad:
        raise NumericalError(f"{what}: {bad} of {len(x)} are not finite; {way}")
    return x


def keep_memory() -> bool:
    """Has the C library keep the memory that is freed; returns whether it is one that can.

    glibc gives the memory of a graph back to the system and faults it in again for the next
    product: a quarter of the time of an E-step.
    """
    try:
        library = ctypes.CDLL(None)
        # The numbers are M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_TOP_PAD of malloc.h.
        settings = ((-1, 2**31 - 1), (-3, 2**25), (-2, 2**26))
        return all(library.mallopt(what, size) for what, size in settings)
    except (AttributeError, OSError, TypeError):
        return False
