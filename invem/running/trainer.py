"""Training a model: gradient steps, moving average and optimiser, and their state in files."""

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from invem.batched import Rng
from invem.config import Fit
from invem.config.settings import settings_unchanged
from invem.denoiser import Denoiser
from invem.errors import DataError
from invem.measurement import Example
from invem.objective import Objective
from invem.planning.checked import checked_losses
from invem.planning.origin import Origins
from invem.running.records import Clock, count_signals
from invem.storage.directory import Folder
from invem.storage.weights import TrainedWeights

__all__ = ["Trainer"]

Batches = list[tuple[Example, Rng]]


class Trainer:
    """One fit of a model. Its state is a `TrainedWeights`; checkpoints are found again by itself.

    Args:
        objective: The training loss.
        fit: The settings of the fit.
        model: The model, on its device.
        networks: The networks of the recipe within the model.
        device: The device.
        bfloat16: Whether the loss is computed in bfloat16.
        compiled: Whether the networks are compiled, where the objective allows it.
        origins: The components of the plan, for messages.
    """

    def __init__(
        self,
        objective: Objective,
        fit: Fit,
        model: Denoiser,
        networks: list[Denoiser],
        device: torch.device,
        bfloat16: bool = False,
        compiled: bool = False,
        origins: Origins | None = None,
    ) -> None:
        self.objective, self.fit, self.model = objective, fit, model.train()
        self.networks = tuple(_prefix(model, network) for network in networks)
        self.origins = origins or Origins()
        self.device, self.bfloat16 = device, bfloat16
        groups = objective.parameter_groups(model)
        self.optimizer = torch.optim.AdamW(
            [{"params": group.parameters, "share": group.share} for group in groups],
            lr=fit.lr,
            weight_decay=fit.weight_decay,
        )
        # Under every name that it has: two layers may share a weight.
        self.weights = {
            name: tensor
            for name, tensor in model.state_dict(keep_vars=True).items()
            if isinstance(tensor, nn.Parameter)
        }
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.counted: list[nn.Module] = list(networks)
        self.past = self.step = self.passes = 0
        self.clock = Clock()
        if compiled and objective.compiles:
            for network in networks:
                # Not the call but what it calls: hooks, which count, stay outside of the graph.
                network.forward = torch.compile(network.forward)  # type: ignore[method-assign]

    def go_on_from(self, before: TrainedWeights, average: bool) -> None:
        """Takes optimiser and age from the fit before, and the moving average if asked for."""
        if average:
            own = before.of_networks(len(self.networks), averaged=True)
            for prefix, state in zip(self.networks, own, strict=True):
                for name, weight in self.average.items():
                    if name.startswith(prefix) and name.removeprefix(prefix) in state:
                        weight.copy_(state[name.removeprefix(prefix)])
        if len(before.networks) == len(self.networks):
            self.past = before.steps
            self._load_optimizer(before.optimizer)

    # One step

    def take_step(self, batches: Batches) -> tuple[Tensor, Tensor]:
        """Takes one gradient step.

        Args:
            batches: Examples with a random stream each; their losses are averaged together.

        Returns:
            The loss, shape (), and whether it and its gradient were finite, shape (). If they were
            not, the weights are left as they were.
        """
        fit = self.fit
        rate = fit.lr * _schedule(self.step, fit)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        loss = self._loss(batches)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norms = [
            nn.utils.clip_grad_norm_(group["params"], fit.clip)
            for group in self.optimizer.param_groups
        ]
        finite = torch.isfinite(torch.stack([loss.detach(), *norms])).all()
        if bool(finite):
            self.optimizer.step()
            self._update_average()
        self.step += 1
        return loss.detach(), finite

    def _loss(self, batches: Batches) -> Tensor:
        with (
            torch.random.fork_rng(devices=[]),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16),
        ):
            torch.random.manual_seed(batches[0][1].seeds[0])
            with count_signals(*self.counted) as called:
                losses = [self._losses(*batch) for batch in batches]
        self.passes += 2 * called[0]
        return torch.cat(losses).mean()

    def _losses(self, example: Example, rng: Rng) -> Tensor:
        # Once: the random state is that of this step, and is put back after it.
        first = self.step == 0
        check = settings_unchanged(lambda: self.origins.of(self.objective), random=False)
        with check if first else contextlib.nullcontext():
            losses = self.objective.loss(self.model, example, rng)
        n = len(rng.seeds)
        return checked_losses(losses, n, self.objective, self.origins)

    @torch.no_grad()
    def _update_average(self) -> None:
        age = self.past + self.step
        # A short average at first, so that none of the start is left in it.
        decay = min(self.fit.ema, (1 + age) / (10 + age))
        for name, weight in self.weights.items():
            self.average[name].lerp_(weight, 1 - decay)

    # State

    def state(self, sigma_data: float = 0.0) -> TrainedWeights:
        """Returns the weights as they are now."""
        optimizer = {
            f"{i}.{key}": torch.as_tensor(value)
            for i, values in self.optimizer.state_dict()["state"].items()
            for key, value in values.items()
        }
        return TrainedWeights(
            raw=dict(self.model.state_dict()),
            average=dict(self.average),
            optimizer=optimizer,
            networks=self.networks,
            learns=self.objective.learns,
            sigma_data=sigma_data,
            steps=self.past + self.step,
        )

    def save(self, folder: Folder) -> None:
        """Writes a checkpoint, and keeps the last two."""
        facts = {"step": self.step, "passes": self.passes, "fit": self._options()}
        facts |= self.clock.read()
        folder.write(f"step-{self.step:08d}", self.state().tensors(), facts)
        for name in folder.checkpoints()[:-2]:
            folder.remove(name)

    def load(self, folder: Folder) -> list[str]:
        """Goes on from the newest checkpoint that is whole, if there is one.

        Those of a fit with other options are removed: a fit is carried out with the same from its
        first step to its last.

        Returns:
            What is wrong with each newer one, which was passed over.
        """
        damaged: list[str] = []
        for name in reversed(folder.checkpoints()):
            try:
                tensors, facts = folder.read_meta(name)
            except DataError as error:
                damaged.append(str(error))
                continue
            if facts["fit"] != self._options():
                folder.remove(name)
                continue
            kept = TrainedWeights.from_file(tensors, self.state().meta())
            assert kept is not None
            self.model.load_state_dict(kept.raw)
            for name, weight in self.average.items():
                weight.copy_(kept.average[name])
            self._load_optimizer(kept.optimizer)
            self.step, self.passes = int(facts["step"]), int(facts["passes"])
            self.clock.add(facts)
            break
        return damaged

    def _options(self) -> dict[str, Any]:
        """Returns the settings of the fit that its weights depend on, as plain data."""
        return self.fit.model_dump(mode="json", exclude={"checkpoint"})

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            i, _, key = name.partition(".")
            state.setdefault(int(i), {})[key] = tensor
        if state:
            groups: Any = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _prefix(model: nn.Module, network: nn.Module) -> str:
    """Returns where in the names of a model's state those of a network begin."""
    name = next(name for name, module in model.named_modules() if module is network)
    return f"{name}." if name else ""


def _schedule(step: int, fit: Fit) -> float:
    """Returns the learning rate at a step, as a share of that of the fit."""
    rise = min(1.0, (step + 1) / fit.warmup) if fit.warmup else 1.0
    done = step / fit.steps
    fall = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
    }[fit.decay]
    return rise * fall
