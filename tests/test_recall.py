"""What may be recalled is what was lived in this episode, and never what is still to come."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, islice

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from ami_agent import recipes
from ami_agent.agent import Agent
from ami_agent.build import Config, build
from ami_agent.checks import check_lessons
from ami_agent.learning import Learning
from ami_agent.lessons import (
    Amortise,
    Interact,
    NoLesson,
    Predict,
    Rehearse,
    ShortestPaths,
)
from ami_agent.lessons.base import as_states
from ami_agent.life import Sense, Spec
from ami_agent.losses import world_model_loss
from modules.configurator import Assignment
from modules.perception import Senses
from modules.recall import (
    NOWHERE,
    Associative,
    Belief,
    Landmarks,
    NoRecall,
    Recall,
    ShortTerm,
    recalled,
    renew,
)
from modules.targets import Itself, Stopped
from modules.types import ALIVE, Trajectory, Transition, UnusableInput
from tests.test_memory import life

D, MOMENTS = 4, 3
FORMS: dict[str, NoRecall.Config | Belief.Config | Associative.Config] = {
    "none": NoRecall.Config(),
    "belief": Belief.Config(hidden=5),
    "associative": Associative.Config(moments=MOMENTS, size=6),
}
any_form = pytest.mark.parametrize("form", FORMS)
who_recalls = pytest.mark.parametrize("form", ["belief", "associative"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def awake(module: nn.Module) -> nn.Module:
    """As after some learning."""
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=index))
    return module


def recall_of(form: str) -> Recall:
    return awake(FORMS[form].build((D, 1, 1)))


def depends(form: str, length: int) -> Tensor:
    """Which of so many states depends on which of the features, `[states, features]`."""
    recall = recall_of(form).double()
    features = normal(1, length, D).double()
    slope = jacobian(lambda seen: recalled(recall, seen)[0], features)[:, :, 0]  # [T, D, T, D]
    return slope.abs().amax((1, 3)) > 0


@any_form
def test_what_is_seen_later_cannot_change_an_earlier_state(form):
    assert not depends(form, 8).triu(1).any()
    assert depends(form, 8).diagonal().all()


def test_without_recall_the_state_is_what_is_seen():
    assert torch.equal(recalled(recall_of("none"), normal(2, 5, D)), normal(2, 5, D))


def test_a_belief_carries_everything_on_from_the_first_moment():
    assert torch.equal(depends("belief", 8), torch.ones(8, 8, dtype=torch.bool).tril())


def test_an_associative_memory_knows_its_last_moments_and_overwrites_the_oldest():
    kept = torch.ones(8, 8, dtype=torch.bool).tril().triu(1 - MOMENTS)
    assert torch.equal(depends("associative", 8), kept)


def test_room_that_is_not_used_yet_changes_nothing():
    narrow = recall_of("associative")
    wide = Associative(D, Associative.Config(moments=10 * MOMENTS, size=6))
    wide.load_state_dict(narrow.state_dict())
    seen = normal(2, MOMENTS, D)
    torch.testing.assert_close(recalled(wide, seen), recalled(narrow, seen))


@any_form
def test_the_gradient_through_all_that_is_recalled_is_the_true_one(form):
    recall, features = recall_of(form).double(), normal(2, 5, D).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda seen: recalled(recall, seen), features)


@who_recalls
def test_learning_reaches_every_parameter_and_the_first_moment_from_the_last(form):
    recall, features = recall_of(form), normal(2, MOMENTS, D).requires_grad_()
    recalled(recall, features)[:, -1].square().sum().backward()
    assert (features.grad[:, 0].abs().amax(-1) > 0).all()
    # a key is matched with a query: what all keys share cancels
    reached = {n for n, p in recall.named_parameters() if p.grad.abs().max() > 1e-5}
    shared = {"key.bias"} if form == "associative" else set()
    assert reached == {n for n, _ in recall.named_parameters()} - shared


def lived(term: ShortTerm, features: Tensor) -> Tensor:
    """`[B, T, D]` -> the states that one is in, `[B, T, D]`."""
    return torch.stack([term.see(now) for now in features.unbind(1)], 1)


@any_form
def test_who_learns_recalls_what_who_lives_does(form):
    recall = recall_of(form)
    torch.testing.assert_close(
        lived(ShortTerm(recall), normal(2, 7, D)), recalled(recall, normal(2, 7, D))
    )


@any_form
def test_where_an_episode_begins_nothing_of_an_earlier_one_remains_and_elsewhere_all(form):
    recall, past, coming = recall_of(form), normal(3, 5, D), normal(3, 5, D, seed=1)
    trace = recall.begin(past[:, 0])
    for now in past.unbind(1):
        _, trace = recall(now, trace)
    fresh = torch.tensor([True, False, True])
    trace, states = renew(trace, fresh), []
    for now in coming.unbind(1):
        state, trace = recall(now, trace)
        states.append(state)
    found = torch.stack(states, 1)
    torch.testing.assert_close(found[fresh], recalled(recall, coming[fresh]))
    whole = recalled(recall, torch.cat([past, coming], 1))[:, 5:]
    torch.testing.assert_close(found[~fresh], whole[~fresh])
    if form != "none":
        assert not torch.allclose(found[~fresh], recalled(recall, coming)[~fresh])


@any_form
def test_an_episode_may_begin_in_some_worlds_in_all_or_in_others(form):
    recall, past, coming = recall_of(form), normal(3, 5, D), normal(3, 5, D, seed=1)
    new = recalled(recall, coming)
    for fresh in (None, torch.ones(3, dtype=torch.bool)):
        term = ShortTerm(recall)
        lived(term, past)
        term.begin(fresh)
        torch.testing.assert_close(lived(term, coming), new)
    term = ShortTerm(recall)
    lived(term, past)
    term.begin(torch.tensor([False, True, False]))
    found = lived(term, coming)
    torch.testing.assert_close(found[1], new[1])
    torch.testing.assert_close(found[0], recalled(recall, torch.cat([past, coming], 1))[0, 5:])
    term.begin(torch.tensor([True, False]))  # other worlds altogether
    torch.testing.assert_close(lived(term, coming[:2]), new[:2])


def test_nothing_lived_before_is_near_when_an_episode_begins():
    term = ShortTerm(NoRecall())
    for now in normal(3, 5, D).unbind(1):
        term.see(now, keep=4)
    torch.testing.assert_close(term.lived(), normal(3, 5, D)[:, 1:])
    term.begin(torch.tensor([True, False, False]))
    here = normal(3, D, seed=1)
    term.see(here, keep=4)
    far = (term.lived() - here[:, None]).norm(dim=-1)
    assert (far[0, :-1] > NOWHERE / 2).all()
    assert (far[1:, :-1] < 10).all()
    assert (far[:, -1] == 0).all()


@any_form
def test_a_world_recalls_the_same_whatever_the_others_live(form):
    recall, features = recall_of(form), normal(3, 7, D)
    terms = [ShortTerm(recall) for _ in range(4)]
    together = []
    for step, now in enumerate(features.unbind(1)):
        fresh = torch.tensor([step % 2 == 0, step % 3 == 0, step % 5 == 0])
        for term, here in zip(terms, (fresh, *fresh[:, None]), strict=True):
            term.begin(here)
        together.append(terms[0].see(now))
        alone = torch.cat([t.see(now[i, None]) for i, t in enumerate(terms[1:])])
        torch.testing.assert_close(together[-1], alone)


def test_landmarks_are_none_before_anything_was_lived_and_then_as_they_were_kept():
    sight = torch.arange(5 * 8, dtype=torch.uint8).reshape(5, 2, 2, 2)
    senses = {"touch": normal(5, 3), "sight": sight}
    landmarks = Landmarks({name: torch.zeros_like(part) for name, part in senses.items()})
    assert landmarks.room == 5
    assert {name: len(part) for name, part in landmarks.seen().items()} == dict.fromkeys(senses, 0)
    landmarks.keep(senses)
    other = Landmarks({name: torch.zeros_like(part) for name, part in senses.items()})
    other.load_state_dict(landmarks.state_dict())
    for name, part in other.seen().items():
        assert torch.equal(part, senses[name])


def test_a_life_leaves_landmarks_by_which_an_explorer_recognises(tiny: Config):
    agent = agent_of(replace(tiny, landmarks=7), "none")
    explore = Assignment(weights={"boredom": 1.0}).task(None, "plan")
    agent.configure(explore)
    assert agent.focus.known.shape == (0, D)
    agent.landmarks.keep(normal(7, 3))
    agent.configure(explore)
    torch.testing.assert_close(agent.focus.known, agent.perceive(normal(7, 3)))


BODY = Spec({"obs": Sense((3,), torch.float32)}, 3, ("reward", "left", "right"))
"""Of those who live the life that `test_memory` tells."""


def agent_of(tiny: Config, form: str, capacity: int = 40) -> Agent:
    perception = Senses.Config(hidden=8, vector=D)
    rest = Assignment(weights={"effort": 1.0})
    config = replace(tiny, perception=perception, recall=FORMS[form], tasks={"rest": rest})
    agent = build(config, BODY, worlds=3, capacity=capacity).eval()
    awake(agent.recall)
    agent.configure(rest.task(None, "plan"))
    return agent


def live_on(agent: Agent, story: list[Transition]) -> dict[tuple[float, ...], Tensor]:
    """The state of every moment, by what was seen in it."""
    fresh, over = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    states = {}
    for step in story:
        agent.begin(fresh)
        state, _ = agent.attend(step.obs)
        states |= {tuple(seen.tolist()): s for seen, s in zip(step.obs, state, strict=True)}
        agent.observe(step)
        fresh, over = over, step.terminated | step.truncated
    return states


@any_form
@pytest.mark.parametrize("capacity", [40, 13])
def test_memory_in_states_holds_the_states_that_were_lived_in(tiny, form, capacity):
    agent = agent_of(tiny, form, capacity)
    first = list(islice(life(seed=3, ends=0.15), 14))
    second = [  # the same worlds, other episodes
        step._replace(obs=step.obs + 100, next_obs=step.next_obs + 100)
        for step in islice(life(seed=4, ends=0.15), 14)
    ]
    states = live_on(agent, first)
    agent.memory.interrupt()
    states |= live_on(agent, second)
    translated, compared = as_states(agent), 0
    for episode in translated.episodes():
        seen, told = agent.memory.recall(episode).obs[0], translated.recall(episode).states[0]
        if seen[0, 2] % 100:
            continue  # how it began is no longer known
        moments = [states[key] for key in map(tuple, seen.tolist()) if key in states]
        assert len(moments) >= len(seen) - 1  # where the story breaks off nobody has looked
        torch.testing.assert_close(told[: len(moments)], torch.stack(moments), rtol=0, atol=0)
        compared += len(moments)
    assert compared > (60 if capacity == 40 else 20)


@who_recalls
def test_perceiving_is_like_the_first_moment_of_an_episode_and_disturbs_none(tiny, form):
    agent = agent_of(tiny, form)
    here, there = normal(3, 3), normal(3, 3, seed=1)
    first, _ = agent.attend(here)
    torch.testing.assert_close(agent.perceive(here), first)
    second, _ = agent.attend(there)
    assert not torch.allclose(second, agent.perceive(there))
    agent.begin()
    agent.attend(here)
    agent.perceive(normal(5, 3, seed=2))
    agent.perceive(there)
    torch.testing.assert_close(agent.attend(there)[0], second)


@who_recalls
def test_the_same_sight_is_another_state_after_another_past(tiny, form):
    agent, states = agent_of(tiny, form), []
    for seed in (0, 0, 1):
        agent.begin()
        for obs in chain(normal(2, 3, 3, seed=seed), normal(1, 3, 3, seed=9)):
            state, _ = agent.attend(obs)
        states.append(state)
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert not torch.allclose(states[0], states[2])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"amortise": Amortise()}, "amortise imagines from single moments, and recall Belief"),
        ({"interact": Interact(steps=4)}, "interact.objective.context is 0"),
        ({"interact": Rehearse(updates=4)}, "interact.objective.context is 0"),
    ],
)
def test_nobody_who_recalls_learns_from_moments_without_a_past(changes, complaint):
    config = replace(recipes.recipe("gym"), recall=Belief.Config(), interact=NoLesson())
    check_lessons(config)
    with pytest.raises(UnusableInput, match=complaint):
        check_lessons(replace(config, **changes))


@who_recalls
def test_what_is_imagined_begins_in_states_as_they_are_lived_in(form):
    config = replace(recipes.recipe("gym"), recall=FORMS[form])
    agent = build(config, BODY._replace(interoception=("reward", "left", ALIVE)), worlds=3,
                  capacity=40)  # fmt: skip
    awake(agent.recall)
    for step in islice(life(seed=3, ends=0.1), 30):
        agent.observe(step)
    eight = Learning(steps=0, batch=8)
    lesson = Rehearse(updates=1, learning=eight, objective=Predict(context=3, learning=eight))
    actor = lesson.begin(agent, config.world, 0).actor
    with torch.no_grad():
        states = actor._remembered(torch.Generator().manual_seed(3))
        window = agent.memory.sample(8, 3, torch.Generator().manual_seed(3))
        features = agent.perception(window.obs.flatten(0, 1), agent.configurator.gains)
        lived = recalled(agent.recall, features.unflatten(0, (8, 4)))[:, -1]
        assert window.valid is not None
        whole = window.valid[:, -1]  # of windows that an end cuts short, another state is drawn
        assert whole.any()
        torch.testing.assert_close(states[whole], lived[whole])
        assert not torch.allclose(states, agent.perceive(window.obs[:, -1]))


def test_a_target_without_gradient_has_none_through_what_is_recalled(tiny):
    """The recall moves with the states, and what is to be predicted stands still."""
    recall, asked = recall_of("belief"), []
    recall.register_forward_hook(lambda module, told, found: asked.append(found[0].requires_grad))
    model = tiny.world_model.build((D, 1, 1), 2, 1)
    batch = Trajectory(normal(4, 4, D), normal(4, 3, 2), torch.zeros(4, 3, 1),
                       torch.zeros(4, 3, dtype=torch.bool), torch.arange(4))  # fmt: skip
    for target, flows in ((Itself(), [True, True]), (Stopped(), [True, False])):
        asked.clear()
        world_model_loss(
            batch, lambda obs: obs.clone().requires_grad_(),
            lambda obs, seen, target=target: target(obs, seen, {}), recall, model,
            torch.Generator(), channels=D, together=1,
        )  # fmt: skip
        assert [asked[0], asked[-1]] == flows


@who_recalls
def test_shortest_paths_lead_through_states_as_they_are_lived_in(tiny, form):
    agent = agent_of(tiny, form)
    for step in islice(life(seed=3, ends=0), 30):
        agent.observe(step)
    student = ShortestPaths(nodes=12, layouts=2, together=4).begin(agent, tiny.world, 0)
    remembered = as_states(agent)
    for episode, seen in zip(student._episodes(), student.seen, strict=True):
        torch.testing.assert_close(seen, remembered.recall(episode).states[0, :12])
