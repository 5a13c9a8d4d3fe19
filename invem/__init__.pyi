"""The public names of invem, each with the module that it is loaded from when first used."""

from .batched import (
    Batched as Batched,
    Index as Index,
    Rng as Rng,
    shared as shared,
    wide as wide,
)
from .compare import (
    canonical as canonical,
    directions as directions,
    frechet_distance as frechet_distance,
    inside as inside,
    principal as principal,
    ranks as ranks,
    sliced_wasserstein as sliced_wasserstein,
)
from .compose import (
    LinearStack as LinearStack,
    LinearSum as LinearSum,
    Stack as Stack,
    Sum as Sum,
    stack as stack,
    total as total,
)
from .dataset import (
    Dataset as Dataset,
)
from .denoiser import (
    Denoiser as Denoiser,
    GaussianDenoiser as GaussianDenoiser,
    MixtureDenoiser as MixtureDenoiser,
    Preconditioned as Preconditioned,
    Several as Several,
    level as level,
    prior_of as prior_of,
)
from .diffusion import (
    Denoise as Denoise,
    Stepping as Stepping,
    calls as calls,
    generate as generate,
    heun as heun,
    integrate as integrate,
    multistep as multistep,
    predict_correct as predict_correct,
    reverse as reverse,
    start as start,
    start_given as start_given,
)
from .errors import (
    DataError as DataError,
    InvemError as InvemError,
    MissingExtra as MissingExtra,
    NumericalError as NumericalError,
    PluginError as PluginError,
    RecipeError as RecipeError,
    ResourceError as ResourceError,
    Stopped as Stopped,
    Unsupported as Unsupported,
    suggest as suggest,
)
from .gaussian import (
    Gaussian as Gaussian,
)
from .hookspecs import (
    examples as examples,
    hookimpl as hookimpl,
)
from .interpolant import (
    Interpolant as Interpolant,
    Interpolating as Interpolating,
)
from .kspace import (
    fourier as fourier,
    fourier_adjoint as fourier_adjoint,
    kspace_mask as kspace_mask,
)
from .likelihood import (
    nearest as nearest,
    nearest_draw as nearest_draw,
    pull as pull,
    sharpness as sharpness,
    strength as strength,
)
from .linalg import (
    DPLR as DPLR,
    Krylov as Krylov,
    Solution as Solution,
    cg as cg,
    gmres as gmres,
    least_norm as least_norm,
    sqrt_matvec as sqrt_matvec,
)
from .linear import (
    Boundary as Boundary,
    CircularConvolution as CircularConvolution,
    Convolution as Convolution,
    Mask as Mask,
    Matrix as Matrix,
    Separable as Separable,
    blur as blur,
)
from .measurement import (
    Example as Example,
    Measurement as Measurement,
    conditioning as conditioning,
    remeasure as remeasure,
)
from .metric import (
    Metric as Metric,
    Outcome as Outcome,
)
from .mixture import (
    Conditioned as Conditioned,
    FactorMixture as FactorMixture,
    Mixture as Mixture,
    PosteriorMoments as PosteriorMoments,
)
from .noise import (
    NoiseModel as NoiseModel,
)
from .objective import (
    Objective as Objective,
    edm_weight as edm_weight,
    matching as matching,
    noise_levels as noise_levels,
)
from .operator import (
    SVD as SVD,
    Chain as Chain,
    LinearChain as LinearChain,
    LinearOperator as LinearOperator,
    Operator as Operator,
    OperatorLaw as OperatorLaw,
    chain as chain,
    image_shape as image_shape,
)
from .particles import (
    choose as choose,
    resample as resample,
)
from .sampler import (
    GuidedSampler as GuidedSampler,
    PosteriorSampler as PosteriorSampler,
)
from .schedule import (
    Geometric as Geometric,
    Karras as Karras,
    Schedule as Schedule,
)
from .tomography import (
    Geometry as Geometry,
    backproject as backproject,
    project as project,
)
from .tweedie import (
    Covariance as Covariance,
    Local as Local,
    back as back,
    condition as condition,
    linearised as linearised,
    local as local,
    prior_draw as prior_draw,
)

__version__: str
