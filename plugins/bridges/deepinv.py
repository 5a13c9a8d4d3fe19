"""deepinv (https://deepinv.github.io): its physics as operators, its denoisers as networks."""

import copy
import inspect
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from invem import (
    Batched,
    Denoiser,
    LinearOperator,
    Operator,
    RecipeError,
    Unsupported,
    examples,
    shared,
)
from invem.denoiser import expand_level
from invem.errors import MissingExtra, suggest
from invem.operator import SVD


def _deepinv() -> Any:
    try:
        import deepinv
    except ImportError as error:
        raise MissingExtra("deepinv", error) from error
    return deepinv


@dataclass(frozen=True, eq=False)
class _Common(Batched):
    value: Tensor = shared()


@dataclass(frozen=True, eq=False)
class _Each(Batched):
    value: Tensor


class _Methods(nn.Module):
    """Makes the methods of a physics callable with other tensors in place of its own.

    Its own tensors are not changed.
    """

    def __init__(self, physics: nn.Module) -> None:
        super().__init__()
        self.physics = physics

    def forward(self, method: str, *args: Any) -> Any:
        return getattr(self.physics, method)(*args)


@dataclass(frozen=True, eq=False)
class Physics(Operator):
    """A deepinv physics as A(x) = physics.A((x - low)/width).

    Signals of deepinv lie in [0, 1], those of invem in [low, low + width]. Measurements of several
    parts are concatenated to a vector; complex numbers become pairs of real numbers.

    Attributes:
        physics: The module; a call does not change it.
        low: The smallest value of invem's signals.
        width: The width of their range.
        parts: The shape of each part of a measurement, and whether it is complex.
        several: Whether deepinv returns a list of parts.
        names: The tensors of the module, as its state names them: first those common to the batch,
            then those of each sample.
        common: The tensors that are common to the batch.
        each: The tensors of each sample, (B, ...).
    """

    physics: Any
    low: float
    width: float
    parts: tuple[tuple[tuple[int, ...], bool], ...]
    several: bool
    names: tuple[str, ...]
    common: tuple[_Common, ...]
    each: tuple[_Each, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return _flat(self._call("A", (x - self.low) / self.width))

    def _by_name(self) -> dict[str, Tensor]:
        """Returns the tensors of the module by name."""
        values = [held.value for held in self.common] + [held.value for held in self.each]
        return dict(zip(self.names, values, strict=True))

    def _call(self, method: str, x: Any) -> Any:
        tensors = {f"physics.{name}": value for name, value in self._by_name().items()}
        # deepinv caches values and casts to a dtype in a call: a shallow copy keeps both out of the
        # module.
        physics = copy.copy(self.physics)
        kind = getattr(physics, "dtype", None)
        if isinstance(kind, torch.dtype) and isinstance(x, Tensor):
            physics.dtype = (
                x.dtype if not kind.is_complex or x.is_complex() else x.dtype.to_complex()
            )
            x = x.to(physics.dtype) if method == "A" else x
        return functional_call(_Methods(physics), tensors, (method, x))

    def _parts(self, y: Tensor) -> Any:
        """The inverse of `_flat`."""
        if not self.several:
            return torch.view_as_complex(y.contiguous()) if self.parts[0][1] else y
        sizes = [math.prod(shape) for shape, _ in self.parts]
        split = [
            part.reshape(len(y), *shape)
            for part, (shape, _) in zip(y.split(sizes, 1), self.parts, strict=True)  # type: ignore[no-untyped-call]
        ]
        whole = [
            torch.view_as_complex(p) if c else p
            for p, (_, c) in zip(split, self.parts, strict=True)
        ]
        return _deepinv().utils.TensorList(whole)


@dataclass(frozen=True, eq=False)
class LinearPhysics(Physics, LinearOperator):
    """A linear deepinv physics as A x = physics.A(x/width).

    deepinv's own measurements of the same signals are A x + offset().
    """

    @property
    def provides(self) -> frozenset[str]:
        base = _deepinv().physics.LinearPhysics
        kind = type(self.physics)
        missing = set() if kind.A_dagger is not base.A_dagger else {"pinv"}
        return super().provides - missing - (set() if self._basis() else {"svd"})

    def __call__(self, x: Tensor) -> Tensor:
        return _flat(self._call("A", x / self.width))

    def offset(self) -> Tensor:
        """Returns physics.A of the zero signal of invem, shape (B or 1, *measurement shape)."""
        n = len(self.each[0].value) if self.each else 1
        like = (self.each or self.common)[0].value if self.names else torch.zeros(())
        dtype = like.dtype if like.is_floating_point() else torch.float32
        return _flat(
            self._call(
                "A",
                torch.full(
                    (n, *self.shape), -self.low / self.width, dtype=dtype, device=like.device
                ),
            )
        )

    def adjoint(self, y: Tensor) -> Tensor:
        x: Tensor = self._call("A_adjoint", self._parts(y))
        return x / self.width

    def pinv(self, y: Tensor) -> Tensor:
        if "pinv" not in self.provides:
            raise Unsupported(
                f"{type(self.physics).__name__} of deepinv has no pseudo-inverse in closed form"
            )
        x: Tensor = self._call("A_dagger", self._parts(y))
        return x * self.width

    def _basis(self) -> tuple[int, ...] | None:
        """Returns the shape of deepinv's spectral coordinates; None unless it fits the signal's.

        Both must have the same number of entries.
        """
        if not isinstance(self.physics, _deepinv().physics.DecomposablePhysics):
            return None
        spectrum = self._call("V_adjoint", torch.zeros(1, *self.shape))
        shape = tuple(spectrum.shape[1:])
        fits = spectrum.is_floating_point() and math.prod(shape) == math.prod(self.shape)
        return shape if fits and math.prod(self.parts[0][0]) == math.prod(self.shape) else None

    def svd(self) -> SVD:
        shape = self._basis()
        if shape is None:
            raise Unsupported(
                f"{type(self.physics).__name__} of deepinv has no singular value decomposition with"
                " as many terms as entries"
            )
        mask = self._by_name()["mask"]
        s = mask.broadcast_to(len(mask) if mask.ndim > len(shape) else 1, *shape).flatten(1)
        return SVD(
            s / self.width,
            lambda z: self._call("U", z.reshape(len(z), *shape)),
            lambda y: self._call("U_adjoint", y).flatten(1),
            lambda z: self._call("V", z.reshape(len(z), *shape)),
            lambda x: self._call("V_adjoint", x).flatten(1),
        )


def _flat(y: Any) -> Tensor:
    if isinstance(y, Tensor):
        return torch.view_as_real(y) if y.is_complex() else y
    return torch.cat([_flat(part).flatten(1) for part in y], 1)


def _value(name: str, value: Any) -> Any:
    """Returns an option in the type that deepinv takes.

    A list of integers becomes a tuple, any other list a tensor (of an image, with a batch axis).
    """
    if not isinstance(value, list):
        return value
    if all(isinstance(entry, int) for entry in value):
        return tuple(value)
    found = torch.tensor(value, dtype=torch.float32)
    return (
        found.reshape(*[1] * (4 - found.ndim), *found.shape)
        if name in ("filter", "mask")
        else found
    )


def _options(kind: type) -> list[str]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        return [
            name
            for name, p in inspect.signature(vars(kind)["__init__"]).parameters.items()
            if p.kind in named and name != "self"
        ]
    except (TypeError, ValueError):
        return []


@contextmanager
def _weights_alone() -> Iterator[None]:
    """Has PyTorch read files as weights: some classes of deepinv unpickle what an option names,
    which would run code that a recipe brought along."""
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def _build(owner: Any, name: str, options: dict[str, Any], more: dict[str, Any]) -> Any:
    """Builds a class of deepinv from `options`.

    Of the `more` options, it is given those that it knows and that `options` lacks.
    """
    word = owner.__name__.rpartition(".")[2]
    kind = getattr(owner, name, None)
    if not inspect.isclass(kind):
        raise RecipeError(
            f"deepinv has no {word}"
            f" '{name}'"
            f"{suggest(name, [n for n in dir(owner) if inspect.isclass(getattr(owner, n))])}"
        )
    # deepinv passes unknown options up through **kwargs, and finally ignores them.
    known = {
        key: None for part in kind.__mro__ if "__init__" in vars(part) for key in _options(part)
    }
    given = {key: value for key, value in more.items() if key in known} | {
        key: _value(key, value) for key, value in options.items()
    }
    unknown = [key for key in options if key not in known]
    if unknown:
        raise RecipeError(
            f"deepinv's {name} has no option '{unknown[0]}'{suggest(unknown[0], known)} (it has:"
            f" {', '.join(known)})"
        )
    try:
        with _weights_alone():
            return kind(**given)
    except Exception as error:
        raise RecipeError(
            f"deepinv cannot build {name}: {type(error).__name__}: {error}"
        ) from error


@examples(
    {"physics": "Inpainting", "options": {"mask": 0.5}},
    {
        "physics": "BlurFFT",
        "options": {"filter": [[0.0, 0.1, 0.0], [0.2, 0.4, 0.1], [0.0, 0.2, 0.0]]},
    },
    {
        "physics": "Inpainting",
        "generator": "BernoulliSplittingMaskGenerator",
        "generator_options": {"split_ratio": 0.4},
    },
)
def physics(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    physics: str,
    options: dict[str, Any] = {},  # noqa: B006
    generator: str = "",
    generator_options: dict[str, Any] = {},  # noqa: B006
    low: float = -1.0,
    high: float = 1.0,
) -> Operator:
    """A physics of deepinv, by the name of its class, without its noise and sensor models.

    Args:
        n: The number of operators.
        shape: The shape of one signal, without the batch axis.
        rng: Used by random physics and by the generator.
        physics: A class of `deepinv.physics`.
        options: Its options. A list becomes a tensor, a list of integers a tuple. Sizes and the
            random generator are filled in.
        generator: A class of `deepinv.physics.generator`, which draws parameters per sample; empty
            for none.
        generator_options: Its options.
        low: The smallest value of invem's signals, which is 0 in deepinv.
        high: The largest value of invem's signals, which is 1 in deepinv.
    """
    if not low < high:
        raise RecipeError(f"deepinv: low must be less than high, got {low} and {high}")
    library = _deepinv()
    seed = int(torch.randint(2**31, (), generator=rng))
    sized = {"img_size": shape, "img_width": shape[-1], "device": "cpu"}
    # Some classes of deepinv ignore the given generator and draw from the global one.
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        drawn: dict[str, Tensor] = {}
        if generator:
            law = _build(
                library.physics.generator,
                generator,
                dict(generator_options),
                sized | {"rng": Generator().manual_seed(seed + 1)},
            )
            drawn = law.step(batch_size=n, seed=seed + 1)
        first = {name: value[:1] for name, value in drawn.items()}
        module = _build(
            library.physics,
            physics,
            dict(options),
            sized | first | {"rng": Generator().manual_seed(seed)},
        )
        linear = isinstance(module, library.physics.LinearPhysics)
        x = torch.full((1, *shape), 0.5)
        try:
            module.update(**first)
            y = module.A(x.to(module.dtype) if getattr(module, "dtype", x.dtype).is_complex else x)
            if linear:
                module.A_adjoint(y)
        except Exception as error:
            raise RecipeError(
                f"deepinv's {physics} does not take signals of shape {shape}:"
                f" {type(error).__name__}: {error}"
            ) from error
    state = {
        name: value
        for name, value in [*module.named_buffers(), *module.named_parameters()]
        if not name.startswith("noise_model.")
    }
    lost = set(drawn) - set(state)
    if lost:
        raise RecipeError(
            f"deepinv's {generator} draws {', '.join(sorted(lost))}, which {physics} does not have"
        )
    common = {name: value.detach() for name, value in state.items() if name not in drawn}
    several = not isinstance(y, Tensor)
    parts = tuple(
        (tuple(_flat(part).shape[1:]), part.is_complex()) for part in (y if several else [y])
    )
    return (LinearPhysics if linear else Physics)(
        shape,
        module,
        low,
        high - low,
        parts,
        several,
        (*common, *drawn),
        tuple(_Common(value) for value in common.values()),
        tuple(_Each(value) for value in drawn.values()),
    )


class DeepinvDenoiser(Denoiser):
    """A denoiser of deepinv as D(x, sigma) = low + width den((x - low)/width, sigma/width).

    Signals of deepinv lie in [0, 1].

    Args:
        model: Any module with ``forward(x, sigma)``, sigma of shape (B,).
        low: The smallest value of invem's signals.
        high: The largest.
    """

    def __init__(self, model: nn.Module, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        self.model, self.low, self.width = model, low, high - low

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        levels = expand_level(sigma, x_t).flatten().expand(len(x_t)) / self.width
        out: Tensor = self.model((x_t - self.low) / self.width, levels)
        return self.low + self.width * out

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of all modules but batch norms, which would mix the samples of a batch."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


@examples({"model": "DRUNet", "options": {"nc": [8, 8, 8, 8], "nb": 1}})
def denoiser(
    shape: tuple[int, ...],
    *,
    model: str,
    options: dict[str, Any] = {},  # noqa: B006
    low: float = -1.0,
    high: float = 1.0,
) -> Denoiser:
    """A denoiser of deepinv, by the name of its class.

    Weights are random unless `options` names a local file as `pretrained`.

    Args:
        shape: The shape of one signal.
        model: A class of `deepinv.models` with ``forward(x, sigma)``.
        options: Its options. The number of channels is filled in.
        low: The smallest value of invem's signals, which is 0 in deepinv.
        high: The largest value of invem's signals, which is 1 in deepinv.
    """
    if options.get("pretrained") == "download":
        raise RecipeError(
            "deepinv: nothing is downloaded in a run; save the weights to a file and name it in"
            " `pretrained`"
        )
    if len(shape) != 3:
        raise RecipeError(
            "deepinv's denoisers act on images (channels, height, width), not on signals of shape"
            f" {shape}"
        )
    filled = {
        "in_channels": shape[0],
        "out_channels": shape[0],
        "img_resolution": shape[-1],
        "pretrained": None,
        "device": "cpu",
    }
    net = DeepinvDenoiser(_build(_deepinv().models, model, dict(options), filled), low, high)
    try:
        with torch.no_grad():
            wrong = net.eval()(torch.zeros(1, *shape), 0.5).shape != (1, *shape)
    except Exception as error:
        raise RecipeError(
            f"deepinv's {model} does not take signals of shape {shape}: {type(error).__name__}:"
            f" {error}"
        ) from error
    if wrong:
        raise RecipeError(f"deepinv's {model} changes the shape {shape}")
    return net
