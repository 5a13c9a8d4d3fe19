"""The keys of a recipe, their types and their defaults.

A component is written as its name with its options beside it. The options are checked later, when
the component is known.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from invem.config.messages import describe, hint

__all__ = [
    "INLINE",
    "Compute",
    "Evaluate",
    "Fit",
    "Model",
    "Part",
    "Phase",
    "Recipe",
    "WithOptions",
    "allowed_keys",
    "dump",
    "json_schema",
    "keys_of",
    "model_inside",
]

INLINE = "options beside the name"
"""The validation context of plain data in YAML shape, where options stand beside the other keys."""

Count = Annotated[int, Field(ge=1, le=10**12)]


class Model(BaseModel):
    """Strict and frozen: unknown keys, wrong types and infinite numbers are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


def _open_schema(json: dict[str, Any]) -> None:
    del json["properties"]["options"]
    json["additionalProperties"] = True


def _part_schema(json: dict[str, Any]) -> None:
    _open_schema(json)
    mapping = dict(json)
    json.clear()
    json["anyOf"] = [{"type": "string"}, mapping]


class WithOptions(Model):
    """A model whose unknown keys are the options of a component.

    In Python they are given as `options`. In YAML, and in the result of `model_dump`, they stand
    beside the other keys.
    """

    options: dict[str, Any] = Field(default={}, description="The options of the component.")

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any, info: ValidationInfo) -> Any:
        if info.context != INLINE or not isinstance(value, dict):
            return value
        own = cls.model_fields.keys() - {"options"}
        known = {key: item for key, item in value.items() if key in own}
        return {**known, "options": {key: item for key, item in value.items() if key not in own}}

    @model_serializer(mode="wrap")
    def _scatter(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = handler(self)
        options = data.pop("options")
        return {**data, **options}


class Part(WithOptions):
    """A component: its name and its options. In YAML a name alone is enough."""

    model_config = ConfigDict(json_schema_extra=_part_schema)

    name: str = Field(min_length=1, description="The component's name, as `invem ls` lists it.")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Fit(WithOptions):
    """How a phase trains the denoiser. Every other key is an option of the objective."""

    model_config = ConfigDict(json_schema_extra=_open_schema)

    objective: str = Field(min_length=1, description="The name of the objective.")
    on: Literal["draws", "observations", "clean"] | None = Field(
        default=None,
        description="What the fit learns from: posterior draws, observations or clean images.",
    )
    steps: int = Field(default=1000, ge=1, le=1000000000, description="Gradient steps per round.")
    batch: int = Field(default=128, ge=1, le=1048576, description="Examples per gradient step.")
    lr: float = Field(default=1e-3, gt=0, le=1e3, description="Learning rate after the warm-up.")
    decay: Literal["constant", "cosine", "linear"] = Field(
        default="constant", description="How the learning rate falls within a round."
    )
    warmup: int = Field(
        default=0,
        ge=0,
        le=1000000000,
        description="Steps over which the learning rate rises from zero.",
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1e3, description="Decoupled weight decay.")
    ema: float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="Decay of the moving average of the weights, per step.",
    )
    clip: float = Field(default=1.0, gt=0, le=1e9, description="Largest norm of the gradient.")
    start: Literal["ema", "warm", "fresh"] = Field(
        default="ema",
        description="Initial weights of a round: the averaged, the raw or newly initialised ones.",
    )
    keep: bool = Field(
        default=False,
        description=(
            "Whether optimiser and moving average carry over from the previous round;"
            " otherwise they are reset."
        ),
    )
    clean: float = Field(
        default=0.0, ge=0, lt=1, description="Share of clean images in each batch."
    )
    flip: Literal["none", "horizontal", "both"] = Field(
        default="none",
        description="Along which axes a reconstructed image is mirrored at random.",
    )
    shift: int = Field(
        default=0,
        ge=0,
        le=10000,
        description=(
            "Largest random shift of a reconstructed image, in pixels; the border is repeated."
        ),
    )
    moments: int = Field(
        default=64,
        ge=0,
        le=1000000,
        description="Rank of the Gaussian fitted to the training signals.",
    )
    checkpoint: int = Field(
        default=200, ge=1, le=1000000000, description="Steps between checkpoints."
    )


class Phase(Model):
    """Rounds of sampling (the E-step), of training (the M-step) or of both."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$", description="The phase's name, in kebab-case."
    )
    rounds: int = Field(default=1, ge=1, le=1000000, description="How often the phase is repeated.")
    sampler: Part | None = Field(
        default=None, description="The posterior sampler, for a phase that draws."
    )
    fit: Fit | None = Field(
        default=None, validate_default=True, description="The training, for a phase that learns."
    )
    network: Part | None = Field(
        default=None,
        description=(
            "The network that the phase trains, from the newest weights of the same network"
            " if there are any; null is the recipe's."
        ),
    )
    observations: Count | None = Field(
        default=None,
        description=(
            "How many observations each round uses, a new random subset each time; null is all."
        ),
    )
    draws: int = Field(default=1, ge=1, le=1000000, description="Posterior draws per observation.")
    batch: int = Field(
        default=128, ge=1, le=1048576, description="Observations that are sampled at once."
    )
    refresh: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description=(
            "Share of the draws that each round after the first replaces: 1 is batch EM, a"
            " small share online EM."
        ),
    )
    restart: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description=(
            "Noise level at which chains start, from the draw of the previous round; null is"
            " the sampler's own initialisation."
        ),
    )
    anneal: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default={},
        description="Options of the sampler by round: a list per option, whose last item stays.",
    )
    overlap: bool = Field(
        default=False,
        description=(
            "Whether the E-step of the next round runs during the M-step of this one, with"
            " the prior of the previous round."
        ),
    )
    calibrate: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] = Field(
        default={},
        description=(
            "Options of operator and noise that are estimated from the observations in each round,"
            " with their bounds."
        ),
    )
    stop: Part = Field(
        default=Part(name="never"),
        description="The rule that ends the phase before its last round, see below.",
    )

    @field_serializer("stop")
    def _short_stop(self, stop: Part) -> Any:
        """A rule without options is its name."""
        return {"name": stop.name, **stop.options} if stop.options else stop.name

    @field_validator("fit")
    @classmethod
    def _does_something(cls, fit: Fit | None, info: ValidationInfo) -> Fit | None:
        if fit is None and info.data.get("sampler", ...) is None:
            raise PydanticCustomError("recipe", "a phase needs a sampler, a fit or both")
        return fit


class Evaluate(Model):
    """What is measured after a round."""

    metrics: list[Part] | None = Field(
        default=None,
        description=(
            "The metrics; null is those of the defaults that fit the recipe, and with an empty"
            " list nothing is evaluated."
        ),
    )
    samples: int = Field(default=256, ge=0, description="Unconditional samples.")
    observations: int = Field(default=128, ge=0, description="Held-out observations.")
    draws: int = Field(
        default=2, ge=1, le=1000000, description="Posterior draws per held-out observation."
    )
    posterior: int = Field(
        default=32,
        ge=0,
        description=(
            "Posterior draws of each of the first 8 held-out observations, once, at the end of the"
            " run."
        ),
    )
    every: int = Field(
        default=1,
        ge=1,
        le=1000000,
        description="Rounds between evaluations; a closed-form phase has one, at its end.",
    )
    phases: list[str] | None = Field(
        default=None, description="The names of the phases that are evaluated; null is all."
    )
    steps: int = Field(
        default=32, ge=1, le=1000000000, description="Noise levels of the unconditional sampler."
    )
    sampler: Part | None = Field(
        default=None, description="The posterior sampler; null is the phase's own."
    )
    batch: int = Field(
        default=256, ge=1, le=1048576, description="Signals that are sampled at once."
    )


class Compute(Model):
    """Where and how the numbers are computed."""

    device: str = Field(
        default="auto", description="The device: auto, cpu, cuda, cuda:N for the N-th GPU, or mps."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="The number format of the network's arithmetic."
    )
    compile: Literal["auto"] | bool = Field(
        default="auto", description="Whether the network is compiled."
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] | None = Field(
        default="auto",
        description=(
            "CPU threads; auto is the number with which a gradient step is fastest, measured when"
            " the run begins; null leaves the choice to PyTorch."
        ),
    )

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", device):
            known = ["auto", "cpu", "cuda", "cuda:0", "mps"]
            raise PydanticCustomError(
                "recipe", "{told}", {"told": f"got {describe(device)}{hint(device, known)}"}
            )
        return device


class Recipe(Model):
    """A whole run."""

    seed: int = Field(default=0, ge=0, description="The seed of all random numbers.")
    data: Part | None = Field(
        default=None, description="The data set of clean signals; they are measured first."
    )
    observations: Part | None = Field(
        default=None,
        validate_default=True,
        description="The data set of measurements that exist already.",
    )
    operator: Part = Field(description="How signals are measured.")
    noise: Part = Field(description="The noise of the measurements.")
    network: Part = Field(description="The denoiser's network.")
    count: Count | None = Field(default=None, description="Training observations; null is all.")
    clean: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        default=0, description="How many clean signals the recipe may train on."
    )
    sigma_data: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        default="auto",
        description="Standard deviation of the signals, for the preconditioning of the network.",
    )
    prior: str | None = Field(
        default=None,
        min_length=1,
        description=(
            "The initial prior of the first phase: the directory of a run, or `network` for"
            " the network as it was built."
        ),
    )
    assume: dict[str, float] = Field(
        default={},
        description=(
            "Options of operator and noise that the run assumes at first, where they differ"
            " from the true ones by which `data` are measured."
        ),
    )
    phases: list[Phase] = Field(min_length=1, description="What is done, in order.")
    evaluate: Evaluate = Field(default=Evaluate(), description="What is measured after a round.")
    compute: Compute = Field(
        default=Compute(), description="Where and how the numbers are computed."
    )
    smoke: dict[str, Any] = Field(
        default={},
        description="Dotted keys and the values that `--smoke` gives them, to run in seconds.",
    )
    requires: list[str] = Field(
        default=[], description="Distributions the recipe needs, such as `invem-ct>=0.3`."
    )

    @field_validator("observations")
    @classmethod
    def _one_source(cls, observations: Part | None, info: ValidationInfo) -> Part | None:
        if "data" in info.data and (info.data["data"] is None) == (observations is None):
            raise PydanticCustomError("recipe", "exactly one of data and observations is needed")
        return observations

    @field_validator("phases")
    @classmethod
    def _unique_names(cls, phases: list[Phase]) -> list[Phase]:
        names = [phase.name for phase in phases]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise PydanticCustomError("recipe", f"two phases have the name '{twice}'")
        return phases


def dump(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe as plain data in YAML shape, with every default written out."""
    return recipe.model_dump()


def json_schema() -> dict[str, Any]:
    """Returns the JSON schema of a recipe file that extends no other."""
    return Recipe.model_json_schema()


def keys_of(model: type[Model]) -> list[str]:
    """Returns the keys that a mapping of this model has in YAML, without those of options."""
    return [name for name in model.model_fields if name != "options"]


def model_inside(annotation: Any) -> type[Model] | None:
    """Returns the model inside a type annotation such as `list[Phase] | None`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    return next((found for inner in get_args(annotation) if (found := model_inside(inner))), None)


def allowed_keys(path: Sequence[str | int]) -> list[str]:
    """Returns the keys that a recipe file may have in the mapping at a path."""
    model: type[Model] | None = Recipe
    for key in path:
        if isinstance(key, str) and model is not None:
            model = model_inside(model.model_fields[key].annotation)
    keys = [] if model is None else keys_of(model)
    return keys if path else [*keys, "extends"]
