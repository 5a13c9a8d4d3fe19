"""invem learns a clean diffusion prior from corrupted observations by expectation-maximisation, and
restores with it.

The names below are everything that a plugin needs. They are loaded when first used, so that `import
invem` is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from invem.errors import (
    DataError,
    InvemError,
    MissingExtra,
    NumericalError,
    PluginError,
    RecipeError,
    ResourceError,
    Stopped,
    Unsupported,
    suggest,
)
from invem.hookspecs import examples, hookimpl

if TYPE_CHECKING:
    from invem import report
    from invem.batched import Batched, Index, Rng, shared, wide
    from invem.compare import (
        canonical,
        directions,
        frechet_distance,
        inside,
        principal,
        ranks,
        sliced_wasserstein,
    )
    from invem.compose import LinearStack, LinearSum, Stack, Sum, stack, total
    from invem.dataset import Dataset
    from invem.denoiser import (
        Denoiser,
        GaussianDenoiser,
        MixtureDenoiser,
        Preconditioned,
        Several,
        level,
        prior_of,
    )
    from invem.diffusion import (
        Denoise,
        Stepping,
        calls,
        generate,
        heun,
        integrate,
        multistep,
        predict_correct,
        reverse,
        start,
        start_given,
    )
    from invem.gaussian import Gaussian
    from invem.interpolant import Interpolant, Interpolating
    from invem.kspace import fourier, fourier_adjoint, kspace_mask
    from invem.likelihood import nearest, nearest_draw, pull, sharpness, strength
    from invem.linalg import DPLR, Krylov, Solution, cg, gmres, least_norm, sqrt_matvec
    from invem.linear import (
        Boundary,
        CircularConvolution,
        Convolution,
        Mask,
        Matrix,
        Separable,
        blur,
    )
    from invem.measurement import Example, Measurement, conditioning, remeasure
    from invem.metric import Metric, Outcome
    from invem.mixture import Conditioned, FactorMixture, Mixture, PosteriorMoments
    from invem.noise import NoiseModel
    from invem.objective import Objective, edm_weight, matching, noise_levels
    from invem.operator import (
        SVD,
        Chain,
        LinearChain,
        LinearOperator,
        Operator,
        OperatorLaw,
        chain,
        image_shape,
    )
    from invem.particles import choose, resample
    from invem.sampler import GuidedSampler, PosteriorSampler
    from invem.schedule import Geometric, Karras, Schedule
    from invem.tomography import Geometry, backproject, project
    from invem.tweedie import Covariance, Local, back, condition, linearised, local, prior_draw

__all__ = [
    "DPLR",
    "SVD",
    "Batched",
    "Boundary",
    "Chain",
    "CircularConvolution",
    "Conditioned",
    "Convolution",
    "Covariance",
    "DataError",
    "Dataset",
    "Denoise",
    "Denoiser",
    "Example",
    "FactorMixture",
    "Gaussian",
    "GaussianDenoiser",
    "Geometric",
    "Geometry",
    "GuidedSampler",
    "Index",
    "Interpolant",
    "Interpolating",
    "InvemError",
    "Karras",
    "Krylov",
    "LinearChain",
    "LinearOperator",
    "LinearStack",
    "LinearSum",
    "Local",
    "Mask",
    "Matrix",
    "Measurement",
    "Metric",
    "MissingExtra",
    "Mixture",
    "MixtureDenoiser",
    "NoiseModel",
    "NumericalError",
    "Objective",
    "Operator",
    "OperatorLaw",
    "Outcome",
    "PluginError",
    "PosteriorMoments",
    "PosteriorSampler",
    "Preconditioned",
    "RecipeError",
    "ResourceError",
    "Rng",
    "Schedule",
    "Separable",
    "Several",
    "Solution",
    "Stack",
    "Stepping",
    "Stopped",
    "Sum",
    "Unsupported",
    "back",
    "backproject",
    "blur",
    "calls",
    "canonical",
    "cg",
    "chain",
    "choose",
    "condition",
    "conditioning",
    "directions",
    "edm_weight",
    "examples",
    "fourier",
    "fourier_adjoint",
    "frechet_distance",
    "generate",
    "gmres",
    "heun",
    "hookimpl",
    "image_shape",
    "inside",
    "integrate",
    "kspace_mask",
    "least_norm",
    "level",
    "linearised",
    "local",
    "matching",
    "multistep",
    "nearest",
    "nearest_draw",
    "noise_levels",
    "predict_correct",
    "principal",
    "prior_draw",
    "prior_of",
    "project",
    "pull",
    "ranks",
    "remeasure",
    "report",
    "resample",
    "reverse",
    "shared",
    "sharpness",
    "sliced_wasserstein",
    "sqrt_matvec",
    "stack",
    "start",
    "start_given",
    "strength",
    "suggest",
    "total",
    "wide",
]

__version__ = "0.1.0"

_MODULES = {
    "batched": ("Batched", "Index", "Rng", "shared", "wide"),
    "compare": (
        "canonical",
        "directions",
        "frechet_distance",
        "inside",
        "principal",
        "ranks",
        "sliced_wasserstein",
    ),
    "compose": ("LinearStack", "LinearSum", "Stack", "Sum", "stack", "total"),
    "dataset": ("Dataset",),
    "denoiser": (
        "Denoiser",
        "GaussianDenoiser",
        "MixtureDenoiser",
        "Preconditioned",
        "Several",
        "level",
        "prior_of",
    ),
    "diffusion": (
        "Denoise",
        "Stepping",
        "calls",
        "generate",
        "heun",
        "integrate",
        "multistep",
        "predict_correct",
        "reverse",
        "start",
        "start_given",
    ),
    "interpolant": ("Interpolant", "Interpolating"),
    "likelihood": ("nearest", "nearest_draw", "pull", "sharpness", "strength"),
    "tweedie": ("Covariance", "Local", "back", "condition", "linearised", "local", "prior_draw"),
    "mixture": ("Conditioned", "FactorMixture", "Mixture", "PosteriorMoments"),
    "gaussian": ("Gaussian",),
    "linalg": ("DPLR", "Krylov", "Solution", "cg", "gmres", "least_norm", "sqrt_matvec"),
    "kspace": ("fourier", "fourier_adjoint", "kspace_mask"),
    "linear": (
        "Boundary",
        "CircularConvolution",
        "Convolution",
        "Mask",
        "Matrix",
        "Separable",
        "blur",
    ),
    "measurement": ("Example", "Measurement", "conditioning", "remeasure"),
    "metric": ("Metric", "Outcome"),
    "noise": ("NoiseModel",),
    "objective": ("Objective", "edm_weight", "matching", "noise_levels"),
    "operator": (
        "SVD",
        "Chain",
        "LinearChain",
        "LinearOperator",
        "Operator",
        "OperatorLaw",
        "chain",
        "image_shape",
    ),
    "particles": ("choose", "resample"),
    "sampler": ("GuidedSampler", "PosteriorSampler"),
    "schedule": ("Geometric", "Karras", "Schedule"),
    "tomography": ("Geometry", "backproject", "project"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"invem.{_HOME[name]}"), name)
    if name == "report":
        return import_module("invem.report")
    raise AttributeError(f"module 'invem' has no attribute '{name}'")
