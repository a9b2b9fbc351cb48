"""Learnt levels above: macro-actions stand for chunks of actions, hopes lie a stride ahead, and
planning stays where life has been."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from ami_agent import build, recipes
from ami_agent.checks import check_lessons
from ami_agent.lessons import Ascend, NoLesson, Survey
from ami_agent.losses import Multiplier, level_loss
from ami_agent.train import train
from modules.configurator import Task
from modules.distance import Quasimetric
from modules.dynamics import VectorDynamics
from modules.hierarchy import Flat, MacroLevels
from modules.hierarchy.levels import InStrides, Macros, UpperLevel
from modules.latents import NoLatent, SparseLatent
from modules.types import Distance, UnusableInput
from tests.conftest import small, unasked, wish

STRIDE = 4
STEP = 0.1
NONE = NoLatent.Config()
SMALL = UpperLevel.Config(
    macro=2, hidden=32, dynamics=VectorDynamics.Config(hidden=32),
    distance=Quasimetric.Config(hidden=32),
)  # fmt: skip


def walks(count: int, steps: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """On a plane without walls: whole strides in one direction or another."""
    turns = torch.rand(count, -(-steps // STRIDE), 1, generator=random) * 2 * torch.pi
    way = torch.cat([turns.cos(), turns.sin()], -1).repeat_interleave(STRIDE, 1)[:, :steps]
    start = torch.rand(count, 1, 2, generator=random) * 4 - 2
    return torch.cat([start, start + STEP * way.cumsum(1)], 1), way


@cache
def taught(strides: tuple[int, ...] = (STRIDE,), size: int = 0) -> dict[str, Tensor]:
    """What levels above that plane have learnt."""
    levels = made(strides, size)
    prices = [Multiplier() for _ in strides]
    parts = [*levels.parameters(), *(p for price in prices for p in price.parameters())]
    optimiser, random = torch.optim.Adam(parts, 4e-3), torch.Generator().manual_seed(0)
    window = 3 * int(torch.tensor(strides).prod())
    for _ in range(250):
        states, actions = walks(64, window, random)
        total = torch.zeros(())
        for above, price in zip(levels.above, prices, strict=True):
            terms, states, actions = level_loss(
                above.level, price, states, actions, random, far=20, slack=0.05
            )
            total = total + 10 * terms.pop("prediction") + sum(terms.values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    levels.remembered.copy_(walks(200, 3, random)[0][:, 0])
    return levels.state_dict()


Latents = NoLatent.Config | SparseLatent.Config


def made(
    strides: tuple[int, ...] = (STRIDE,), size: int = 0, latent: Latents = NONE, **told: object
) -> MacroLevels:
    torch.manual_seed(0)
    level = replace(SMALL, size=size, latent=latent)
    config = MacroLevels.Config(strides=strides, level=level, memories=200, **told)
    return config.build((2, 1, 1), 2, None, unasked)


def metres(state: Tensor, goal: Tensor) -> Tensor:
    """What a perfect critic knows of that plane."""
    return (state - goal).norm(dim=-1) / STEP


def borrowing(strides: tuple[int, ...] = (STRIDE,), size: int = 0, **told: object) -> MacroLevels:
    """What they have learnt, but for distances: these are the critic's."""
    torch.manual_seed(0)
    level = replace(SMALL, size=size, distance=InStrides.Config())
    config = MacroLevels.Config(strides=strides, level=level, memories=200, **told)
    ready = config.build((2, 1, 1), 2, Distance(lambda state: state, metres), unasked)
    known = {k: part for k, part in taught(strides).items() if ".distance." not in k}
    ready.load_state_dict(known)
    return ready.eval()


def levels(strides: tuple[int, ...] = (STRIDE,), size: int = 0, **told: object) -> MacroLevels:
    ready = made(strides, size, **told)
    ready.load_state_dict(taught(strides, size))
    return ready.eval()


START = torch.tensor([[-1.5, -1.0], [1.0, 1.5]])
GOAL = torch.tensor([[1.5, 1.0], [1.0, -1.5]])


def wanting(goal: Tensor = GOAL, **told: object):
    return wish(goal, weights={"critic": 1.0}, **told)


def test_a_macro_action_stands_for_a_chunk_of_actions():
    (level,) = (above.level for above in levels().above)
    states, actions = walks(200, 3 * STRIDE, torch.Generator().manual_seed(9))
    macros = level.chunks(actions)
    assert macros.shape == (200, 3, 2)
    assert macros.abs().max() <= 1
    ahead = level.model.level(0).unroll(states[:, 0], macros)
    error = (ahead - states[:, ::STRIDE]).norm(dim=-1)[:, 1:].mean()
    assert error < 0.3 * STRIDE * STEP
    other = level.model.level(0).unroll(states[:, 0], macros.roll(1, 0))
    assert (other - states[:, ::STRIDE]).norm(dim=-1)[:, 1:].mean() > 3 * error


def test_what_is_hoped_for_lies_a_stride_ahead_on_the_way_to_the_goal():
    found = levels()(START, wanting())
    assert found.hopes.shape == (2, 1, 2, 2)
    assert torch.equal(found.goal, found.hopes[:, 0, 0])
    way = found.goal - START
    # a normal prior knows how long strides are only roughly
    assert ((way.norm(dim=-1) - STRIDE * STEP).abs() < 0.8 * STRIDE * STEP).all()
    assert (torch.cosine_similarity(way, GOAL - START) > 0.8).all()
    far = (found.hopes[:, 0] - GOAL[:, None]).norm(dim=-1)
    assert (far[:, -1] < far[:, 0]).all()


def test_what_is_hoped_for_depends_on_no_other_world():
    alone = levels()(START[:1], wanting(GOAL[:1])).hopes
    many = levels()(START[[0, 1, 0]], wanting(GOAL[[0, 1, 0]])).hopes
    torch.testing.assert_close(many[0], alone[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(many[2], alone[0], atol=1e-4, rtol=0)


def test_near_by_the_goal_itself_is_pursued():
    close = START + 0.02
    found = levels()(START, wanting(close))
    assert torch.equal(found.goal, close)
    assert torch.equal(found.hopes[:, 0], close[:, None].expand(-1, 2, -1))


def test_distances_may_be_the_critics_in_strides():
    ready = borrowing((STRIDE, 3))
    own = [above.level.distance(START, GOAL) for above in ready.above]
    torch.testing.assert_close(own[0], metres(START, GOAL) / STRIDE)
    torch.testing.assert_close(own[1], metres(START, GOAL) / STRIDE / 3)
    found = borrowing()(START, wanting())
    way = found.goal - START
    assert (torch.cosine_similarity(way, GOAL - START) > 0.8).all()
    assert ((way.norm(dim=-1) - STRIDE * STEP).abs() < 0.8 * STRIDE * STEP).all()
    close = START + 0.02
    assert torch.equal(borrowing()(START, wanting(close)).goal, close)


def test_of_the_critics_distance_a_level_learns_nothing():
    (above,) = borrowing().above
    states, actions = walks(8, 3 * STRIDE, torch.Generator().manual_seed(0))
    price, random = Multiplier(), torch.Generator().manual_seed(0)
    terms, _, _ = level_loss(above.level, price, states, actions, random, far=20, slack=0.05)
    assert {"prediction", "prior"} <= set(terms)
    assert not {"far", "near", "price"} & set(terms)
    assert not list(above.level.distance.parameters())


def test_the_critics_distance_needs_a_critic_and_its_states():
    level = replace(SMALL, distance=InStrides.Config())
    with pytest.raises(UnusableInput, match="there must be a critic"):
        MacroLevels.Config(level=level).build((2, 1, 1), 2, None, unasked)
    with pytest.raises(UnusableInput, match=r"level\.size 3 must be 0"):
        borrowing(size=3)


def test_three_levels_hope_from_the_top_down():
    ready = levels((STRIDE, 3))
    found = ready(START, wanting())
    assert found.hopes.shape == (2, 2, 2, 2)
    reach = (found.hopes[:, :, 0] - START[:, None]).norm(dim=-1)
    assert (reach[:, 0] > 1.5 * reach[:, 1]).all()  # the top looks further
    assert torch.equal(found.goal, found.hopes[:, 1, 0])
    ready.reset()
    again = ready.above[0](START, found.hopes[:, 0, 0], wanting())  # the first hope and no other
    assert torch.equal(again.states[:, 1:], found.hopes[:, 1])


def test_subgoals_are_remembered_where_a_level_has_its_own_states_or_is_to_be_grounded():
    for ready in (levels(size=6), levels(grounded=True)):
        found = ready(START, wanting())
        known = {tuple(state) for state in ready.remembered.tolist()}
        assert {tuple(state) for state in found.hopes.flatten(0, 2).tolist()} <= known
        assert (torch.cosine_similarity(found.goal - START, GOAL - START) > 0).all()
    hoped = levels()(START, wanting()).hopes  # by the same chance
    near = (hoped[..., None, :] - ready.remembered).norm(dim=-1).amin(-1)
    assert (near > 0).all()
    torch.testing.assert_close((found.hopes - hoped).norm(dim=-1), near)


def test_what_is_remembered_anew_is_looked_up_in_the_next_episode():
    ready = levels(size=3)
    before = ready(START, wanting()).goal
    ready.remembered.copy_(ready.remembered.roll(1, 0))  # the same, in another order
    ready.reset()
    assert torch.equal(ready(START, wanting()).goal, before)


def test_a_subgoal_stands_for_a_while():
    ready = levels(every=3)
    first = ready(START, wanting()).goal
    assert torch.equal(ready(START + 0.3, wanting()).goal, first)
    assert torch.equal(ready(START + 0.3, wanting()).goal, first)
    assert not torch.equal(ready(START + 0.3, wanting()).goal, first)
    ready.reset()
    assert torch.equal(ready(START, wanting()).goal, first)  # chance begins anew as well


def test_the_prior_knows_what_life_contains():
    (level,) = (above.level for above in levels().above)
    states, actions = walks(200, STRIDE, torch.Generator().manual_seed(9))
    lived = level.macros(states[:, 0]).surprise(level.chunks(actions)[:, 0])
    never = level.macros(states[:, 0]).surprise(torch.ones(200, 2))
    assert never.mean() > lived.mean() + 0.3
    known = Macros(torch.zeros(1), torch.ones(1))
    assert float(known.surprise(torch.tensor([2.0]))) == pytest.approx(2 + 0.9189, abs=1e-3)


def test_the_dearer_what_is_not_lived_the_less_surprising_are_plans():
    def surprise(prior: float) -> float:
        ready = levels(prior=prior)
        (above,) = ready.above
        plan = above(START, GOAL, wanting())
        known = above.level.macros(plan.states[:, :-1])
        return float(known.surprise(plan.actions).detach().mean())

    assert surprise(3.0) < surprise(0.0)


def test_flat_where_there_is_no_goal_and_before_anything_was_learnt():
    ready = levels()
    focus = wish(GOAL, weights={"effort": 1.0})
    assert ready(START, focus) is focus
    focus = wanting()
    assert made()(START, focus) is focus


def test_what_cannot_be_known_of_a_stride_is_told_by_a_latent_variable_of_the_level():
    """A gust now and then in the middle of a stride: what came of it tells, plans imagine it."""

    def gusty(latent: Latents, steps: int = 300) -> tuple[MacroLevels, float, float]:
        ready = made(latent=latent)
        (above,), price = ready.above, Multiplier()
        parts = [*ready.parameters(), *price.parameters()]
        optimiser, random = torch.optim.Adam(parts, 4e-3), torch.Generator().manual_seed(0)
        for _ in range(steps):
            states, actions = walks(128, 3 * STRIDE, random)
            blows = torch.rand(128, 3, 1, generator=random) < 0.3
            gust = STRIDE * STEP * blows * torch.randn(128, 3, 2, generator=random).sign()
            states[:, 1:] += gust.repeat_interleave(STRIDE, 1).cumsum(1)
            terms, *_ = level_loss(above.level, price, states, actions, random, far=20, slack=0.05)
            missed, information = (float(terms[n].detach()) for n in ("prediction", "information"))
            total = 10 * terms.pop("prediction") + 1e-3 * terms.pop("information")
            optimiser.zero_grad()
            (total + sum(terms.values())).backward()
            optimiser.step()
        ready.remembered.copy_(walks(200, 3, random)[0][:, 0])
        return ready.eval(), missed, information

    known, error, told = gusty(SparseLatent.Config(size=2))
    blind, blind_error, nothing = gusty(NoLatent.Config())
    assert told > nothing == 0
    assert error < 0.3 * blind_error
    seen: dict[str, Tensor] = {}
    for name, ready in (("known", known), ("blind", blind)):
        (above,) = ready.above
        seen[name] = above(START, GOAL, wanting()).considered  # [B, P * K, H + 1, D]
    count = MacroLevels.Config().futures.count
    assert seen["known"].shape[1] == count * seen["blind"].shape[1]
    spread = seen["known"][:, :, 1].unflatten(1, (-1, count)).std(2)
    assert spread.mean() > 0.2 * STRIDE * STEP
    (above,) = known.above
    chances = []
    for seed in (1, 1, 2):
        above.reset(seed)
        for _ in range(2):
            above(START, GOAL, wanting())
            chances.append(float(above.outlook.chance(torch.zeros(1, 1, 2, 2))[0].sum()))
    first, second, *rest = chances
    assert first != second
    assert rest[:2] == [first, second]
    assert rest[2] not in (first, second)
    focus = wanting()
    mean, worst = (
        known.above[0](START, GOAL, focus._replace(tail=tail)).energy for tail in (1.0, 0.0)
    )
    assert (worst > mean).all()


def test_what_macro_actions_can_tell_is_left_to_them():
    """Who may learn the whole stride from its latent variable has no use for macro-actions, and no
    say in where one leads."""

    def steering(information: float, steps: int = 300) -> float:
        """How much of what moves is told by the right macro-action and not by another one."""
        ready = made(latent=SparseLatent.Config(size=4))
        level, price = ready.above[0].level, Multiplier()
        parts = [*ready.parameters(), *price.parameters()]
        optimiser, random = torch.optim.Adam(parts, 4e-3), torch.Generator().manual_seed(0)
        for _ in range(steps):
            states, actions = windy(random)
            terms, *_ = level_loss(level, price, states, actions, random, far=20, slack=0.05)
            total = 10 * terms.pop("prediction") + information * terms.pop("information")
            optimiser.zero_grad()
            (total + sum(terms.values())).backward()
            optimiser.step()
        states, actions = windy(random)
        macros = level.chunks(actions)[:, 0]
        missed = [
            (level.model.level(0).step(states[:, 0], told).state - states[:, STRIDE]).square().sum()
            for told in (macros, macros.roll(1, 0))
        ]
        return float(((missed[1] - missed[0]) / missed[1]).detach())

    def windy(random: torch.Generator) -> tuple[Tensor, Tensor]:
        states, actions = walks(128, 3 * STRIDE, random)
        gust = STEP * torch.randn(128, 3, 2, generator=random)
        states[:, 1:] += gust.repeat_interleave(STRIDE, 1).cumsum(1)
        return states, actions

    assert steering(Ascend().information) > 0.3
    assert steering(0.001) < 0.1


def test_planning_above_leaves_no_gradient():
    ready = levels()
    ready(START, wanting())
    assert all(p.grad is None for p in ready.parameters())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"strides": ()}, "strides is"),
        ({"strides": (4, 1)}, "from 2 to"),
        ({"memories": 0}, "memories is 0"),
        ({"every": 0}, "every is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, why):
    with pytest.raises(UnusableInput, match=why):
        MacroLevels.Config(**changes)


def test_a_horizon_of_zero_is_refused():
    with pytest.raises(UnusableInput, match="horizon is 0; it must be a whole number from 1"):
        replace(MacroLevels.Config().planner, horizon=0)


def test_levels_that_cannot_learn_are_refused_before_anything_is_lived():
    config = recipes.recipe("maze-levels")
    check_lessons(config)
    for changes, why in (
        ({"hierarchy": MacroLevels.Config(strides=(6, 3))}, "6 x 3 takes 54 steps"),
        ({"ascend": NoLesson()}, "knows nothing unless ascend"),
        ({"hierarchy": Flat.Config()}, "ascend teaches a MacroLevels, and hierarchy is Flat"),
        ({"survey": Survey()}, "survey teaches a LandmarkGraph"),
    ):
        with pytest.raises(UnusableInput, match=why):
            check_lessons(replace(config, **changes))


@pytest.mark.parametrize("end_to_end", [True, False])
def test_what_a_level_learns_reaches_those_below_it_or_not(end_to_end):
    config = small(recipes.recipe("maze-levels"))
    hierarchy = replace(config.hierarchy, strides=(2, 3), level=replace(SMALL, size=5))
    config = replace(config, hierarchy=hierarchy)
    world = config.world.build(1)
    agent = build(config, world.spec, worlds=8, capacity=30)
    world.close()
    living = config.life.begin(agent, config.world, 0)
    while living.step < living.total:
        living.update()
    lesson = replace(config.ascend, end_to_end=end_to_end)
    assert isinstance(lesson, Ascend)
    pupil = lesson.begin(agent, config.world, 0)
    nn.init.normal_(agent.hierarchy.above[1].level.model.level(0).dynamics.change.weight)
    terms = pupil.loss(torch.Generator().manual_seed(0))
    assert {"prediction 1", "prediction 2", "far 2", "prior 1"} <= set(terms)
    terms["prediction 2"].backward()
    below = agent.hierarchy.above[0].level
    for part in (below.lift, below.chunk):
        reached = any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
        assert reached == end_to_end


def test_learnt_levels_are_part_of_a_run_and_of_every_plan(tmp_path):
    config = small(recipes.recipe("maze-levels"))
    agent = train(config, out=tmp_path / "run")
    again = train(config, out=tmp_path / "run", resume=True)
    assert agent.hierarchy.remembered.any()
    for name, value in agent.hierarchy.state_dict().items():
        assert torch.equal(value, again.hierarchy.state_dict()[name])
    world = config.evaluation.build(3, goal_distance="long")
    obs, info = world.reset(5)
    for mode in ("react", "plan", "auto"):
        agent.begin()
        agent.configure(Task(goal=world.goal(info), mode=mode))
        plan = agent.act(obs)
        assert plan.hopes.shape == (3, 1, 2, plan.states.shape[-1])
    world.close()
