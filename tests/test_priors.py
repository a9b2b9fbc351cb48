"""What is said of a representation, measured against representations that are known."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch
from torch import Tensor

from ami_agent import measures, recipes
from ami_agent.build import build
from ami_agent.cares import shared, slope
from ami_agent.changes import asked
from ami_agent.life import Spec, World, WorldConfig
from ami_agent.priors import TOLD, card, foreseen
from ami_agent.senses import Sense
from ami_agent.strolls import FEWEST, LINES, PLACES, STEPS, WORLDS, lines, put, strolls
from modules.hierarchy import Flat, MacroLevels
from modules.types import Rollout, UnusableInput
from tests.conftest import unasked


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_what_is_explained_is_a_share_of_the_variance():
    true = torch.tensor([[0.0, 5.0], [2.0, 7.0]])
    assert measures.explained(true, true) == 1
    assert measures.explained(true.mean(0).expand(2, -1), true) == pytest.approx(0)
    half = torch.tensor([[0.5, 5.0], [1.5, 7.0]])
    assert measures.explained(half, true) == pytest.approx((0.75 + 1) / 2)


def test_the_nearest_tell_what_a_line_cannot():
    angle = 6.28 * uniform(3000, 1)
    states = torch.cat([angle.sin(), angle.cos()], 1)
    folded = angle.sin() * angle.cos()
    read = measures.nearest(states[:2500], folded[:2500], states[2500:])
    assert measures.explained(read, folded[2500:]) > 0.99


def test_slowness_by_hand():
    path = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None, None].expand(-1, 2, 1)
    step, variance = 1.0, 2 / 7  # of eight numbers, half of them 1
    assert measures.slowness(path) == pytest.approx(step / (2 * variance))
    noise = uniform(40, 50, 3)
    assert measures.slowness(noise) == pytest.approx(1, abs=0.05)
    assert measures.slowness(noise[:1].expand(40, -1, -1)) == 0


def test_states_that_are_places_are_smooth_and_shuffled_ones_are_not():
    places = uniform(500, 2)
    assert measures.smoothness(7 * places, places * torch.tensor([1.0, 1.0])) > 0.99
    assert abs(measures.smoothness(places[torch.randperm(500)], places)) < 0.1
    assert measures.smoothness(0 * places, places) == 0


def test_sparsity_by_hand():
    alike = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    alone = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert measures.sparsity(alike) == pytest.approx(0, abs=1e-6)
    assert measures.sparsity(alone) == pytest.approx(1, abs=1e-6)
    assert measures.sparsity(alike[:, :1]) == 0


def test_purity_by_hand():
    assert measures.purity(torch.eye(3)) == pytest.approx(1)
    assert measures.purity(torch.ones(4, 3)) == pytest.approx(0, abs=1e-6)
    mixed = torch.tensor([[3.0, 1.0], [0.0, 4.0]])
    entropy = -(0.75 * log(0.75) + 0.25 * log(0.25)) / log(2)
    assert measures.purity(mixed) == pytest.approx((1 - entropy + 1) / 2)
    assert measures.purity(torch.ones(4, 1)) == 1


def test_the_gap_is_wide_where_one_number_tells_and_none_where_two_do():
    factors = uniform(8000, 2)
    assert measures.gap(factors.flip(1), factors) > 0.95
    assert measures.gap(factors.repeat(1, 2), factors) == pytest.approx(0, abs=1e-6)
    assert measures.gap(uniform(8000, 2, seed=1), factors) < 0.05
    assert measures.gap(factors[:, :1], factors[:, :1]) == pytest.approx(1)


def test_what_is_the_same_tells_nothing_and_a_switch_is_told_by_whoever_knows_it():
    cue = (uniform(3000, 1) > 0.5).float()
    noise, dead = uniform(3000, 2, seed=1), torch.ones(3000, 3)
    assert measures.gap(torch.cat([noise, dead], 1), cue) < 0.01
    assert measures.gap(torch.cat([cue, noise, dead], 1), cue) > 0.98


def test_a_silhouette_by_hand():
    at = torch.tensor([[0.0], [1.0], [10.0], [11.0], [30.0]])
    apart, group = torch.cdist(at, at), torch.tensor([0, 0, 1, 1, 2])
    pair = 9.5 / 10.5 + 8.5 / 9.5  # who stands outside, who inside; both groups alike
    assert measures.silhouette(apart, group) == pytest.approx(2 * pair / 5)  # alone is 0


def test_what_falls_into_groups_is_told_from_what_does_not():
    blobs = torch.cat([uniform(300, 2), 9 + uniform(300, 2, seed=1), uniform(300, 2, seed=2) - 9])
    clear, grouped = measures.groups(blobs)
    assert clear > 0.9
    assert len(grouped[:, -1].unique()) == 3
    assert (grouped[:, :-1] == blobs[::2]).all()
    assert (
        measures.groups(torch.randn(900, 200, generator=torch.Generator().manual_seed(0)))[0] < 0.1
    )
    assert measures.groups(torch.zeros(50, 3))[0] == 0


def test_staying_and_following_by_hand():
    states, other = uniform(4000, 3), uniform(4000, 3, seed=1)
    assert measures.sameness(states, states) == 1
    assert measures.sameness(states, other) == pytest.approx(0, abs=0.05)
    assert measures.followed(other, other) == 1
    assert measures.followed(other.mean(0).expand(4000, -1), other) == pytest.approx(0, abs=1e-3)


def test_energies_overlap_as_far_as_they_change_along_the_same_directions():
    x, y = torch.eye(2)[:1].repeat(9, 1), torch.eye(2)[1:].repeat(9, 1)
    assert measures.overlap([x, -3 * x]) == pytest.approx(1)
    assert measures.overlap([x, y]) == 0
    assert measures.overlap([x, x, y]) == pytest.approx(1 / 3)  # one pair of three


def test_what_is_foreseen_exactly_is_0_and_what_is_expected_to_rest_1():
    start, actions = uniform(6, 2), uniform(6, STEPS, 2, seed=1)
    states = torch.cat([start[:, None], start[:, None] + actions.cumsum(1)], 1)

    class Mind:
        device = torch.device("cpu")
        hierarchy = Flat()
        moved = 1.0

        @property
        def world_model(self):
            return self

        def imagine(self, state: Tensor, acts: Tensor) -> Rollout:
            moved = state[:, None, None] + self.moved * acts.cumsum(2)
            path = torch.cat([state[:, None, None], moved], 2)
            return Rollout(path, acts, acts[..., :0], acts[..., :0])

    by_moment, mind = states.transpose(0, 1).flatten(0, 1), Mind()
    (found,) = foreseen(mind, by_moment, actions).values()
    assert found == pytest.approx({step: 0 for step in range(1, STEPS + 1)}, abs=1e-5)
    mind.moved = 0.0
    (found,) = foreseen(mind, by_moment, actions).values()
    assert found == pytest.approx({step: 1 for step in range(1, STEPS + 1)})


def test_walks_in_which_an_episode_ends_are_left_out():
    walked = strolls(WorldConfig(id="CartPole-v1"), 0)
    kept = len(walked.actions)
    assert 0 < kept < WORLDS
    assert len(walked.obs) == (STEPS + 1) * kept
    first = walked.obs[:kept, 2].abs()
    assert first.max() <= 0.05  # all begin upright
    last = walked.obs[-kept:, 2].abs()
    assert last.max() <= 0.21  # and none has fallen


def test_along_a_line_one_factor_moves_and_no_other():
    config = WorldConfig(id="ami/TwoRooms-v0", variant="random")
    walked = strolls(config, 5)
    found = lines(config, walked)
    assert {line.factor for line in found} == {0, 1, 2, 3}
    assert max([line.factor for line in found].count(n) for n in range(4)) <= LINES
    across = next(line for line in found if line.factor == 0)
    assert FEWEST <= len(across.obs) <= PLACES
    assert (across.places.diff() > 0).all()
    dot, walls = across.obs[:, 0].float(), across.obs[:, 1]
    assert (walls == walls[0]).all()
    place = (dot.sum(1) * torch.arange(dot.shape[-1])).sum(-1) / dot.sum((1, 2))
    assert (place.diff() > 0).all()
    rows = (dot.sum(2) * torch.arange(dot.shape[-2])).sum(-1) / dot.sum((1, 2))
    assert rows == pytest.approx(rows[0].item(), abs=0.05)


def test_where_other_factors_move_as_well_there_is_no_line(monkeypatch):
    config = WorldConfig(id="ami/TwoRooms-v0", variant="random")
    walked, reset = strolls(config, 5), World.reset

    def otherwise(self, seed, factors):
        across, down, *layout = factors[0]
        return reset(self, seed, factors=[[across, (down + across) / 2, *layout]])

    monkeypatch.setattr(World, "reset", otherwise)
    found = {line.factor for line in lines(config, walked)}
    assert 0 not in found  # down moves with it


def test_who_can_not_be_put_somewhere_says_so():
    config = WorldConfig(id="ami/TwoRooms-v0", variant="fixed")
    world = config.build(1)
    _, info = world.reset(3)
    at = info["factors"][0].copy()
    assert put(world, at, 3) is not None
    at[0] = at[2]  # in the wall
    at[1] = at[3] + 0.3 if at[3] < 0.5 else at[3] - 0.3
    assert put(world, at, 3) is None
    mute = WorldConfig(id="CartPole-v1")
    assert lines(mute, strolls(mute, 0)) == []


def test_pictures_shift_dim_and_are_mirrored_and_vectors_only_shaken():
    spec = Spec(
        {"eye": Sense((1, 2, 64), torch.uint8), "arm": Sense((3,), torch.float32)}, 1, ("reward",)
    )
    changes = asked("", spec)
    assert list(changes) == ["noise", "shift", "dim", "mirror"]
    eye = (255 * uniform(50, 1, 2, 64)).to(torch.uint8)
    obs = {"eye": eye, "arm": uniform(50, 3)}
    assert (changes["shift"](obs)["eye"][..., 2:] == eye[..., :-2]).all()
    assert (changes["shift"](obs)["eye"][..., :2] == eye[..., :1]).all()
    assert (changes["dim"](obs)["eye"].float() - 0.7 * eye.float()).abs().max() <= 0.5
    assert (changes["mirror"](changes["mirror"](obs)["eye"]) == eye).all()
    assert all((changes[name](obs)["arm"] == obs["arm"]).all() for name in list(changes)[1:])
    shaken = changes["noise"](obs)
    assert shaken["eye"].dtype == torch.uint8
    off = (shaken["arm"] - obs["arm"]).std(0) / obs["arm"].std(0)
    assert off == pytest.approx([0.05] * 3, rel=0.3)
    assert (changes["noise"](obs)["arm"] == shaken["arm"]).all()  # the same chance every time
    blind = asked("", spec._replace(senses={"arm": spec.senses["arm"]}))
    assert list(blind) == ["noise"]


def test_changes_of_ones_own_come_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def changes():\n    return {'upside down': lambda obs: obs.flip(-2)}\n"
        "def none():\n    return {}\n"
    )
    spec = Spec({}, 1, ("reward",))
    (name,), (change,) = zip(*asked(f"{file}:changes", spec).items(), strict=True)
    assert name == "upside down"
    assert change(torch.arange(3)[:, None]).flatten().tolist() == [2, 1, 0]
    with pytest.raises(UnusableInput, match="no function 'nothing'"):
        asked(f"{file}:nothing", spec)
    with pytest.raises(UnusableInput, match="must return functions of observations"):
        asked(f"{file}:none", spec)


def test_a_change_that_fails_or_makes_something_else_is_told(tiny):
    world = tiny.evaluation.build(1)
    agent = build(tiny, world.spec, seed=3, device="cpu", worlds=1, capacity=8).eval()
    with pytest.raises(
        UnusableInput, match=r"the change 'odd' fails: ZeroDivisionError: integer division"
    ):
        card(agent, tiny, 0, {"odd": lambda obs: obs / (1 // 0)})
    with pytest.raises(
        UnusableInput, match=r"the change 'cut' returns .*torch\.uint8; it must return"
    ):
        card(agent, tiny, 0, {"cut": lambda obs: obs[..., 1:]})


def test_tasks_of_different_drives_share_less_than_one_has_with_itself():
    config = recipes.forage()
    world = config.evaluation.build(1)
    agent = build(config, world.spec, seed=3, device="cpu", worlds=1, capacity=8).eval()
    walked = strolls(config.evaluation, 0)
    slopes = {name: slope(agent, walked, task) for name, task in agent.assignments.items()}
    assert all(s.shape == slopes["eat"].shape and s.any() for s in slopes.values())
    found = shared(agent, walked)["shared"]
    assert 0 < found < 1
    agent.assignments = {"eat": agent.assignments["eat"]}
    assert shared(agent, walked) == {}
    assert agent.focus is None  # nothing was told to it


def test_levels_with_states_of_their_own_are_judged_beside_the_lowest():
    config = replace(
        recipes.maze_levels(),
        hierarchy=MacroLevels.Config(
            strides=(3, 2), level=replace(MacroLevels.Config().level, size=5)
        ),
    )
    world = config.evaluation.build(1)
    agent = build(config, world.spec, seed=3, device="cpu", worlds=1, capacity=8).eval()
    found = card(agent, config, 0, asked("", agent.spec))
    who = ["agent", "level 2", "level 3", "untrained", "seen"]
    assert all(list(p.marks) == who for p in (*found.priors, *found.changes))
    assert list(found.ahead["level 2"]) == [3, 6, 9, 12]
    assert list(found.ahead["level 3"]) == [6, 12]
    flat = replace(config.hierarchy, level=replace(config.hierarchy.level, size=0))
    agent = build(
        replace(config, hierarchy=flat), world.spec, seed=3, device="cpu", worlds=1, capacity=8
    )
    assert [rung.own for rung in agent.hierarchy.rungs] == [False, False]


def test_what_a_level_foresees_are_its_own_macro_actions():
    levels = MacroLevels.Config(strides=(3, 2)).build((4, 1, 1), 2, None, unasked)
    low, high = levels.rungs
    assert (low.stride, high.stride) == (3, 6)
    state, actions = uniform(7, 4), uniform(7, 14, 2, seed=1)
    one, two = levels.levels
    macros = one.chunks(actions[:, :12])
    assert torch.equal(low.foresee(state, actions), one.model.level(0).unroll(state, macros))
    beyond = two.model.level(0).unroll(state, two.chunks(macros))
    assert torch.equal(high.foresee(state, actions), beyond)


def test_a_card_tells_an_agent_from_one_that_has_learnt_nothing(tiny):
    with_world = replace(
        tiny, evaluation=replace(tiny.evaluation, options={"max_episode_steps": 30})
    )
    world = with_world.evaluation.build(1)
    agent = build(with_world, world.spec, seed=3, device="cpu", worlds=1, capacity=8).eval()
    found = card(agent, with_world, 0, asked("", agent.spec))
    told = {prior.name for prior in found.priors}
    assert told == set(TOLD) - {"stays", "follows", "shared"}  # there is one task
    stays = {prior.name: prior.marks["agent"] for prior in found.changes}
    assert stays["noise: stays"] > 0.8 > stays["mirror: stays"]
    assert {line.name for line in found.alone} == {"dot x", "dot y"}
    assert found.names == ("dot x", "dot y")  # walls that never move are nothing to be known
    marks = {prior.name: prior.marks for prior in found.priors}
    assert all(list(mark) == ["agent", "untrained", "seen"] for mark in marks.values())
    assert 0.3 < marks["linear"]["seen"] < marks["neighbours"]["seen"] <= 1
    assert list(found.ahead["agent"]) == [*range(1, STEPS + 1)]
    blind = recipes.gym(WorldConfig(id="Pendulum-v1"))
    world = blind.evaluation.build(1)
    agent = build(blind, world.spec, seed=3, device="cpu", worlds=1, capacity=8).eval()
    found = card(agent, blind, 0, asked("", agent.spec))
    assert [prior.name for prior in found.priors] == [
        "slowness",
        "sparsity",
        "dimensions",
        "groups",
    ]
    assert found.names == ()
