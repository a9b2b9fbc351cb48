"""World model: a joint-embedding predictive architecture (LeCun 2022, 4.4) that predicts the state
after an action, never the observation.

This is the lowest level, one environment step at a time; levels above, whose steps span several,
are in `hjepa.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from math import prod
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from modules.by_hand.autograd import differentiable_unroll
from modules.by_hand.caches import no_numbers
from modules.by_hand.mlp_unroll import MLPUnroll
from modules.by_hand.protocol import ImagineByHand, own_method, unroll_of
from modules.nets import EnsembleHead, StandardizedHead, relu_mlp, silu_mlp
from modules.types import WIDTH, MapShape, PolicyFn, Rollout, Settings
from modules.world_model.dynamics import (
    ConvDynamicsConfig,
    FourierDynamicsConfig,
    GlimpseDynamicsConfig,
    MLPDynamicsConfig,
)
from modules.world_model.latents import Latent, LatentConfig


class Step(NamedTuple):
    state: Tensor  # [N, D]
    action_latent: Tensor  # [N, A + Z]


@dataclass(frozen=True, kw_only=True)
class InteroceptionHeadConfig(Settings):
    hidden: Annotated[int, WIDTH] = 128

    def build(self, shape: MapShape, channels: int, action_dim: int) -> InteroceptionHead:
        return InteroceptionHead(relu_mlp(prod(shape), self.hidden, channels), channels)


class InteroceptionHead(StandardizedHead):
    """Predicts the interoceptive signals of a step from the state it leads to, r(s'). Drives are
    fixed functions of these signals (LeCun 2022, 3.2)."""

    def predict(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """`[..., D]`, `[..., A]`, `[..., D]` -> `[..., I]`"""
        return self(next_state)


@dataclass(frozen=True, kw_only=True)
class TransitionHeadConfig(InteroceptionHeadConfig):
    def build(self, shape: MapShape, channels: int, action_dim: int) -> TransitionHead:
        size = 2 * prod(shape) + action_dim
        return TransitionHead(relu_mlp(size, self.hidden, channels), channels)


class TransitionHead(InteroceptionHead):
    """Predicts the interoceptive signals of a step from state, action and next state, r(s, a, s'),
    as most rewards need."""

    def predict(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return self(torch.cat([state, action, next_state], -1))


class NoInteroception(nn.Module):
    """No interoceptive signals, for agents whose costs are functions of states and actions
    alone."""

    def adapt(self, targets: Tensor, centred: Tensor | None = None) -> None:
        """There are no units."""

    def update_units(self, targets: Tensor, centred: Tensor) -> Tensor:
        return torch.ones(targets.shape[-1], device=targets.device)

    def has_outliers(self, targets: Tensor) -> Tensor:
        return torch.zeros((), dtype=torch.bool)

    def subtract_offset(self, targets: Tensor) -> Tensor:
        return targets.to(torch.get_default_dtype())

    def error_scale(self) -> Tensor:
        return torch.ones(0)

    def predict(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return state[..., :0]


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig(Settings):
    members: Annotated[int, (2, 100)] = 5
    hidden: Annotated[int, WIDTH] = 64

    def build(self, shape: MapShape, action_dim: int) -> Ensemble:
        size, hidden = prod(shape), self.hidden
        return Ensemble([silu_mlp(size + action_dim, hidden, size) for _ in range(self.members)])


class Ensemble(nn.Module):
    """Several small predictors of the next state that differ in their initial weights; where they
    disagree, the dynamics are not learnt yet (Pathak et al. 2019; Plan2Explore, Sekar et al.
    2020)."""

    def __init__(self, members: list[nn.Sequential]) -> None:
        super().__init__()
        self.members = EnsembleHead(members)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """`[..., D]`, `[..., A]` -> each member's prediction of s' - s, `[members, ..., D]`."""
        return self.members(torch.cat([state, action], -1))

    def disagreement(self, state: Tensor, action: Tensor) -> Tensor:
        """Variance over the members, mean over the dimensions of the state, `[...]`."""
        return self(state, action).var(0).mean(-1)


class NoEnsemble(nn.Module):
    """No ensemble: the disagreement is 0."""

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """`[0, ..., D]`"""
        return state.new_empty(0, *state.shape)

    def disagreement(self, state: Tensor, action: Tensor) -> Tensor:
        return 0 * action.sum(-1)  # planners differentiate every energy


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    dynamics: MLPDynamicsConfig | FourierDynamicsConfig | GlimpseDynamicsConfig | ConvDynamicsConfig
    latent: LatentConfig | None = None
    """What state and action do not determine of the next state."""
    interoception_head: InteroceptionHeadConfig | TransitionHeadConfig | None = None
    ensemble: EnsembleConfig | None = None

    def build(self, shape: MapShape, action_dim: int, channels: int) -> WorldModel:
        head, ensemble = self.interoception_head, self.ensemble
        latent = Latent() if self.latent is None else self.latent.build(prod(shape), action_dim)
        dynamics = self.dynamics.build(shape, action_dim, latent.size)
        return WorldModel(
            dynamics,
            latent,
            NoInteroception() if head is None else head.build(shape, channels, action_dim),
            NoEnsemble() if ensemble is None else ensemble.build(shape, action_dim),
            action_dim,
        )


class WorldModel(nn.Module):
    """The dynamics and their latent variable, the head that predicts interoceptive signals, and the
    ensemble that estimates the uncertainty of predictions."""

    def __init__(
        self,
        dynamics: nn.Module,
        latent: Latent,
        interoception_head: InteroceptionHead | NoInteroception,
        ensemble: Ensemble | NoEnsemble,
        action_dim: int,
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.dynamics, self.latent = dynamics, latent
        self.interoception_head, self.ensemble = interoception_head, ensemble

    def step(self, state: Tensor, action: Tensor, noise: Tensor | None = None) -> Step:
        """`[N, D]`, `[N, A]` -> the most likely next state, or the one that `noise` `[N, U]`
        samples."""
        if not self.latent.size:
            action_latent = action
        elif noise is None:
            action_latent = self.latent.mode(state, action)
        else:
            action_latent = self.latent.sample(state, action, noise)
        return Step(self.dynamics(state, action_latent), action_latent)

    def energy(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """States `[..., D]`, actions `[..., A]`, next states `[..., D]` -> how badly the next state
        fits, `[...]`: half its squared distance from the predicted one and what the latent variable
        costs, at the latent variable that minimises the sum."""
        return self.latent.energy(state, action, next_state, self.dynamics)

    def unroll(self, state: Tensor, action_latents: Tensor) -> Tensor:
        """`[N, D]`, `[N, H, A + Z]` -> `[N, H + 1, D]`: H steps, one after the other."""
        unroll_at_once = own_method(self.dynamics, "unroll_at_once")
        if unroll_at_once is not None:
            return torch.stack(unroll_at_once(state, action_latents), 1)
        states = [state]
        for action_latent in action_latents.unbind(1):
            states.append(self.dynamics(states[-1], action_latent))
        return torch.stack(states, 1)

    def imagine(self, state: Tensor, actions: Tensor, noise: Tensor | None = None) -> Rollout:
        """`[B, D]`, `[B, P, H, A]` -> P futures, the most likely of each candidate; or, with noise
        `[K, H, U]`, P * K sampled futures, K of each candidate one after the other."""
        if self.latent.size or noise is not None:
            return self._rollout(state, actions, noise, lambda states, actions: actions)
        states = None
        if self._unrolls_dynamics():
            states = differentiable_unroll(self.dynamics, state, actions)
        if states is None:
            shape = actions.shape[:2]
            start = state[:, None].expand(-1, shape[1], -1).flatten(0, 1)
            states = self.unroll(start, actions.flatten(0, 1)).unflatten(0, shape)
        return self._with_interoception(
            states, actions, no_numbers(actions, *actions.shape[:-1], 0)
        )

    def _unrolls_dynamics(self) -> bool:
        """Whether an imagined future is what the dynamics predict; a subclass may change that."""
        return all(own_method(self, name) is not None for name in ("step", "unroll"))

    def imagine_by_hand(self) -> ImagineByHand | None:
        """`imagine`, faster (`modules/by_hand`), for weights as they are now. None for dynamics
        with latent variables, weights that take a gradient, and predicted interoceptive signals."""
        if self.latent.size or not isinstance(self.interoception_head, NoInteroception):
            return None
        unroll = unroll_of(self.dynamics)
        if unroll is None:
            return None

        def imagine(state: Tensor, actions: Tensor) -> tuple[Rollout, Callable[[Tensor], Tensor]]:
            states, pullback = unroll.states_and_pullback(state, actions)
            none = no_numbers(actions, *actions.shape[:-1], 0)
            rollout = Rollout(states.permute(1, 2, 0, 3), actions, none, none)
            return rollout, lambda grad: pullback(grad)[1]  # type: ignore[return-value]

        return imagine

    def imagine_policy(
        self, state: Tensor, policy: PolicyFn, candidates: Tensor, noise: Tensor | None = None
    ) -> Rollout:
        """`[B, D]`, candidates `[B, P, H, A]` -> 1 + P futures, K of each with noise; the first
        follows the closed-loop policy."""
        if noise is None and not self.latent.size and not torch.is_grad_enabled():
            rollout = self._follow(state, policy, candidates)
            if rollout is not None:
                return rollout
        num_samples = 1 if noise is None else len(noise)

        def select_actions(states: Tensor, candidates: Tensor) -> Tensor:
            """`[B, 1 + P * K, D]`, `[B, P * K, A]` -> `[B, (1 + P) * K, A]`"""
            policy_actions = policy(states[:, :num_samples].flatten(0, 1))
            shape = (len(states), num_samples)
            return torch.cat([policy_actions.unflatten(0, shape), candidates], 1)

        return self._rollout(state, candidates, noise, select_actions, num_extra=1)

    def _follow(self, state: Tensor, policy: PolicyFn, candidates: Tensor) -> Rollout | None:
        """`imagine_policy` in fewer operations; None where the dynamics have none such."""
        unroll, (batch, num_given, *rest) = unroll_of(self.dynamics), candidates.shape
        shape = torch.Size((batch, 1 + num_given, *rest))
        if not self._unrolls_dynamics() or not isinstance(unroll, MLPUnroll) or not shape.numel():
            return None

        def act(states: Tensor, step: int) -> Tensor:
            if not num_given:
                return policy(states)
            first = policy(states.unflatten(0, shape[:2])[:, 0])
            return torch.cat([first[:, None], candidates[:, :, step]], 1).flatten(0, 1)

        states, actions = unroll.follow(state, act, shape)
        return self._with_interoception(
            states, actions, no_numbers(actions, *actions.shape[:-1], 0)
        )

    def _rollout(
        self,
        state: Tensor,
        actions: Tensor,
        noise: Tensor | None,
        select_actions: Callable[[Tensor, Tensor], Tensor],
        num_extra: int = 0,
    ) -> Rollout:
        """Futures of P given action sequences and of `num_extra` others; `select_actions` maps the
        states of a step and the given actions to all actions of that step."""
        count = actions.shape[1] + num_extra
        if noise is not None:
            if noise.shape[1] < actions.shape[2]:
                raise ValueError(
                    f"noise for {noise.shape[1]} steps, but {actions.shape[2]} actions are imagined"
                )
            actions = actions.repeat_interleave(len(noise), 1)
            # H times [B * (P + num_extra) * K, U]
            noise_steps: Any = noise.repeat(len(state) * count, 1, 1).unbind(1)
            count *= len(noise)
        else:
            noise_steps = repeat(None)
        shape = (len(state), count)
        states, action_latents = [state[:, None].expand(-1, count, -1)], []
        for given_actions, step_noise in zip(actions.unbind(2), noise_steps, strict=False):
            action = select_actions(states[-1], given_actions)
            next_step = self.step(states[-1].flatten(0, 1), action.flatten(0, 1), step_noise)
            states.append(next_step.state.unflatten(0, shape))
            action_latents.append(next_step.action_latent.unflatten(0, shape))
        path, action_latent = torch.stack(states, 2), torch.stack(action_latents, 2)
        actions, latents = action_latent.tensor_split([self.action_dim], -1)
        return self._with_interoception(path, actions, latents)

    def _with_interoception(self, states: Tensor, actions: Tensor, latents: Tensor) -> Rollout:
        head = self.interoception_head
        if isinstance(head, NoInteroception):
            interoception = no_numbers(actions, *actions.shape[:-1], 0)
        else:
            interoception = head.predict(states[:, :, :-1], actions, states[:, :, 1:])
        return Rollout(states, actions, latents, interoception)

    def step_scale(self, state: Tensor) -> Tensor:
        """Distance in representation space that a full action covers, mean over both directions of
        every action dimension; `[B, D]` -> `[B]`."""
        size = self.action_dim
        directions = torch.eye(size, dtype=state.dtype, device=state.device)
        actions = torch.cat([directions, -directions])[None, :, None].expand(len(state), -1, -1, -1)
        imagined = self.imagine(state, actions).states
        return (imagined[:, :, 1] - imagined[:, :, 0]).norm(dim=-1).mean(1)
