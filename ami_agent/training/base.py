"""What a training stage is, the loop of gradient descent, and what the stages share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ami_agent.adapters.env import EnvConfig, EnvironmentSpec
from ami_agent.adapters.make import check_options
from ami_agent.agent import Agent
from ami_agent.training import distributed, precision
from ami_agent.training.optim import OptimConfig, clip_gradients
from modules.memory.replay_buffer import ReplayBuffer
from modules.memory.short_term import EpisodeMemory, ShortTermMemory
from modules.types import (
    ConfigError,
    ModalityWeights,
    Observation,
    Settings,
    tree_map,
)

if TYPE_CHECKING:
    from ami_agent.config import Config

log = logging.getLogger(__name__)

ENCODED_AT_ONCE = 4096
"""Observations of a batch that is encoded."""
MIN_FRACTION = 0.9
"""Fraction of the recorded steps below which training on them logs a warning."""
Loss = Callable[[torch.Generator], dict[str, Tensor]]
"""Samples a batch with the generator and returns the terms of its loss by name, each a scalar. All
randomness comes from the generator, so a seed decides everything."""


class Stage(Settings):
    """The settings of a stage, a dataclass; `start` makes the run that learns by them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self.env_options)

    @property
    def env_steps(self) -> int:
        """Steps that the stage adds to the replay buffer, in each environment."""
        return 0

    @property
    def env_options(self) -> Any:
        """Keyword arguments of the environment that hold for this stage only."""
        return vars(self).get("options", {})

    @property
    def overridden_settings(self) -> Mapping[str, str]:
        """Settings of its parts that have no effect in this stage, and so no flag: each with the
        setting of the stage that decides in its place."""
        return {}

    def check(self, config: Config, name: str) -> None:
        """Raises ConfigError where the stage, `config.stages[name]`, can't be taken by this agent,
        in these tasks, on episodes of this length."""

    def check_processes(self, config: Config, name: str) -> None:
        """Raises ConfigError where the stage can't be divided among the processes of the run."""
        if num_envs := vars(self).get("num_envs", 0):
            distributed.check_divides(f"{name}.num_envs", num_envs)

    def check_env(self, spec: EnvironmentSpec, env: EnvConfig) -> None:
        """Raises ConfigError where the stage can't be taken in this environment."""

    def check_agent(self, agent: Agent, name: str) -> None:
        """Raises ConfigError where the stage can't train this agent, which has shapes alone."""

    def start(self, agent: Agent, env: EnvConfig, seed: int) -> StageRun:
        raise NotImplementedError


class SGDStage(Stage):
    """A stage that descends one loss."""

    optim: OptimConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        self.optim.num_groups(vars(self).get("group_size", 1))

    def check_processes(self, config: Config, name: str) -> None:
        super().check_processes(config, name)
        size = vars(self).get("group_size", 1)
        distributed.check_divides(f"{name}.optim.batch_size", self.optim.batch_size, size)


class StageRun:
    """A stage while it runs: it learns step by step, from `step` 0 to `total`."""

    step: int = 0
    total: int

    @property
    def eval_mode_due(self) -> str:
        """The mode in which an evaluation of the agent is due at this step; empty if none is."""
        return ""

    @property
    def pictures(self) -> Mapping[str, np.ndarray]:
        """Pictures of what the stage learns from, by name, each uint8 `[h, w, 3]`."""
        return {}

    def update(self) -> dict[str, Tensor]:
        """One step. Returns metrics by name, scalars on the device."""
        raise NotImplementedError

    def finish(self) -> None:
        """What remains to be done after the last step. The trained modules are the agent's own."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next step depends on; empty where a run that is interrupted begins
        anew."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from what `state_dict` returned."""

    def close_envs(self) -> None:
        """Closes the environments that stay open between updates, if there are any."""

    def reopen_envs(self) -> None:
        """Starts new episodes; those that were running are broken off."""


class SGDStageRun(StageRun):
    """Descends one loss with AdamW, warm-up and cosine decay, for as many steps as the settings of
    the optimizer say."""

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        config: OptimConfig,
        *,
        seed: int,
        weights: Mapping[str, float] | None = None,
        post_step: Callable[[], None] = lambda: None,
    ) -> None:
        """`weights`: of the terms, by name, 1 where none is given. `post_step` is called after each
        update."""
        self.module, self.loss, self.config, self.total = module, loss, config, config.steps
        self.weights, self.post_step = weights or {}, post_step
        self.fraction: Callable[[], Tensor] | None = None  # of the steps, that windows can hold
        self.constant_metrics: dict[str, Tensor] = {}  # scalars, logged at every step
        self.generator = torch.Generator().manual_seed(seed)
        self.modules = list(module.modules())
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        if not self.parameters:
            raise ConfigError(
                "no weight takes a gradient, so there is nothing to train; those of a loaded agent "
                "take one after agent.requires_grad_()"
            )
        # fused is faster on a CPU; on a GPU it would keep its step counts there, not on the host
        fused = all(p.device.type == "cpu" for p in self.parameters)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused or None
        )

    def log_drawn_fraction(self, buffer: ReplayBuffer, learner: str, length: int) -> None:
        """Logs the fraction of the recorded steps that windows of `length` steps can hold, with a
        warning where it is low. `learner` names, in the warning, what trains on the windows."""
        self.fraction = partial(buffer.fraction, length)
        fraction = float(self.fraction())
        if fraction < MIN_FRACTION:
            log.warning(
                f"{learner}: windows of {length} steps hold {100 * fraction:.1f} % of the recorded "
                "steps; the other steps are of episodes that were broken off, still run or are "
                "partly overwritten, and have fewer"
            )

    def update(self) -> dict[str, Tensor]:
        """One step. Returns the terms by name, `loss`, their weighted sum, and `gradient`, the norm
        before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.step)
        if not all(module.training for module in self.modules):
            self.module.train()  # an evaluation in between sets eval mode
        for parameter in self.parameters:  # `zero_grad` takes as long as the optimizer's step
            parameter.grad = None
        with distributed.draws_again(self.generator):
            terms = precision.in_precision(self.loss, self.generator, self.parameters[0].device)
            weights = {name: self.weights.get(name, 1.0) for name in terms}
            # a term without weight needs no backward pass
            total = torch.stack([w * terms[name] for name, w in weights.items() if w]).sum()
            total.backward()
            means = distributed.average_gradients(self.parameters, {"loss": total, **terms})
        norm = clip_gradients(self.parameters, self.config.grad_clip_norm)
        self.optimizer.step()
        self.post_step()
        self.step += 1
        metrics = {"loss": means["loss"], "gradient": norm, **means, **self.constant_metrics}
        if self.fraction is not None:
            metrics["drawn_fraction"] = self.fraction()
        return {name: value.detach() for name, value in metrics.items()}

    def state_dict(self) -> dict[str, Tensor]:
        optimizer_slots = self.optimizer.state_dict()["state"]
        moments = {
            f"slot.{i}.{k}": v for i, slot in optimizer_slots.items() for k, v in slot.items()
        }
        own_state = {"random": self.generator.get_state(), "step": torch.tensor(self.step)}
        return {**moments, **with_prefixes({"module": self.module.state_dict()}), **own_state}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        optimizer_slots: dict[int, dict[str, Tensor]] = {}
        for name, value in without_prefix(state, "slot").items():
            index, _, moment = name.partition(".")
            # AdamW counts its steps on the host
            slot_value = value.cpu() if moment == "step" else value
            optimizer_slots.setdefault(int(index), {})[moment] = slot_value
        self.module.load_state_dict(without_prefix(state, "module"))
        full_state = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**full_state, "state": optimizer_slots})
        self.generator.set_state(state["random"].cpu())
        self.step = int(state["step"])


def check_window(setting: str, length: int, episode_steps: int) -> None:
    """Raises ConfigError for windows of recorded steps that are longer than an episode."""
    if length > episode_steps:
        raise ConfigError(f"{setting} is {length}, but an episode has {episode_steps} steps")


def check_task_names(config: Config, setting: str, names: Sequence[str]) -> None:
    """Raises ConfigError for a task that a setting names, and that is not there."""
    for name in names:
        if name not in config.tasks:
            raise ConfigError(f"{setting} names {name!r}; there are {', '.join(config.tasks)}")


def task_modality_sets(agent: Agent) -> list[dict[str, float]]:
    """The different modality weights with which the agent perceives: its default, and those of its
    tasks."""
    default = agent.configurator.default_modality_weights
    modality_sets = [default]
    for task in agent.tasks.values():
        if (weights := {**default, **task.modality_weights}) not in modality_sets:
            modality_sets.append(weights)
    return modality_sets


def encode_buffer(agent: Agent, modality_weights: ModalityWeights | None = None) -> ReplayBuffer:
    """The replay buffer with states in the place of observations, each encoded once: for stages
    that don't train perception. Without a short-term memory several steps are encoded at once:
    recorded data are steps of a single environment, a million of them."""
    weights = modality_weights or agent.configurator.default_modality_weights
    agent.perception.eval()
    episode_memory = EpisodeMemory()

    def encode(obs: Observation, reset_mask: Tensor) -> Tensor:
        nonlocal episode_memory
        features = agent.perception(tree_map(lambda part: part.to(agent.device), obs), weights)
        state, episode_memory = episode_memory.reset(reset_mask).update(
            agent.short_term_memory, features
        )
        return state

    has_memory = type(agent.short_term_memory) is not ShortTermMemory
    steps_at_once = 1 if has_memory else max(1, ENCODED_AT_ONCE // agent.replay_buffer.num_envs)
    return agent.replay_buffer.map_observations(encode, steps_at_once)


def with_prefixes(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by `prefix.name`, of tensors by name by prefix."""
    return {f"{prefix}.{n}": value for prefix, part in parts.items() for n, value in part.items()}


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of that prefix, by name without it."""
    own = {n: value for n, value in state.items() if n.startswith(f"{prefix}.")}
    return {n.removeprefix(f"{prefix}."): value for n, value in own.items()}


class ValidSteps:
    """Selects, of `[B, T, ...]`, the steps that are valid `[B, T]` (`Trajectory.valid`):
    `[N, ...]`. Where `valid` is None, all are, and the tensor is returned as it is. The mask is
    indexed on its own device: a mask in host memory makes the host wait for no other."""

    def __init__(self, valid: Tensor | None) -> None:
        self.index = None if valid is None else valid.flatten().nonzero().squeeze(1)
        self.shape = None if valid is None else valid.shape

    def __call__(self, part: Tensor) -> Tensor:
        if self.index is None:
            return part
        return part.flatten(0, 1).index_select(0, self.index.to(part.device))

    def scatter(self, part: Tensor) -> Tensor:
        """The reverse: `[N, ...]` -> `[B, T, ...]`, 0 where no step is valid."""
        if self.index is None or self.shape is None:
            return part
        full = part.new_zeros(self.shape.numel(), *part.shape[1:])
        full = full.index_copy(0, self.index.to(part.device), part)
        return full.unflatten(0, tuple(self.shape))


def states_from_steps(valid: Tensor | None) -> Tensor | None:
    """The mask of the states `[B, T + 1]` that the valid steps `[B, T]` join."""
    return None if valid is None else torch.cat([torch.ones_like(valid[:, :1]), valid], 1)
