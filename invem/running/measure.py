"""Measuring: signals become observations once, and what is granted of the truth is kept apart."""

import math
from collections.abc import Iterator, Mapping, Set

import torch
from torch import Tensor

from invem.batched import Rng
from invem.dataset import Dataset
from invem.errors import DataError, RecipeError
from invem.measurement import Measurement
from invem.noise import NoiseModel
from invem.operator import Operator
from invem.planning.checked import measured
from invem.running.context import Context
from invem.running.observations import BLOCK, with_shared
from invem.running.records import Record
from invem.storage.directory import Round

__all__ = ["believed", "clean_signals", "draw_like_training", "measure", "new_observations"]


def measure(run: Context, split: str) -> Iterator[Record]:
    """Draws operator and noise of a split, measures its signals, and stores the observations.

    Files that are there are left as they are.

    Args:
        run: The run.
        split: "train" or "test".

    Yields:
        A record "measure" per block.
    """
    n = run.plan.train if split == "train" else run.plan.test
    kept = split == "test" and not run.plan.observed
    folder, truth = run.directory.measurements(split), run.directory.truth
    data: Dataset | None = None
    for block in range(math.ceil(n / BLOCK)):
        name = f"{block:05d}"
        if folder.has(name) and (not kept or truth.has(name)):
            continue
        run.check()
        data = open_data(run, split) if data is None else data
        rows = torch.arange(block * BLOCK, min((block + 1) * BLOCK, n))
        x = data[rows].x
        assert x is not None
        if kept:
            truth.write(name, {"x": x})
        if not folder.has(name):
            folder.write(name, _measured(run, split, block, data, rows, x).tensors())
        done = min((block + 1) * BLOCK, n)
        yield Record("measure", {"split": split, "done": done, "total": n})


def _measured(
    run: Context, split: str, block: int, data: Dataset, rows: Tensor, x: Tensor
) -> Measurement:
    """Measures the signals of a block, or completes observations that exist already."""
    rng = run.generator("measure", split, block)
    operator, noise = run.plan.model.draw(len(x), rng)
    train = run.directory.measurements("train")
    if train.has("00000"):
        operator, noise = with_shared(operator, noise, train.read("00000"))
    if not run.plan.observed:
        y = measured(operator, noise, x, rng, run.plan.origins)
        return Measurement(y, operator, noise)
    m = Measurement(x, operator, noise)
    given = data.measured(rows)
    return m if given is None else m.with_tensors(m.tensors() | given)


def open_data(run: Context, split: str) -> Dataset:
    """Opens the data set, which must be the one that the run was begun with.

    Raises:
        RecipeError: If it is another one.
    """
    data, facts = run.plan.data(split), run.plan.facts
    wanted = facts.whole_train if split == "train" else facts.whole_test
    if len(data) != wanted or list(data.shape) != list(facts.shape):
        was = f"{wanted} of {tuple(facts.shape)}"
        now = f"{len(data)} of {tuple(data.shape)}"
        raise RecipeError(
            f"{run.directory.path}: the {split} data have changed since the run was begun: {was}"
            f" then, {now} now"
        )
    before = facts.digests.get(split)
    if before is not None and split not in run.known_data:
        if data.digest() != before:
            raise RecipeError(
                f"{run.directory.path}: the {split} data have changed since the run was begun:"
                " their number and shape are the same, their values are not; put the old ones back,"
                " or begin a new run"
            )
        run.known_data.add(split)
    return data


def clean_signals(run: Context) -> Tensor:
    """Returns the clean signals that the recipe grants, shape (N, *shape); kept in the run."""
    if not run.directory.has("clean"):
        data, n = open_data(run, "train"), run.plan.train
        granted = n if run.recipe.clean == "all" else min(run.recipe.clean, n)
        index = torch.randperm(n, generator=run.generator("clean"))[:granted]
        x = data[index.sort().values].x
        assert x is not None
        run.directory.write("clean", {"x": x})
    return run.directory.read("clean")["x"]


def believed(run: Context, at: Round | None = None) -> dict[str, float]:
    """Returns the options of operator and noise that are believed where they are not the recipe's.

    Args:
        run: The run.
        at: The round; None is the end of the run.
    """
    theta = dict(run.recipe.assume)
    for p, stage in enumerate(run.plan.stages):
        for r in range(stage.phase.rounds if stage.phase.calibrate else 0):
            folder = run.directory.draws(Round(p, r))
            if (at is None or Round(p, r) <= at) and folder.has_json("calibrated"):
                theta |= folder.read_json("calibrated")["values"]
    return theta


def draw_like_training(
    run: Context, n: int, rng: torch.Generator, theta: Mapping[str, float]
) -> tuple[Operator, NoiseModel]:
    """Draws operator and noise of n new measurements, with what is common to those of the run.

    What was stored with the measurements is not drawn again: a file that an option names may have
    changed since.
    """
    operator, noise = run.plan.model.draw(n, rng, theta)
    if not run.directory.measurements("train").has("00000"):
        return operator, noise
    stored = run.observations("train")
    operator, noise = with_shared(operator, noise, stored.shared(theta))
    m = Measurement(torch.zeros(1), operator, noise)
    repeated = {
        path: row.expand(n, *row.shape[1:]).contiguous()
        for path, row in stored.repeated(theta).items()
    }
    m = m.with_tensors(m.tensors() | repeated)
    return m.A, m.noise


def _constant(run: Context, theta: Mapping[str, float], paths: Set[str]) -> Set[str]:
    """Returns the tensors of operator and noise that are the same for all training observations."""
    if not run.directory.measurements("train").has("00000"):
        return paths
    stored = run.observations("train")
    return stored.shared(theta).keys() | stored.repeated(theta).keys()


def new_observations(run: Context, tensors: Mapping[str, Tensor]) -> Measurement:
    """Completes new observations with the operator and the noise of the recipe.

    Args:
        run: The run.
        tensors: `y`, shape (N, *measurement shape), and the other tensors that the measurements of
            the run have ("A.mask", "noise.sigma"). Those may be left out that are the same for all
            training observations; they are taken from the run's measurements.

    Raises:
        DataError: If a tensor is missing, unknown, or of the wrong shape or number type.
    """
    if "y" not in tensors or not tensors["y"].numel():
        raise DataError("there are no observations: a tensor named y is needed")
    y = _numbers("y", tensors["y"], torch.zeros(()))
    if not y.ndim:
        raise DataError("'y' has no dimensions: its shape is (N, *measurement shape)")
    theta = believed(run)
    drawn = (draw_like_training(run, len(y), Rng.generator("restore", k), theta) for k in range(2))
    one, two = (Measurement(y, *both) for both in drawn)
    known, again = one.tensors(), two.tensors()
    constant = _constant(run, theta, known.keys())
    for name in tensors.keys() - known.keys():
        raise DataError(f"there is no tensor '{name}' (known: {', '.join(known)})")
    for name, tensor in known.items():
        if name in tensors or name == "y":
            continue
        anew = not torch.equal(tensor, again[name])
        if anew or name not in constant:
            why = "is drawn anew for each observation by this recipe"
            why = why if anew else "differs between the observations of this run"
            raise DataError(f"'{name}' {why}: give it, shape {tuple(tensor.shape)}, beside y")
    given = {name: _numbers(name, tensor, known[name]) for name, tensor in tensors.items()}
    m = one.with_tensors({**known, **given})
    expected = one.A(torch.zeros(len(y), *run.shape)).shape
    for name, tensor in m.tensors().items():
        wanted = tuple(expected if name == "y" else known[name].shape)
        if tuple(tensor.shape) != wanted:
            raise DataError(f"'{name}' has the shape {tuple(tensor.shape)}, not {wanted}")
        if bad := tensor.numel() - int(tensor.isfinite().sum()):
            raise DataError(
                f"'{name}' has values that are not finite (NaN or infinity): {bad} of"
                f" {tensor.numel()}"
            )
    return m.completed()


def _numbers(name: str, given: Tensor, like: Tensor) -> Tensor:
    """Returns a tensor that was given from outside, in the type of one that is drawn.

    Args:
        name: Its name, for messages.
        given: The tensor, of any type.
        like: What the recipe draws in its place.

    Raises:
        DataError: If something would be lost, or a parameter of the noise is negative.
    """
    if given.is_complex() and not like.is_complex():
        raise DataError(
            f"'{name}' is complex, and real numbers are needed: give the real and the imaginary"
            " part as the operator of the recipe returns them"
        )
    try:
        found = given.to(like.dtype)
    except RuntimeError as error:
        kind = str(given.dtype).removeprefix("torch.")
        raise DataError(f"'{name}' of type {kind} cannot be used: {error}") from error
    ordered = found.is_floating_point() and name.startswith("noise.")
    if ordered and bool((found < 0).any()) and not bool((like < 0).any()):
        raise DataError(f"'{name}' has negative values; it is a parameter of the noise")
    return found
