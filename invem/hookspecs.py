"""The hooks that a plugin may implement; each returns ``{name: factory}``.

A factory is a callable, or the string ``"module:attribute"``, so that listing the components
imports nothing. Its keyword-only parameters are the options of the recipe. Their annotations are
validated strictly.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pluggy

__all__ = ["HOOKS", "FilePath", "IsPath", "examples", "hookimpl", "hookspec"]

hookspec = pluggy.HookspecMarker("invem")
hookimpl = pluggy.HookimplMarker("invem")

Factories = Mapping[str, str | Callable[..., Any]]
Factory = TypeVar("Factory", bound=Callable[..., Any])


class IsPath:
    """Marks the annotation of an option that names a file or a folder."""

    def __repr__(self) -> str:
        return "a file or a folder"


FilePath = Annotated[str, IsPath()]
"""An option that names a file or a folder.

The component is given an absolute path. In a recipe the option is relative to the folder of the
recipe, on the command line and in Python to the working directory.
"""


def examples(
    *options: Mapping[str, Any] | Callable[[tuple[int, ...], Path], Mapping[str, Any]],
) -> Callable[[Factory], Factory]:
    """Names options that the contracts test besides the defaults.

    A component that has an option without a default needs at least one. Options that name a file
    are a function of the shape of the signal and of a folder to write the file in.
    """

    def mark(factory: Factory) -> Factory:
        factory.__invem_examples__ = options  # type: ignore[attr-defined]
        return factory

    return mark


@hookspec
def invem_operators() -> Factories:
    """Forward operators: ``(n, shape, rng, *, options) -> Operator``."""
    raise AssertionError


@hookspec
def invem_noises() -> Factories:
    """Noises: ``(n, measurement_shape, rng, *, options) -> NoiseModel``."""
    raise AssertionError


@hookspec
def invem_networks() -> Factories:
    """Networks: ``(shape, *, options) -> nn.Module``, or a whole Denoiser.

    A module maps (x, c_noise, cond) to the shape of x.
    """
    raise AssertionError


@hookspec
def invem_samplers() -> Factories:
    """Posterior samplers: ``(*, options) -> PosteriorSampler``."""
    raise AssertionError


@hookspec
def invem_objectives() -> Factories:
    """M-step objectives: ``(*, options) -> Objective``."""
    raise AssertionError


@hookspec
def invem_datasets() -> Factories:
    """Data sets: ``(split, *, options) -> Dataset``."""
    raise AssertionError


@hookspec
def invem_metrics() -> Factories:
    """Metrics: ``(*, options) -> Metric``."""
    raise AssertionError


@hookspec
def invem_schedules() -> Factories:
    """Noise schedules: ``(*, options) -> Schedule``."""
    raise AssertionError


@hookspec
def invem_stops() -> Factories:
    """Stopping rules of phases: ``(*, options) -> StoppingRule``."""
    raise AssertionError


@hookspec
def invem_formats() -> Factories:
    """File formats of observations and results: ``(*, options) -> FileFormat``."""
    raise AssertionError


@hookspec
def invem_figures() -> Factories:
    """Figures of the report: ``() -> Figure``."""
    raise AssertionError


HOOKS = {
    "operators": invem_operators,
    "noises": invem_noises,
    "networks": invem_networks,
    "samplers": invem_samplers,
    "objectives": invem_objectives,
    "datasets": invem_datasets,
    "metrics": invem_metrics,
    "schedules": invem_schedules,
    "stops": invem_stops,
    "formats": invem_formats,
    "figures": invem_figures,
}
