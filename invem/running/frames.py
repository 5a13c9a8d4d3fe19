"""Restoring whole frames of files with the newest prior of a run, each at its own size."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invem.batched import Rng
from invem.errors import DataError, RecipeError
from invem.frames import Frame, FrameFile, FrameFormat, FrameWriter, Units
from invem.measurement import Measurement
from invem.planning.checked import drawn
from invem.prior import Prior
from invem.running.context import Context, all_finite
from invem.running.measure import believed
from invem.running.priors import last_prior
from invem.running.records import Record
from invem.running.restore import sampler_of
from invem.sampler import PosteriorSampler
from invem.tiled import ALIGNED, Tiled, overlap_for

__all__ = ["FrameOptions", "RestoredFiles", "restore_frames"]

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

_WAY = "other random numbers may help (seed), or another sampler: evaluate.sampler"


@dataclass(frozen=True, kw_only=True)
class FrameOptions:
    """How whole frames are restored.

    Attributes:
        draws: Posterior draws of each frame, where the mean is not known without them, or more than
            the mean is asked for.
        std: Whether standard deviations are written, below std/. They need two draws.
        keep_draws: Whether the draws are written, below draws/1/, draws/2/, ...
        tile: The width of the tiles that the network is called on, a multiple of 32; 0 is whole
            frames.
        seed: Which random numbers.
        force: Whether files that are there are written anew.
    """

    draws: int = 8
    std: bool = False
    keep_draws: bool = False
    tile: int = 256
    seed: int = 0
    force: bool = False

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise RecipeError(f"draws must be at least 1, got {self.draws}")
        if self.tile < 0 or self.tile % ALIGNED:
            raise RecipeError(
                f"tile must be a multiple of {ALIGNED}, or 0 for whole frames, got {self.tile}"
            )


@dataclass(frozen=True, kw_only=True)
class RestoredFiles:
    """What was written.

    Attributes:
        folder: Where.
        files: The files that were written, below the folder.
        left: The files that were there and were left.
        frames: How many frames were restored.
        clipped: How many values of them were beyond the range of their files, and were clipped.
        values: How many values were written.
    """

    folder: Path
    files: tuple[str, ...]
    left: tuple[str, ...]
    frames: int
    clipped: int
    values: int


def restore_frames(
    run: Context,
    files: Sequence[tuple[Path, str, FrameFormat]],
    out: Path,
    units: Units,
    options: FrameOptions,
    reading: Mapping[str, str | None],
) -> Iterator[Record]:
    """Restores every frame of some files, and writes each file again with the restored frames.

    The means are written below `out` under the names of the files, standard deviations below
    out/std, and draws below out/draws/K.

    Args:
        run: The run.
        files: Files, each with its name below `out` and its format.
        out: The folder.
        units: The map from stored values to signals.
        options: How.
        reading: "axes" and "inside", as `FrameFormat.open` takes them.

    Yields:
        Records "restore" on the way, and "restored" with "files" (`RestoredFiles`).

    Raises:
        RecipeError: If the recipe has no sampler, its prior cannot be of the size of a frame, or
            what differs between observations is missing.
        DataError: If a file cannot be read or written, or its frames do not fit the run.
        NumericalError: If restored values are not finite.
    """
    work = _Restoring(run, units, options)
    work.check_names(out, files)
    there = {name for _, name, fmt in files if work.is_there(out, name, fmt)}
    todo = [file for file in files if file[1] not in there]
    written: list[str] = []
    title = {"name": work.stage.phase.name, "round": work.stage.phase.rounds - 1}
    for path, name, fmt in todo:
        with fmt.open(path, **reading) as file, ExitStack() as closing:
            writers = {
                key: closing.enter_context(fmt.create(target, file, dtype=dtype, name=what))
                for key, (target, dtype, what) in work.outputs(out, name, fmt).items()
            }
            for index, frame in enumerate(file.frames):
                run.check()
                work.frame(file, index, frame, name, writers)
                done = {"done": index + 1, "total": len(file.frames)}
                yield Record("restore", {**title, "split": name, **done})
        written.append(name)
    left = tuple(name for _, name, _ in files if name in there)
    counts = {"frames": work.frames, "clipped": work.clipped, "values": work.values}
    found = RestoredFiles(folder=out, files=tuple(written), left=left, **counts)
    yield Record("restored", {"files": found})


class _Restoring:
    """The work on the frames of some files, and what was counted."""

    def __init__(self, run: Context, units: Units, options: FrameOptions) -> None:
        self.run, self.units, self.options = run, units, options
        self.stage, self._evaluator = sampler_of(run)
        self.theta = believed(run)
        self.frames = self.clipped = self.values = 0
        self._sampler: PosteriorSampler | None = None
        self._known: tuple[tuple[int, ...], Prior, Measurement] | None = None
        self._overlap: int | None = None

    def check_names(self, out: Path, files: Sequence[tuple[Path, str, FrameFormat]]) -> None:
        """Refuses two files under one name.

        A picture is written in another format where its own cannot hold the values.
        """
        taken: dict[Path, str] = {}
        for _, name, fmt in files:
            for target, _, _ in self.outputs(out, name, fmt).values():
                if (other := taken.setdefault(target, name)) != name:
                    raise RecipeError(
                        f"{other} and {name} would both be written as {target}: restore one of them"
                        " into another folder"
                    )

    def is_there(self, out: Path, name: str, fmt: FrameFormat) -> bool:
        """Whether everything that is asked for of a file was written before."""
        targets = [target for target, _, _ in self.outputs(out, name, fmt).values()]
        return not self.options.force and all(target.exists() for target in targets)

    def outputs(
        self, out: Path, name: str, fmt: FrameFormat
    ) -> dict[str, tuple[Path, str | None, str]]:
        """Returns path, type and title of each file that is written of one, by folder; the mean has
        the folder ""."""
        found: dict[str, tuple[Path, str | None, str]] = {}
        for part in ["", *self._more()]:
            dtype = "float32" if part == "std" else None
            title = {"": "mean", "std": "standard deviation"}.get(part, f"draw {part[6:]}")
            found[part] = fmt.name_for(out / part / name, dtype), dtype, title
        return found

    def _more(self) -> list[str]:
        """Returns the folders of what is written beside the mean."""
        k = self.options.draws
        kept = [f"draws/{i + 1}" for i in range(k)] if self.options.keep_draws else []
        return (["std"] if self.options.std and k > 1 else []) + kept

    def frame(
        self,
        file: FrameFile,
        index: int,
        frame: Frame,
        name: str,
        writers: Mapping[str, FrameWriter],
    ) -> None:
        """Restores one frame and writes it."""
        y = self._signal(file, index, frame)
        prior, m = self._measured(y, frame)
        sampler = self._tuned()
        mean, drawn_mean, squares = self._known_mean(sampler, prior, m), None, None
        for k in range(self.options.draws if mean is None or self._more() else 0):
            rng = self.run.rng("restore-frames", self.options.seed, name, index, items=[k])
            x = drawn(sampler, prior, m, rng, self.run.plan.origins).cpu()
            all_finite(x, f"{frame.name}: restorations", _WAY)
            if (writer := writers.get(f"draws/{k + 1}")) is not None:
                writer.write(index, self._stored(x, frame)[0])
            # Welford's recursion: no draw is kept.
            before = torch.zeros_like(x) if drawn_mean is None else drawn_mean
            drawn_mean = before + (x - before) / (k + 1)
            gained = (x - before) * (x - drawn_mean)
            squares = gained if squares is None else squares + gained
        mean = drawn_mean if mean is None else mean
        assert mean is not None
        all_finite(mean, f"{frame.name}: posterior means", _WAY)
        values, clipped = self._stored(mean, frame)
        writers[""].write(index, values)
        if "std" in writers and squares is not None:
            std = (squares / (self.options.draws - 1)).sqrt()
            spread = self.units.spread(mean[0].numpy(), std[0].numpy())
            writers["std"].write(index, spread.astype(np.float32))
        self.frames += 1
        self.clipped += clipped
        self.values += values.size

    def _signal(self, file: FrameFile, index: int, frame: Frame) -> Tensor:
        """Returns the observation of a frame, shape (1, *frame.shape)."""
        wanted, found = self.run.shape, frame.shape
        if len(wanted) != len(found) or wanted[0] != found[0]:
            raise DataError(
                f"{frame.name}: its frames have the shape {found}, and the run learned from signals"
                f" of shape {wanted}: channels and axes of space must be the same"
            )
        if np.dtype(frame.dtype).kind == "c":
            raise DataError(f"{frame.name}: its values are complex, and real numbers are needed")
        y = torch.from_numpy(np.ascontiguousarray(self.units.signal(file.read(index))))
        if bad := y.numel() - int(y.isfinite().sum()):
            raise DataError(f"{frame.name}: {bad} of {y.numel()} values are not finite")
        return y[None]

    def _measured(self, y: Tensor, frame: Frame) -> tuple[Prior, Measurement]:
        """Returns the prior and the measurement at the size of a frame, on the device."""
        shape = frame.shape
        if self._known is None or self._known[0] != shape:
            with self.run.plan.origins.naming():
                self._known = shape, self._prior(shape), self._model(y, shape, frame)
        _, prior, m = self._known
        return prior, replace(m, y=y).completed().to(self.run.device)

    def _prior(self, shape: tuple[int, ...]) -> Prior:
        prior = last_prior(self.run, None if shape == tuple(self.run.shape) else shape)
        tile = self.options.tile
        if not tile or not prior.trained or max(shape[1:]) <= tile:
            return prior
        if self._overlap is None:
            self._overlap = overlap_for(prior.denoiser, shape[0], len(shape) - 1)
        return replace(prior, denoiser=Tiled(prior.denoiser, tile, self._overlap))

    def _model(self, y: Tensor, shape: tuple[int, ...], frame: Frame) -> Measurement:
        """Returns a measurement of signals of a shape, with the operator and the noise that are the
        same for all observations."""
        model = replace(self.run.plan.model, shape=shape)
        one, two = (
            Measurement(y, *model.draw(1, Rng.generator("frames", k), self.theta)) for k in range(2)
        )
        if tuple(one.A(torch.zeros(1, *shape)).shape) != tuple(y.shape):
            raise RecipeError(
                f"{frame.name}: the operator of this run measures signals of another shape than its"
                " observations; whole frames are restored where both are the same"
            )
        known, again, stored = one.tensors(), two.tensors(), self._stored_tensors()
        for path, tensor in known.items():
            if path == "y":
                continue
            constant, row = stored.get(path, (True, None))
            if row is not None and constant and row.shape == tensor.shape:
                known[path] = row
            elif not torch.equal(tensor, again[path]) or not constant:
                raise RecipeError(
                    f"'{path}' differs between the observations of this run, and files of frames do"
                    f" not hold it: give y and {path} in a .safetensors or .npz file, with --out of"
                    " such a name"
                )
        return one.with_tensors(known)

    def _stored_tensors(self) -> dict[str, tuple[bool, Tensor]]:
        """Returns of each tensor of operator and noise whether it is the same for all training
        observations, and its value of the first one."""
        if not self.run.directory.measurements("train").has("00000"):
            return {}
        stored = self.run.observations("train")
        m = stored.at(self.theta)
        common, repeated = stored.shared(self.theta), stored.repeated(self.theta)
        return {
            path: (path in common or path in repeated, tensor if path in common else tensor[:1])
            for path, tensor in m.tensors().items()
        }

    def _tuned(self) -> PosteriorSampler:
        """Returns the sampler, tuned once at the size of the training signals."""
        if self._sampler is None:
            self._sampler = self._evaluator
            if self.run.directory.measurements("train").has("00000"):
                m = self.run.observations("train").at(self.theta)
                with self.run.plan.origins.naming():
                    prior, key = last_prior(self.run), ("tune-restore", self.options.seed)
                    self._sampler = self.run.tuned(self._evaluator, prior, m, *key)
        return self._sampler

    def _known_mean(self, sampler: PosteriorSampler, prior: Prior, m: Measurement) -> Tensor | None:
        with self.run.plan.origins.naming():
            mean = sampler.posterior_mean(prior, m).cpu()
        return None if bool(mean.isnan().all()) else mean

    def _stored(self, x: Tensor, frame: Frame) -> tuple[Array, int]:
        """Returns a signal as values of a file, and how many of them were clipped.

        Args:
            x: Shape (1, *frame.shape).
            frame: The frame.
        """
        values, dtype = self.units.stored(x[0].numpy()), np.dtype(frame.dtype)
        if dtype.kind not in "iu":
            return values.astype(dtype), 0
        limits = np.iinfo(dtype)
        high = limits.max if frame.white is None else min(limits.max, math.floor(frame.white))
        rounded = np.rint(values)
        clipped = int(((rounded < limits.min) | (rounded > high)).sum())
        return rounded.clip(limits.min, high).astype(dtype), clipped
