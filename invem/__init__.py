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
    from invem.capability import CAPABILITIES, Capability, meaning
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
    from invem.denoiser import Denoiser, Preconditioned, Wrapper, level
    from invem.diffusion import (
        Denoise,
        Stepping,
        calls,
        generate,
        heun,
        initial_state,
        integrate,
        multistep,
        posterior_state,
        predict_correct,
        reverse,
    )
    from invem.factor_mixture import Conditioned, FactorMixture
    from invem.gaussian import Gaussian
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
    from invem.mixture import Mixture, PosteriorMoments
    from invem.noise import NoiseModel
    from invem.objective import (
        ClosedFormObjective,
        Fitting,
        MakeNetwork,
        Objective,
        Observing,
        ParameterGroup,
        edm_weight,
        matching,
        noise_levels,
    )
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
    from invem.prior import (
        ClosedForm,
        Conditioning,
        ExactDenoiser,
        LinearConditioning,
        Prior,
        closed_form,
    )
    from invem.sampler import ChainSampler, GuidedSampler, PosteriorSampler
    from invem.schedule import Geometric, Karras, Schedule
    from invem.tweedie import Covariance, Local, back, condition, linearised, local, prior_draw

__all__ = [
    "CAPABILITIES",
    "DPLR",
    "SVD",
    "Batched",
    "Boundary",
    "Capability",
    "Chain",
    "ChainSampler",
    "CircularConvolution",
    "ClosedForm",
    "ClosedFormObjective",
    "Conditioned",
    "Conditioning",
    "Convolution",
    "Covariance",
    "DataError",
    "Dataset",
    "Denoise",
    "Denoiser",
    "ExactDenoiser",
    "Example",
    "FactorMixture",
    "Fitting",
    "Gaussian",
    "Geometric",
    "GuidedSampler",
    "Index",
    "InvemError",
    "Karras",
    "Krylov",
    "LinearChain",
    "LinearConditioning",
    "LinearOperator",
    "LinearStack",
    "LinearSum",
    "Local",
    "MakeNetwork",
    "Mask",
    "Matrix",
    "Measurement",
    "Metric",
    "MissingExtra",
    "Mixture",
    "NoiseModel",
    "NumericalError",
    "Objective",
    "Observing",
    "Operator",
    "OperatorLaw",
    "Outcome",
    "ParameterGroup",
    "PluginError",
    "PosteriorMoments",
    "PosteriorSampler",
    "Preconditioned",
    "Prior",
    "RecipeError",
    "ResourceError",
    "Rng",
    "Schedule",
    "Separable",
    "Solution",
    "Stack",
    "Stepping",
    "Stopped",
    "Sum",
    "Unsupported",
    "Wrapper",
    "back",
    "blur",
    "calls",
    "canonical",
    "cg",
    "chain",
    "closed_form",
    "condition",
    "conditioning",
    "directions",
    "edm_weight",
    "examples",
    "frechet_distance",
    "generate",
    "gmres",
    "heun",
    "hookimpl",
    "image_shape",
    "initial_state",
    "inside",
    "integrate",
    "least_norm",
    "level",
    "linearised",
    "local",
    "matching",
    "meaning",
    "multistep",
    "nearest",
    "nearest_draw",
    "noise_levels",
    "posterior_state",
    "predict_correct",
    "principal",
    "prior_draw",
    "pull",
    "ranks",
    "remeasure",
    "report",
    "reverse",
    "shared",
    "sharpness",
    "sliced_wasserstein",
    "sqrt_matvec",
    "stack",
    "strength",
    "suggest",
    "total",
    "wide",
]

__version__ = "0.1.0"

_MODULES = {
    "batched": (
        "Batched",
        "Index",
        "Rng",
        "shared",
        "wide",
    ),
    "capability": (
        "CAPABILITIES",
        "Capability",
        "meaning",
    ),
    "compare": (
        "canonical",
        "directions",
        "frechet_distance",
        "inside",
        "principal",
        "ranks",
        "sliced_wasserstein",
    ),
    "compose": (
        "LinearStack",
        "LinearSum",
        "Stack",
        "Sum",
        "stack",
        "total",
    ),
    "dataset": ("Dataset",),
    "denoiser": (
        "Denoiser",
        "Preconditioned",
        "Wrapper",
        "level",
    ),
    "diffusion": (
        "Denoise",
        "Stepping",
        "calls",
        "generate",
        "heun",
        "initial_state",
        "integrate",
        "multistep",
        "posterior_state",
        "predict_correct",
        "reverse",
    ),
    "gaussian": ("Gaussian",),
    "likelihood": (
        "nearest",
        "nearest_draw",
        "pull",
        "sharpness",
        "strength",
    ),
    "linalg": (
        "DPLR",
        "Krylov",
        "Solution",
        "cg",
        "gmres",
        "least_norm",
        "sqrt_matvec",
    ),
    "linear": (
        "Boundary",
        "CircularConvolution",
        "Convolution",
        "Mask",
        "Matrix",
        "Separable",
        "blur",
    ),
    "measurement": (
        "Example",
        "Measurement",
        "conditioning",
        "remeasure",
    ),
    "metric": (
        "Metric",
        "Outcome",
    ),
    "factor_mixture": ("Conditioned", "FactorMixture"),
    "mixture": ("Mixture", "PosteriorMoments"),
    "noise": ("NoiseModel",),
    "objective": (
        "ClosedFormObjective",
        "Fitting",
        "MakeNetwork",
        "Objective",
        "Observing",
        "ParameterGroup",
        "edm_weight",
        "matching",
        "noise_levels",
    ),
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
    "prior": (
        "ClosedForm",
        "Conditioning",
        "ExactDenoiser",
        "LinearConditioning",
        "Prior",
        "closed_form",
    ),
    "sampler": (
        "ChainSampler",
        "GuidedSampler",
        "PosteriorSampler",
    ),
    "schedule": (
        "Geometric",
        "Karras",
        "Schedule",
    ),
    "tweedie": (
        "Covariance",
        "Local",
        "back",
        "condition",
        "linearised",
        "local",
        "prior_draw",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"invem.{_HOME[name]}"), name)
    if name == "report":
        return import_module("invem.report")
    raise AttributeError(f"module 'invem' has no attribute '{name}'")
