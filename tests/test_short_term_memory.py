"""A state depends on the observations of its episode so far, and never on later ones."""

from __future__ import annotations

from itertools import chain, islice

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from ami_agent import recipes
from ami_agent.adapters.env import EnvironmentSpec
from ami_agent.adapters.tensors import ModalitySpec
from ami_agent.agent import Agent, Controller
from ami_agent.config import Config, build, override
from ami_agent.training import (
    AmortizePlanning,
    DistillShortestPaths,
    OfflineActorCritic,
    OnlineActorCritic,
    TrainJEPA,
)
from ami_agent.training.base import encode_buffer
from ami_agent.training.jepa import JEPALoss
from ami_agent.training.optim import OptimConfig
from ami_agent.validate import check_stages
from modules.configurator import TaskSpec
from modules.memory.short_term import (
    FAR_AWAY,
    AttentionMemory,
    AttentionMemoryConfig,
    EpisodeMemory,
    GRUMemoryConfig,
    ReferenceObservations,
    ShortTermMemory,
    reset_where,
    unroll_memory,
)
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.perception.target_encoder import OnlineTarget
from modules.types import CONTINUE, ConfigError, Trajectory, Transition
from tests.test_replay_buffer import random_steps

D, MOMENTS = 4, 3
FORMS: dict[str, GRUMemoryConfig | AttentionMemoryConfig | None] = {
    "none": None,
    "belief": GRUMemoryConfig(hidden=5),
    "associative": AttentionMemoryConfig(num_slots=MOMENTS, slot_dim=6),
}
any_form = pytest.mark.parametrize("form", FORMS)
who_recalls = pytest.mark.parametrize("form", ["belief", "associative"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def awake(module: nn.Module) -> nn.Module:
    """As after some training."""
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=index))
    return module


def make_memory(form: str) -> ShortTermMemory:
    settings = FORMS[form]
    return awake(settings.build((D, 1, 1)) if settings else ShortTermMemory())


def depends(form: str, length: int) -> Tensor:
    """Which of so many states depends on which of the features, `[states, features]`."""
    short_term = make_memory(form).double()
    features = normal(1, length, D).double()
    gradient = jacobian(lambda observed: unroll_memory(short_term, observed)[0], features)[
        :, :, 0
    ]  # [T, D, T, D]
    return gradient.abs().amax((1, 3)) > 0


@any_form
def test_a_later_observation_cannot_change_an_earlier_state(form):
    assert not depends(form, 8).triu(1).any()
    assert depends(form, 8).diagonal().all()


def test_without_short_term_memory_the_state_is_the_encoding():
    assert torch.equal(unroll_memory(make_memory("none"), normal(2, 5, D)), normal(2, 5, D))


def test_a_gru_carries_information_from_the_first_step():
    assert torch.equal(depends("belief", 8), torch.ones(8, 8, dtype=torch.bool).tril())


def test_an_attention_memory_holds_its_last_steps_and_overwrites_the_oldest():
    kept = torch.ones(8, 8, dtype=torch.bool).tril().triu(1 - MOMENTS)
    assert torch.equal(depends("associative", 8), kept)


def test_unused_slots_change_nothing():
    narrow = make_memory("associative")
    wide = AttentionMemory(D, AttentionMemoryConfig(num_slots=10 * MOMENTS, slot_dim=6))
    wide.load_state_dict(narrow.state_dict())
    observed = normal(2, MOMENTS, D)
    torch.testing.assert_close(unroll_memory(wide, observed), unroll_memory(narrow, observed))


@any_form
def test_the_gradient_through_the_memory_is_exact(form):
    short_term, features = make_memory(form).double(), normal(2, 5, D).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda observed: unroll_memory(short_term, observed), features)


@who_recalls
def test_training_reaches_every_parameter_and_the_first_step_from_the_last(form):
    short_term, features = make_memory(form), normal(2, MOMENTS, D).requires_grad_()
    unroll_memory(short_term, features)[:, -1].square().sum().backward()
    assert (features.grad[:, 0].abs().amax(-1) > 0).all()
    # a key is matched with a query: what all keys have in common cancels
    reached = {n for n, p in short_term.named_parameters() if p.grad.abs().max() > 1e-5}
    shared = {"key.bias"} if form == "associative" else set()
    assert reached == {n for n, _ in short_term.named_parameters()} - shared


class Remembering:
    """A short-term memory in episodes."""

    def __init__(self, short_term: ShortTermMemory) -> None:
        self.short_term, self.memory = short_term, EpisodeMemory()

    def reset(self, reset_mask: Tensor | None) -> None:
        self.memory = self.memory.reset(reset_mask)

    def update(self, features: Tensor, keep: int = 1) -> Tensor:
        state, self.memory = self.memory.update(self.short_term, features, keep)
        return state


def episode_states_of(term: Remembering, features: Tensor) -> Tensor:
    """`[B, T, D]` -> the states of acting, `[B, T, D]`."""
    return torch.stack([term.update(now) for now in features.unbind(1)], 1)


@any_form
def test_training_and_acting_give_the_same_states(form):
    short_term = make_memory(form)
    torch.testing.assert_close(
        episode_states_of(Remembering(short_term), normal(2, 7, D)),
        unroll_memory(short_term, normal(2, 7, D)),
    )


@any_form
def test_where_an_episode_begins_the_memory_is_empty_and_elsewhere_unchanged(form):
    short_term, past, coming = make_memory(form), normal(3, 5, D), normal(3, 5, D, seed=1)
    trace = short_term.initial_state(past[:, 0])
    for now in past.unbind(1):
        _, trace = short_term(now, trace)
    is_first = torch.tensor([True, False, True])
    trace, states = reset_where(trace, is_first), []
    for now in coming.unbind(1):
        state, trace = short_term(now, trace)
        states.append(state)
    found = torch.stack(states, 1)
    torch.testing.assert_close(found[is_first], unroll_memory(short_term, coming[is_first]))
    whole = unroll_memory(short_term, torch.cat([past, coming], 1))[:, 5:]
    torch.testing.assert_close(found[~is_first], whole[~is_first])
    if form != "none":
        assert not torch.allclose(found[~is_first], unroll_memory(short_term, coming)[~is_first])


@any_form
def test_an_episode_may_begin_in_some_envs_in_all_or_in_others(form):
    short_term, past, coming = make_memory(form), normal(3, 5, D), normal(3, 5, D, seed=1)
    new = unroll_memory(short_term, coming)
    for is_first in (None, torch.ones(3, dtype=torch.bool)):
        term = Remembering(short_term)
        episode_states_of(term, past)
        term.reset(is_first)
        torch.testing.assert_close(episode_states_of(term, coming), new)
    term = Remembering(short_term)
    episode_states_of(term, past)
    term.reset(torch.tensor([False, True, False]))
    found = episode_states_of(term, coming)
    torch.testing.assert_close(found[1], new[1])
    torch.testing.assert_close(
        found[0], unroll_memory(short_term, torch.cat([past, coming], 1))[0, 5:]
    )
    term.reset(torch.tensor([True, False]))  # other environments altogether
    torch.testing.assert_close(episode_states_of(term, coming[:2]), new[:2])


def test_no_earlier_state_is_near_when_an_episode_begins():
    term = Remembering(ShortTermMemory())
    for now in normal(3, 5, D).unbind(1):
        term.update(now, keep=4)
    torch.testing.assert_close(term.memory.episode_states(), normal(3, 5, D)[:, 1:])
    term.reset(torch.tensor([True, False, False]))
    here = normal(3, D, seed=1)
    term.update(here, keep=4)
    far = (term.memory.episode_states() - here[:, None]).norm(dim=-1)
    assert (far[0, :-1] > FAR_AWAY / 2).all()
    assert (far[1:, :-1] < 10).all()
    assert (far[:, -1] == 0).all()


@any_form
def test_the_memory_of_an_env_does_not_depend_on_others(form):
    short_term, features = make_memory(form), normal(3, 7, D)
    terms = [Remembering(short_term) for _ in range(4)]
    together = []
    for step, now in enumerate(features.unbind(1)):
        is_first = torch.tensor([step % 2 == 0, step % 3 == 0, step % 5 == 0])
        for term, here in zip(terms, (is_first, *is_first[:, None]), strict=True):
            term.reset(here)
        together.append(terms[0].update(now))
        single = torch.cat([t.update(now[i, None]) for i, t in enumerate(terms[1:])])
        torch.testing.assert_close(together[-1], single)


def test_reference_observations_are_none_before_collection_and_then_as_stored():
    sight = torch.arange(5 * 8, dtype=torch.uint8).reshape(5, 2, 2, 2)
    senses = {"touch": normal(5, 3), "sight": sight}
    landmarks = ReferenceObservations(
        {name: torch.zeros_like(part) for name, part in senses.items()}
    )
    assert landmarks.capacity == 5
    assert {name: len(part) for name, part in landmarks.observations().items()} == dict.fromkeys(
        senses, 0
    )
    landmarks.store(senses)
    other = ReferenceObservations({name: torch.zeros_like(part) for name, part in senses.items()})
    other.load_state_dict(landmarks.state_dict())
    for name, part in other.observations().items():
        assert torch.equal(part, senses[name])


def test_boredom_uses_the_stored_reference_observations(tiny: Config):
    agent = agent_of(override(tiny, {"memory.num_reference_obs": 7}), "none")
    controller = agent.controller(tensors=True)
    explore = TaskSpec(weights={"boredom": 1.0}).to_task(None, "plan")
    controller.set_task(explore)
    assert controller.context.reference_states.shape == (0, D)
    agent.reference_obs.store(normal(7, 3))
    controller.set_task(explore)
    torch.testing.assert_close(controller.context.reference_states, agent.encode(normal(7, 3)))


SPEC = EnvironmentSpec({"obs": ModalitySpec((3,), torch.float32)}, 3, ("reward", "left", "right"))
"""Of agents that act in the episodes of `test_replay_buffer`."""


def agent_of(tiny: Config, form: str, capacity: int = 40) -> Agent:
    perception = MultiModalEncoderConfig(hidden=8, vector_dim=D)
    rest = TaskSpec(weights={"control_cost": 1.0})
    config = override(
        tiny, {"perception": perception, "memory.short_term": FORMS[form], "tasks": {"rest": rest}}
    )
    agent = build(config, SPEC, num_envs=3, buffer_size=capacity).eval()
    awake(agent.short_term_memory)
    return agent


def controller_of(agent: Agent) -> Controller:
    return agent.controller(task=agent.task_spec("rest").to_task(None, "plan"), tensors=True)


def continue_rollout(agent: Agent, data: list[Transition]) -> dict[tuple[float, ...], Tensor]:
    """The state of every step, by its observation."""
    is_first, done = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    states = {}
    controller = controller_of(agent)
    for step in data:
        controller.reset(is_first)
        state, _ = controller.perceive(step.obs)
        states |= {tuple(observed.tolist()): s for observed, s in zip(step.obs, state, strict=True)}
        agent.remember(step)
        is_first, done = done, step.terminated | step.truncated
    return states


@any_form
@pytest.mark.parametrize("capacity", [40, 13])
def test_a_buffer_of_states_holds_the_states_of_acting(tiny, form, capacity):
    agent = agent_of(tiny, form, capacity)
    first = list(islice(random_steps(seed=3, ends=0.15), 14))
    second = [  # the same environments, other episodes
        step._replace(obs=step.obs + 100, next_obs=step.next_obs + 100)
        for step in islice(random_steps(seed=4, ends=0.15), 14)
    ]
    states = continue_rollout(agent, first)
    agent.replay_buffer.start_run()
    states |= continue_rollout(agent, second)
    translated, compared = encode_buffer(agent), 0
    for episode in translated.episode_ids():
        observed, output = (
            agent.replay_buffer.get_episode(episode).obs[0],
            translated.get_episode(episode).states[0],
        )
        if observed[0, 2] % 100:
            continue  # its beginning is no longer stored
        projected_steps = [states[key] for key in map(tuple, observed.tolist()) if key in states]
        assert (
            len(projected_steps) >= len(observed) - 1
        )  # where the episode breaks off there is no state
        torch.testing.assert_close(
            output[: len(projected_steps)], torch.stack(projected_steps), rtol=1e-4, atol=1e-5
        )
        compared += len(projected_steps)
    assert compared > (60 if capacity == 40 else 20)


@who_recalls
def test_encoding_is_the_first_step_of_an_episode_and_changes_no_memory(tiny, form):
    agent = agent_of(tiny, form)
    controller = controller_of(agent)
    here, there = normal(3, 3), normal(3, 3, seed=1)
    first, _ = controller.perceive(here)
    torch.testing.assert_close(agent.encode(here), first)
    second, _ = controller.perceive(there)
    assert not torch.allclose(second, agent.encode(there))
    controller.reset()
    controller.perceive(here)
    agent.encode(normal(5, 3, seed=2))
    agent.encode(there)
    torch.testing.assert_close(controller.perceive(there)[0], second)


@who_recalls
def test_the_same_observation_is_another_state_after_another_past(tiny, form):
    agent, states = agent_of(tiny, form), []
    controller = controller_of(agent)
    for seed in (0, 0, 1):
        controller.reset()
        for obs in chain(normal(2, 3, 3, seed=seed), normal(1, 3, 3, seed=9)):
            state, _ = controller.perceive(obs)
        states.append(state)
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert not torch.allclose(states[0], states[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"stages.amortize_policy": AmortizePlanning()},
            "amortize_policy imagines from single observations, and a state of GRUMemory",
        ),
        (
            {"stages.actor_critic": OnlineActorCritic(steps=4)},
            "actor_critic.train_jepa.context_steps is 0",
        ),
        (
            {"stages.actor_critic": OfflineActorCritic(updates=4)},
            "actor_critic.train_jepa.context_steps is 0",
        ),
    ],
)
def test_an_agent_with_short_term_memory_does_not_train_on_single_observations(changes, message):
    config = override(
        recipes.recipe("gym"), {"memory.short_term": GRUMemoryConfig(), "stages.actor_critic": None}
    )
    check_stages(config)
    with pytest.raises(ConfigError, match=message):
        check_stages(override(config, changes))


@who_recalls
def test_imagination_starts_in_states_of_acting(form):
    config = override(recipes.recipe("gym"), {"memory.short_term": FORMS[form]})
    agent = build(config, SPEC._replace(interoception=("reward", "left", CONTINUE)), num_envs=3,
                  buffer_size=40)  # fmt: skip
    awake(agent.short_term_memory)
    for step in islice(random_steps(seed=3, ends=0.1), 30):
        agent.remember(step)
    eight = OptimConfig(steps=0, batch_size=8)
    stage = OfflineActorCritic(
        updates=1, optim=eight, train_jepa=TrainJEPA(context_steps=3, optim=eight)
    )
    actor = stage.start(agent, config.env, 0).actor
    with torch.no_grad():
        states = actor._sample_states(torch.Generator().manual_seed(3))
        window = agent.replay_buffer.sample(8, 3, torch.Generator().manual_seed(3))
        features = agent.perception(
            window.obs.flatten(0, 1), agent.configurator.default_modality_weights
        )
        expected = unroll_memory(agent.short_term_memory, features.unflatten(0, (8, 4)))[:, -1]
        assert window.valid is not None
        whole = window.valid[:, -1]  # of windows that an end cuts short, another state is sampled
        assert whole.any()
        torch.testing.assert_close(states[whole], expected[whole])
        assert not torch.allclose(states, agent.encode(window.obs[:, -1]))


def test_a_target_without_gradient_has_none_through_the_memory(tiny):
    """The memory moves with the states, and the targets stand still."""
    short_term, requested = make_memory("belief"), []
    short_term.register_forward_hook(
        lambda module, output, found: requested.append(found[0].requires_grad)
    )
    model = tiny.world_model.build((D, 1, 1), 2, 1)
    batch = Trajectory(normal(4, 4, D), normal(4, 3, 2), torch.zeros(4, 3, 1),
                       torch.zeros(4, 3, dtype=torch.bool), torch.arange(4))  # fmt: skip
    for target, flows in ((OnlineTarget(False), [True, True]), (OnlineTarget(True), [True, False])):
        requested.clear()
        loss = JEPALoss(
            lambda obs: obs.clone().requires_grad_(),
            lambda obs, observed, target=target: target(obs, observed, {}), short_term, model, D,
        )  # fmt: skip
        loss(batch, torch.Generator())
        assert [requested[0], requested[-1]] == flows


@who_recalls
def test_shortest_paths_lead_through_states_of_acting(tiny, form):
    agent = agent_of(tiny, form)
    for step in islice(random_steps(seed=3, ends=0), 30):
        agent.remember(step)
    student = DistillShortestPaths(nodes_per_graph=12, num_graphs=2, group_size=4).start(
        agent, tiny.env, 0
    )
    remembered = encode_buffer(agent)
    episodes = agent.replay_buffer.episode_ids(11)[:2]
    for episode, observed in zip(episodes, student.states, strict=True):
        torch.testing.assert_close(observed, remembered.get_episode(episode).states[0, :12])
