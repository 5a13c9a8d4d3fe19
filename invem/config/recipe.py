"""A recipe: what is measured, what is learnt and how, checked before anything runs.

A component is named, with its options beside the name; they are checked later, against it.
"""

import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from invem.config import yaml
from invem.errors import RecipeError, suggest

__all__ = [
    "Compute",
    "Evaluate",
    "Fit",
    "Loaded",
    "Part",
    "Phase",
    "Recipe",
    "dump",
    "error",
    "explain",
    "load",
    "locate",
    "replace",
    "schema",
]

_INLINE = "options beside the name"
_MAX_PROBLEMS = 100
_MAX_PATH = 32
_MAX_SHOWN = 20

Count = Annotated[int, Field(ge=1)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


def _open_schema(json: dict[str, Any]) -> None:
    del json["properties"]["options"]
    json["additionalProperties"] = True


def _part_schema(json: dict[str, Any]) -> None:
    _open_schema(json)
    mapping = dict(json)
    json.clear()
    json["anyOf"] = [{"type": "string"}, mapping]


class _Open(_Model):
    """A model whose unknown keys are the options of a component.

    In Python they are given as `options`. In YAML, and from `model_dump`, they stand beside the
    other keys.
    """

    options: dict[str, Any] = Field(default={}, description="The options of the component.")

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any, info: ValidationInfo) -> Any:
        if info.context != _INLINE or not isinstance(value, dict):
            return value
        own = cls.model_fields.keys() - {"options"}
        known = {key: item for key, item in value.items() if key in own}
        return {**known, "options": {key: item for key, item in value.items() if key not in own}}

    @model_serializer(mode="wrap")
    def _scatter(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = handler(self)
        options = data.pop("options")
        return {**data, **options}


class Part(_Open):
    """A component: its name and its options. In YAML a name alone is enough."""

    model_config = ConfigDict(json_schema_extra=_part_schema)

    name: str = Field(min_length=1, description="The component's name, as `invem ls` lists it.")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Fit(_Open):
    """How a phase trains the denoiser. Every other key is an option of the objective."""

    model_config = ConfigDict(json_schema_extra=_open_schema)

    objective: str = Field(min_length=1, description="The name of the objective.")
    on: Literal["draws", "observations", "clean"] | None = Field(
        default=None,
        description="What is trained on: posterior draws, measurements or granted clean images.",
    )
    steps: int = Field(default=1000, ge=1, description="Gradient steps of a round.")
    batch: int = Field(default=128, ge=1, description="Examples of a gradient step.")
    lr: float = Field(default=1e-3, gt=0, description="Learning rate after the warm-up.")
    decay: Literal["constant", "cosine", "linear"] = Field(
        default="constant", description="How the learning rate falls over a round."
    )
    warmup: int = Field(
        default=0, ge=0, description="Steps over which the learning rate rises from zero."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay.")
    ema: float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="Decay of the moving average of the weights, per step.",
    )
    clip: float = Field(default=1.0, gt=0, description="Largest norm of the gradient.")
    start: Literal["ema", "warm", "fresh"] = Field(
        default="ema",
        description="Weights a round starts from: the averaged, the raw or newly drawn ones.",
    )
    keep: bool = Field(
        default=False,
        description=(
            "Whether optimiser and moving average go on from the round before; they begin anew"
            " otherwise."
        ),
    )
    clean: float = Field(
        default=0.0, ge=0, lt=1, description="Share of each batch that are granted clean images."
    )
    flip: Literal["none", "horizontal", "both"] = Field(
        default="none",
        description="Which axes of an image are mirrored at random, after its reconstruction.",
    )
    shift: int = Field(
        default=0,
        ge=0,
        description=(
            "Largest random shift of an image in pixels, after its reconstruction; the border is"
            " repeated."
        ),
    )
    moments: int = Field(
        default=64, ge=0, description="Rank of the Gaussian fitted to the training signals."
    )
    checkpoint: int = Field(default=200, ge=1, description="Steps between checkpoints.")


class Phase(_Model):
    """Rounds of sampling (the E-step), of training (the M-step) or of both."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$", description="The phase's name, in kebab-case."
    )
    rounds: int = Field(default=1, ge=1, description="How often the phase is repeated.")
    sampler: Part | None = Field(
        default=None, description="The posterior sampler, for a phase that draws."
    )
    fit: Fit | None = Field(
        default=None, validate_default=True, description="The training, for a phase that learns."
    )
    network: Part | None = Field(
        default=None,
        description=(
            "The network that the phase trains, from the newest weights of the same one if there"
            " are any; null is the recipe's."
        ),
    )
    observations: Count | None = Field(
        default=None,
        description="Size of the subset of the observations drawn anew in each round; null is all.",
    )
    draws: int = Field(default=1, ge=1, description="Posterior draws per observation.")
    batch: int = Field(default=128, ge=1, description="Observations that are sampled at once.")
    refresh: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description=(
            "Share of the draws that are drawn anew in each round after the first: 1 is batch EM, a"
            " small one online EM."
        ),
    )
    restart: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description=(
            "Noise level at which chains begin, from the draw of the round before; null is the"
            " sampler's own start."
        ),
    )
    anneal: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default={},
        description="Options of the sampler by round: a list for each, whose last item stays.",
    )
    overlap: bool = Field(
        default=False,
        description=(
            "Whether the E-step of the next round runs beside the M-step of this one, with the"
            " prior of the round before."
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
    def _short(self, stop: Part) -> Any:
        """A rule without options is its name."""
        return {"name": stop.name, **stop.options} if stop.options else stop.name

    @field_validator("fit")
    @classmethod
    def _does_something(cls, fit: Fit | None, info: ValidationInfo) -> Fit | None:
        if fit is None and info.data.get("sampler", ...) is None:
            raise PydanticCustomError("recipe", "a phase needs a sampler, a fit or both")
        return fit


class Evaluate(_Model):
    """What is measured after a round."""

    metrics: list[Part] = Field(default=[], description="The metrics.")
    samples: int = Field(default=256, ge=0, description="Unconditional samples.")
    observations: int = Field(default=128, ge=0, description="Held-out observations.")
    draws: int = Field(default=2, ge=1, description="Posterior draws per held-out observation.")
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
        description="Rounds between evaluations; a closed-form phase has one, at its end.",
    )
    phases: list[str] | None = Field(
        default=None, description="The phases that are evaluated, by name; null is all."
    )
    steps: int = Field(default=32, ge=1, description="Noise levels of the unconditional sampler.")
    sampler: Part | None = Field(
        default=None, description="The posterior sampler; null is the phase's own."
    )
    batch: int = Field(default=256, ge=1, description="Signals that are sampled at once.")


class Compute(_Model):
    """Where and how the numbers are computed."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="The device.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="The number format of the network's arithmetic."
    )
    compile: Literal["auto"] | bool = Field(
        default="auto", description="Whether the network is compiled."
    )
    threads: Count | None = Field(
        default=None, description="CPU threads; null leaves the choice to PyTorch."
    )


class Recipe(_Model):
    """A whole run."""

    seed: int = Field(default=0, ge=0, description="What every random number is derived from.")
    data: Part | None = Field(
        default=None, description="The data set of true signals, which are measured first."
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
            "What the first phase begins with: the directory of a run, or `network` for the network"
            " as it was built."
        ),
    )
    assume: dict[str, float] = Field(
        default={},
        description=(
            "Options of operator and noise that differ from the truth by which `data` are measured:"
            " what is believed at first."
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


@dataclass(frozen=True)
class Loaded:
    """A recipe and where each of its values was written.

    Attributes:
        recipe: The checked recipe.
        document: The file as it was read.
        source: The path of the file, as it was given.
        value: The recipe as plain data in YAML shape, after smoke and overrides.
        text: The text of the file.
        origins: The place of the values that do not come from the document at their own place.
    """

    recipe: Recipe
    document: yaml.Document
    source: str
    value: dict[str, Any]
    text: str
    origins: Mapping[yaml.Path, str]


def load(path: Path | str, overrides: Sequence[str] = (), smoke: bool = False) -> Loaded:
    """Reads and checks a recipe.

    Args:
        path: The YAML file.
        overrides: ``key.sub=value``; a list item is named by its index, a phase also by its name.
        smoke: Whether the recipe's `smoke` block is applied, before the overrides.

    Raises:
        RecipeError: Every problem, one per line, each with its place, its dotted path and what is
            allowed.
    """
    source = str(path)
    raw = _bytes(Path(path))
    document = yaml.load(raw, source)
    if not isinstance(document.value, dict):
        raise RecipeError(
            f"{_mark(document, ())}: a recipe is a mapping, got {_got(document.value)}"
        )
    edits = _Edits(document, deepcopy(document.value), {})
    if smoke:
        edits.smoke()
    edits.override(overrides)
    return edits.loaded(raw.decode("utf-8-sig"))


def replace(loaded: Loaded, overrides: Sequence[str]) -> Loaded:
    """Applies more overrides and checks the recipe again; raises as `load` does."""
    edits = _Edits(loaded.document, deepcopy(loaded.value), dict(loaded.origins))
    edits.override(overrides)
    return edits.loaded(loaded.text)


def locate(loaded: Loaded, path: yaml.Path, key: bool = False) -> str:
    """Returns where the value at a path was written: ``file:line:column`` or ``override
    'key=value'``.

    Args:
        loaded: The recipe.
        path: Keys and indices as in the YAML: options stand directly under the component.
        key: Whether the place of the key is meant, not that of the value.
    """
    return _locate(loaded.document, loaded.origins, path, key)


def error(loaded: Loaded, path: yaml.Path, message: str, key: bool = False) -> RecipeError:
    """Returns the error ``place: dotted.path: message`` about the value, or the key, at a path."""
    return RecipeError(_line(locate(loaded, path, key), path, message))


def dump(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe as plain data in YAML shape, with every default written out."""
    return recipe.model_dump()


def schema() -> dict[str, Any]:
    """Returns the JSON schema of a recipe file."""
    return Recipe.model_json_schema()


def explain(
    problems: ValidationError, value: Any, allowed: Callable[[yaml.Path], Sequence[str]]
) -> Iterator[tuple[yaml.Path, bool, str]]:
    """Puts what pydantic found into words.

    Args:
        problems: The failed validation.
        value: The data that was validated.
        allowed: The keys that the mapping at a path may have.

    Yields:
        Path of a problem in the data, whether the key (not the value) is at fault, and the message.
    """
    details = problems.errors(include_url=False)
    for path, group in itertools.groupby(details, lambda detail: _path(detail, value)):
        yield _words(path, list(group), allowed)


@dataclass
class _Edits:
    """The changes of one recipe's plain data, and the problems met so far."""

    document: yaml.Document
    value: dict[str, Any]
    origins: dict[yaml.Path, str]

    def __post_init__(self) -> None:
        self.problems: list[str] = []

    def smoke(self) -> None:
        block = self.value.get("smoke")
        for dotted, value in block.items() if isinstance(block, dict) else ():
            at: yaml.Path = ("smoke", dotted)
            try:
                path = _assign(self.value, dotted, deepcopy(value))
            except _Unknown as unknown:
                place = _mark(self.document, at, key=True)
                self.problems.append(_line(place, ("smoke",), str(unknown)))
            else:
                self._record(path, _mark(self.document, at))

    def override(self, overrides: Sequence[str]) -> None:
        for item in overrides:
            if len(self.problems) > _MAX_PROBLEMS:
                return
            place = f"override '{yaml.printable(item, 80)}'"
            dotted, equals, text = item.partition("=")
            if not (dotted and equals):
                self.problems.append(f"{place}: key=value is needed")
                continue
            try:
                self._record(_assign(self.value, dotted, yaml.scalar(text, place)), place)
            except _Unknown as unknown:
                self.problems.append(f"{place}: {unknown}")
            except RecipeError as flaw:
                self.problems.append(str(flaw))

    def chain(self) -> None:
        """Writes out the short form of a chain, a list of operators."""
        if isinstance(self.value.get("operator"), list):
            self.value["operator"] = {"name": "chain", "of": self.value["operator"]}
            self._record(
                ("operator",),
                self.origins.get(("operator",)) or _mark(self.document, ("operator",)),
            )

    def loaded(self, text: str) -> Loaded:
        self.chain()
        recipe = self._validated()
        if recipe is None or self.problems:
            more = len(self.problems) - _MAX_PROBLEMS
            tail = ["... and more"] if more > 0 else []
            raise RecipeError("\n".join([*self.problems[:_MAX_PROBLEMS], *tail]))
        return Loaded(recipe, self.document, self.document.source, self.value, text, self.origins)

    def _record(self, path: yaml.Path, place: str) -> None:
        self.origins.pop(path, None)
        self.origins[path] = place

    def _validated(self) -> Recipe | None:
        try:
            return Recipe.model_validate(self.value, context=_INLINE)
        except ValidationError as flaws:
            for path, key, message in itertools.islice(
                explain(flaws, self.value, _allowed), _MAX_PROBLEMS + 1
            ):
                place = _locate(self.document, self.origins, path, key)
                self.problems.append(_line(place, path, message))
            return None


class _Unknown(Exception):
    """A dotted key leads nowhere."""


def _assign(root: dict[str, Any], dotted: str, value: Any) -> yaml.Path:
    """Sets the value at a dotted key and returns the path of the outermost node that is new."""
    names = dotted.split(".")
    if "" in names:
        raise _Unknown("the key has an empty part")
    if len(names) > _MAX_PATH:
        raise _Unknown(f"the key has more than {_MAX_PATH} parts")
    node: Any = root
    kind: Any = Recipe
    path: yaml.Path = ()
    made: yaml.Path | None = None
    for name in names[:-1]:
        key, inner_kind, empty = _step(node, kind, name, path)
        path = (*path, key)
        inner = node[key] if isinstance(node, list) else node.get(key)
        if inner is None and inner_kind is not None:
            inner, made = empty, made or path
        elif isinstance(inner, str) and inner_kind in (Part, Any):
            inner = {"name": inner}
        elif not isinstance(inner, dict | list):
            raise _Unknown(f"{_dotted(path)} has no parts")
        node[key] = inner
        node, kind = inner, inner_kind
    key, _, _ = _step(node, kind, names[-1], path)
    node[key] = value
    return made or (*path, key)


def _step(node: Any, kind: Any, name: str, path: yaml.Path) -> tuple[Any, Any, Any]:
    """Returns the key that a name means in a node, and the kind and the empty form of what is
    there."""
    if isinstance(node, list):
        return _index(node, name, path), kind, {}
    if kind is Any:
        return name, Any, {}
    if kind is None:
        raise _Unknown(f"{_dotted(path)} has no parts that can be set one by one")
    if name in _keys(kind):
        annotation = kind.model_fields[name].annotation
        return name, _kind(annotation), [] if get_origin(annotation) is list else {}
    if issubclass(kind, _Open):
        return name, Any, {}
    raise _Unknown(f"{_dotted((*path, name))}: {_unknown_key(name, _keys(kind))}")


def _index(items: list[Any], name: str, path: yaml.Path) -> int:
    if re.fullmatch(r"[0-9]{1,9}", name) and int(name) < len(items):
        return int(name)
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if path == ("phases",) and name in names:
        return names.index(name)
    allowed = [str(index) for index in range(min(len(items), _MAX_SHOWN))]
    if path == ("phases",):
        allowed += [
            yaml.printable(item, 60) for item in names[:_MAX_SHOWN] if isinstance(item, str)
        ]
    word = yaml.printable(name, 60)
    raise _Unknown(f"{_dotted(path)}: there is no item '{word}'{_hint(word, allowed)}")


def _kind(annotation: Any) -> Any:
    """Returns the model inside an annotation, None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, _Model):
        return annotation
    return next((kind for inner in get_args(annotation) if (kind := _kind(inner))), None)


def _keys(kind: type[_Model]) -> list[str]:
    return [name for name in kind.model_fields if name != "options"]


def _allowed(path: yaml.Path) -> list[str]:
    kind: Any = Recipe
    for key in path:
        if isinstance(key, str):
            kind = _kind(kind.model_fields[key].annotation)
    return _keys(kind)


def _path(detail: ErrorDetails, value: Any) -> yaml.Path:
    """Returns an error's place without what is not in the data: pydantic also names the arms of a
    union."""
    path: yaml.Path = ()
    for key in detail["loc"]:
        entries: Any = dict(enumerate(value)) if isinstance(value, list) else value
        if not isinstance(entries, dict) or key not in entries:
            return (*path, key) if detail["type"] == "missing" else path
        path, value = (*path, key), entries[key]
    return path


_NEEDED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "list_type": "a list",
    "model_type": "a mapping",
    "string_pattern_mismatch": "a word of lower-case letters, digits and hyphens",
    "string_too_short": "some text",
    "string_type": "text",
    "too_short": "at least one item",
}


def _words(
    path: yaml.Path, details: list[ErrorDetails], allowed: Callable[[yaml.Path], Sequence[str]]
) -> tuple[yaml.Path, bool, str]:
    detail = details[0]
    if detail["type"] == "missing":
        return path, False, "missing key"
    if detail["type"] == "extra_forbidden":
        return path, True, _unknown_key(str(path[-1]), allowed(path[:-1]))
    got = _got(detail["input"])
    words: list[str] = []
    choices: list[str] = []
    for each in details:
        context = each.get("ctx", {})
        if each["type"] == "literal_error":
            choices += re.findall(r"'([^']*)'", context["expected"])
        elif each["type"] == "model_type" and context["class_name"] == "Part":
            words.append("a name or a mapping with a name")
        elif each["type"] in _NEEDED:
            words.append(_NEEDED[each["type"]].format(**context))
        else:
            return path, False, yaml.printable(each["msg"])
    word = detail["input"] if isinstance(detail["input"], str) else ""
    if not words:
        return path, False, f"got {got}{_hint(word, choices)}"
    needed = " or ".join([*words, *(f"'{choice}'" for choice in choices)])
    return path, False, f"got {got}, {needed} is needed{suggest(word[:60], choices)}"


def _got(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return f"'{yaml.printable(value, 60)}'"
        case dict():
            return "a mapping"
        case list():
            return "a list" if value else "an empty list"
        case _:
            return yaml.printable(str(value), 60)


def _unknown_key(key: str, allowed: Sequence[str]) -> str:
    return f"unknown key{_hint(key, allowed)}"


def _hint(word: str, allowed: Sequence[str]) -> str:
    return f"{suggest(word[:60], allowed) or '.'} Allowed: {', '.join(allowed)}"


def _dotted(path: yaml.Path) -> str:
    return ".".join(yaml.printable(str(key), 60) for key in path)


def _line(place: str, path: yaml.Path, message: str) -> str:
    return ": ".join([place, *([_dotted(path)] if path else []), message])


def _mark(document: yaml.Document, path: yaml.Path, key: bool = False) -> str:
    marks = document.keys if key and path in document.keys else document.marks
    nearest = next(path[:size] for size in range(len(path), -1, -1) if path[:size] in marks)
    line, column = marks[nearest]
    return f"{yaml.printable(document.source)}:{line}:{column}"


def _locate(
    document: yaml.Document, origins: Mapping[yaml.Path, str], path: yaml.Path, key: bool = False
) -> str:
    latest = [place for made, place in origins.items() if path[: len(made)] == made][-1:]
    return latest[0] if latest else _mark(document, path, key)


def _bytes(path: Path) -> bytes:
    shown = yaml.printable(str(path))
    try:
        with open(path, "rb") as file:
            return file.read(yaml.MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"{shown}: there is no such file{_nearby(path)}") from None
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else None
        raise RecipeError(f"{shown}: cannot be read: {reason or problem}") from None


def _nearby(path: Path) -> str:
    folders = [path.parent, path.parent / "recipes"]
    files = {file.name: file for folder in folders for file in folder.glob("*.yaml")}
    close = difflib.get_close_matches(path.name, files, n=1)
    return f"; did you mean '{yaml.printable(str(files[close[0]]))}'?" if close else ""
