"""The names at the top: the Python door, and what nearly every plugin needs. Each is loaded when it
is first used. The rest of the vocabulary is in public modules: `invem.linalg`, `invem.objective`,
..."""

__version__: str

from .batched import Batched as Batched, Rng as Rng, shared as shared
from .dataset import Dataset as Dataset
from .denoiser import Denoiser as Denoiser, Preconditioned as Preconditioned
from .diffusion import generate as generate
from .door import (
    Restored as Restored,
    Run as Run,
    open as open,
    plan as plan,
    run as run,
)
from .errors import (
    DataError as DataError,
    InvemError as InvemError,
    NumericalError as NumericalError,
    PluginError as PluginError,
    RecipeError as RecipeError,
    Unsupported as Unsupported,
)
from .factor_mixture import FactorMixture as FactorMixture
from .fileformat import FileFormat as FileFormat
from .gaussian import Gaussian as Gaussian
from .hookspecs import FilePath as FilePath, examples as examples, hookimpl as hookimpl
from .linear import Mask as Mask, Matrix as Matrix
from .measurement import Example as Example, Measurement as Measurement
from .metric import Metric as Metric, Outcome as Outcome
from .mixture import Mixture as Mixture
from .noise import NoiseModel as NoiseModel
from .objective import ClosedFormObjective as ClosedFormObjective, Objective as Objective
from .operator import LinearOperator as LinearOperator, Operator as Operator
from .prior import Prior as Prior
from .priorfile import load_prior as load_prior, save_prior as save_prior
from .sampler import (
    ChainSampler as ChainSampler,
    GuidedSampler as GuidedSampler,
    PosteriorSampler as PosteriorSampler,
)
from .schedule import Karras as Karras, Schedule as Schedule
from .stopping import StoppingRule as StoppingRule
from .survey import Survey as Survey, inspect as inspect
