"""Fréchet distance between samples and reference signals."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d, cross_entropy, linear, relu

from invem import DataError, Example, Metric, Outcome, RecipeError, Rng, Unsupported
from invem.compare import frechet_distance

CHUNK = 512
STEPS, BATCH, CLASSIFIED = 800, 128, 8192
PROJECTED, ENTRIES = 8192, 2**27


@dataclass(frozen=True, kw_only=True)
class Frechet(Metric):
    """Fréchet distance between samples and references, in a space of features.

        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)

    with the means m and covariances C of the features: the squared 2-Wasserstein distance of two
    Gaussians (D. Dowson and B. Landau, J. Multivar. Anal. 12, 1982), as in the FID of M. Heusel et
    al. (arXiv 1706.08500), in float64. Estimates from finite sets are biased upwards, by an amount
    that depends on the features and decreases with the sizes. Compare values only for equal numbers
    of samples and of references.

    "pixels" and "classifier" features are divided by the root of their total variance over the
    training images. 0 is then perfect, and samples that all equal the mean score 1. "inception"
    values are not scaled. They compare with published ones if the weights, the reference images and
    the number of samples (50,000) agree.

    Attributes:
        features: "pixels" are the leading principal components of the training images, not
            whitened. "classifier" are the 64 activations before the last layer of a small network,
            trained here for 800 steps on labelled images. "inception" are the outputs of the
            TorchScript file that the environment variable INVEM_INCEPTION names. It is called as
            ``model(images, return_features=True)`` with uint8 images (B, 3, H, W), such as
            inception-2015-12-05.pt of NVIDIA. Such a file can run code, so that a recipe cannot
            name it: use one that you trust.
        rank: The number of principal components, at most the number of pixels and of images.

    Raises:
        RecipeError: If "inception" is asked for and INVEM_INCEPTION is not set.
        DataError: If the file that it names does not exist.
    """

    features: Literal["pixels", "classifier", "inception"] = "pixels"
    rank: Annotated[int, Ge(1)] = 64

    def __post_init__(self) -> None:
        if self.features == "inception":
            _inception()

    @property
    def needs(self) -> frozenset[str]:
        more = {"classifier": {"labels", "image"}, "inception": {"image"}, "pixels": set()}[
            self.features
        ]
        return frozenset({"samples", "reference"} | more)

    @property
    def least(self) -> Mapping[str, int]:
        training = {} if self.features == "inception" else {"training": 2}
        return {"samples": 2, "reference": 2} | training

    def prepare(self, training: Example) -> dict[str, Tensor]:
        """Finds the principal components or trains the classifier.

        It uses at most 8,192 training images.
        """
        if self.features == "inception":
            return {}
        if training.x is None or len(training.x) < 2:
            raise DataError(
                f"frechet with features: {self.features} needs at least two clean training images"
            )
        if self.features == "pixels":
            return _principal(training.x, self.rank)
        if training.label is None:
            raise DataError(
                "frechet with features: classifier needs labelled images: choose features: pixels"
            )
        return _classifier(training.x[:CLASSIFIED], training.label[:CLASSIFIED])

    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns the distance, shape (); NaN if a signal is not finite."""
        if outcome.samples is None or outcome.reference is None:
            raise Unsupported("frechet needs samples of the prior and reference signals")
        if min(len(outcome.samples), len(outcome.reference)) < 2:
            raise DataError("frechet needs at least two samples and two reference signals")
        find = self.feature_map(outcome.range, state)
        samples, reference = (
            torch.cat([find(x[i : i + CHUNK]).cpu().double() for i in range(0, len(x), CHUNK)])
            for x in (outcome.samples, outcome.reference)
        )
        return frechet_distance(samples, reference).float()

    def feature_map(
        self, range_: tuple[float, float], state: Mapping[str, Tensor]
    ) -> Callable[[Tensor], Tensor]:
        """Returns the map from signals (B, *shape) to features (B, F).

        Args:
            range_: The lowest and highest value of a signal.
            state: What `prepare` returned.
        """
        if self.features == "inception":
            return _network(_inception(), range_)
        find = _project if self.features == "pixels" else _activations
        return lambda x: find(x.cpu(), state)


def _principal(x: Tensor, rank: int) -> dict[str, Tensor]:
    """Finds the leading principal components of signals (N, *shape) by subspace iteration.

    Returns:
        The mean, shape (d,), and the components over the root of their total variance, shape (d,
            rank).
    """
    flat = x[: max(min(PROJECTED, ENTRIES // x[0].numel()), 2)].flatten(1).cpu().double()
    mean = flat.mean(0)
    flat = flat - mean
    if not bool(flat.isfinite().all() and flat.any()):
        raise DataError("frechet needs finite training images that differ from each other")
    n, d = flat.shape
    rank = min(rank, n - 1, d)
    rng = Rng.generator("frechet-pixels")
    test = torch.randn(n, min(2 * rank + 16, n, d), generator=rng, dtype=flat.dtype)
    basis = torch.linalg.qr(flat.T @ test).Q
    for _ in range(10):
        basis = torch.linalg.qr(flat.T @ (flat @ basis)).Q
    _, s, vh = torch.linalg.svd(flat @ basis, full_matrices=False)
    scale = float(s[:rank].square().sum() / (n - 1)) ** 0.5
    return {"mean": mean.float(), "components": (basis @ vh[:rank].T / scale).float()}


def _project(x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Returns principal components, shape (B, rank). x: (B, *shape)."""
    return (x.flatten(1).double() - state["mean"].cpu().double()) @ state[
        "components"
    ].cpu().double()


def _classifier(x: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Trains the small network with Adam from a fixed initialisation.

    Args:
        x: Images, (N, C, H, W).
        label: Their classes, (N,).

    Returns:
        The weights, and under "scale" the root of the total variance of the features, shape ().
    """
    if x.ndim != 4:
        raise DataError("frechet with features: classifier is for images: choose features: pixels")
    x = x.cpu().float()
    classes = torch.tensor(sorted(set(label.tolist())))
    target = torch.searchsorted(classes, label.cpu())
    rng = Rng.generator("frechet-classifier")
    _, c, h, w = x.shape
    cells = min(4, (h + 3) // 4) * min(4, (w + 3) // 4)
    shapes = {
        "first": (24, c, 3, 3),
        "second": (48, 24, 3, 3),
        "third": (64, 48 * cells),
        "last": (len(classes), 64),
    }
    state: dict[str, Tensor] = {"scale": torch.ones(())}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = (
            torch.randn(shape, generator=rng) * (2 / math.prod(shape[1:])) ** 0.5
        )
        state[f"{name}.bias"] = torch.zeros(shape[0])
    weights = [tensor.requires_grad_() for name, tensor in state.items() if name != "scale"]
    adam = torch.optim.Adam(weights, lr=2e-3)
    order = torch.empty(0, dtype=torch.long)
    with torch.enable_grad():
        for _ in range(STEPS):
            if len(order) < min(BATCH, len(x)):
                order = torch.randperm(len(x), generator=rng)
            rows, order = order[:BATCH], order[BATCH:]
            logits = linear(
                relu(_activations(x[rows], state)), state["last.weight"], state["last.bias"]
            )
            adam.zero_grad()
            torch.autograd.backward(cross_entropy(logits, target[rows]))
            adam.step()
    state = {name: tensor.detach() for name, tensor in state.items()}
    features = torch.cat([_activations(x[i : i + CHUNK], state) for i in range(0, len(x), CHUNK)])
    return state | {"scale": features.var(0).sum().sqrt()}


def _activations(x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Returns the activations before the last layer, shape (B, 64). x: (B, C, H, W)."""
    w = {name: tensor.to(x.device) for name, tensor in state.items()}
    x = relu(conv2d(x.float(), w["first.weight"], w["first.bias"], stride=2, padding=1))
    x = relu(conv2d(x, w["second.weight"], w["second.bias"], stride=2, padding=1))
    x = adaptive_avg_pool2d(x, (min(4, x.shape[2]), min(4, x.shape[3])))
    return linear(x.flatten(1), w["third.weight"], w["third.bias"]) / w["scale"]


def _inception() -> Path:
    """Returns the file of the Inception network, which only the environment can name."""
    named = os.environ.get("INVEM_INCEPTION", "")
    if not named:
        raise RecipeError(
            "frechet with features: inception needs the environment variable INVEM_INCEPTION: the"
            " path of inception-2015-12-05.pt. Such a file can run code; a recipe cannot name it"
        )
    path = Path(named).expanduser()
    if not path.is_file():
        raise DataError(
            f"INVEM_INCEPTION: {named} does not exist: put the TorchScript file of the features"
            " there"
        )
    return path


def _network(path: Path, range_: tuple[float, float]) -> Callable[[Tensor], Tensor]:
    """Returns the features of a TorchScript file as a function of images (B, 1 or 3, H, W)."""
    try:
        load: Callable[..., torch.nn.Module] = torch.jit.load
        model = load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"weights {path} is not a TorchScript file: {reason}") from None
    low, high = range_

    def find(x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise Unsupported("frechet with features: inception is for images of 1 or 3 channels")
        levels = ((x.cpu() - low) * (255 / (high - low))).round().clamp(0, 255).to(torch.uint8)
        with torch.no_grad():
            features: Tensor = model(levels.expand(-1, 3, -1, -1), return_features=True)
        return features.flatten(1)

    return find
