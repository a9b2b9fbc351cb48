"""Layouts that were not in training: keypoint maps, dynamics that read a glimpse of the map around
the agent, and imagined landmarks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from ami_agent import recipes
from ami_agent.config import build, override
from ami_agent.train import train
from ami_agent.validate import check_stages
from modules.actor.policy import StuckPerturbationConfig
from modules.actor.subgoals import ImaginedLandmarkGraph, ImaginedLandmarkGraphConfig
from modules.actor.subgoals.shortest_paths import bellman_ford, distance_penalty
from modules.configurator import Task
from modules.cost.goal_critic import GlimpseQuasimetricConfig
from modules.nets import POSITION_SCALE, GlimpseConfig
from modules.perception.image import KeypointMapEncoder, KeypointMapEncoderConfig
from modules.types import ConfigError, QuasimetricFns
from modules.world_model.dynamics import GlimpseDynamicsConfig, MLPDynamics
from tests.conftest import Stepping, make_context, small
from tests.test_hierarchy import straight

SIDE, CHANNELS = 6, 2
GLANCE = GlimpseConfig(channels=CHANNELS, radius=1)
SHAPE = (4 + CHANNELS * SIDE**2, 1, 1)
STEP = 0.5


def scene(column: float, row: float, still: Tensor) -> Tensor:
    """An agent at rest at a position of the map `[C, S, S]` -> state `[1, D]`."""
    position = torch.tensor([column, row]) / (SIDE - 1) * 2 - 1
    return torch.cat([POSITION_SCALE * position, torch.zeros(2), still.flatten()])[None]


def still(seed: int = 0) -> Tensor:
    return torch.randn(CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def test_a_glimpse_shows_the_map_around_the_agent():
    glance, build_wrappers = GLANCE.build(SHAPE), still()
    observed = glance(scene(2, 3, build_wrappers))[0]
    assert observed[:4].tolist() == pytest.approx(scene(2, 3, build_wrappers)[0, :4].tolist())
    torch.testing.assert_close(
        observed[4:], build_wrappers[:, 2:5, 1:4].flatten(), atol=1e-5, rtol=0
    )
    between = glance(scene(2.5, 3, build_wrappers))[0, 4:]
    half = (build_wrappers[:, 2:5, 1:4] + build_wrappers[:, 2:5, 2:5]).flatten() / 2
    torch.testing.assert_close(between, half, atol=1e-5, rtol=0)


def test_every_point_has_a_glimpse_of_its_own():
    two = GlimpseConfig(points=2, channels=CHANNELS, radius=0).build((8 + CHANNELS * SIDE**2, 1, 1))
    position = torch.tensor([1.0, 4.0, 2.0, 3.0]) / (SIDE - 1) * 2 - 1  # x of both, then y of both
    state = torch.cat([POSITION_SCALE * position, torch.zeros(4), still().flatten()])[None]
    observed = two(state)[0, 8:].unflatten(0, (CHANNELS, 2))
    torch.testing.assert_close(observed[:, 0], still()[:, 2, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(observed[:, 1], still()[:, 3, 4], atol=1e-5, rtol=0)


def test_a_glimpse_accepts_any_batch_and_has_a_gradient_in_its_position():
    glance = GLANCE.build(SHAPE)
    rising = torch.arange(SIDE).float().expand(CHANNELS, SIDE, SIDE)  # from column to column
    state = scene(2.3, 3, rising).requires_grad_()
    glance(state)[:, 4:].sum().backward()
    assert state.grad[0, 0] > 0.1 > abs(float(state.grad[0, 1]))
    many = scene(1, 1, still()).expand(3, 5, -1)
    assert glance(many).shape == (3, 5, glance.out)
    assert torch.equal(glance(many)[2, 4], glance(many[0, :1])[0])


@pytest.mark.parametrize("shape", [(4 + 2 * 35, 1, 1), (4, 1, 1), (2, 1, 1)])
def test_maps_without_keypoint_channels_are_refused(shape):
    for config in (GlimpseDynamicsConfig(glimpse=GLANCE), GlimpseQuasimetricConfig(glimpse=GLANCE)):
        with pytest.raises(ConfigError, match=f"a state of {shape[0]} numbers does not hold"):
            config.build(shape, 2) if isinstance(config, GlimpseDynamicsConfig) else config.build(
                shape
            )


def lively() -> MLPDynamics:
    torch.manual_seed(0)
    model = GlimpseDynamicsConfig(hidden=16, glimpse=GLANCE).build(SHAPE, 2)
    torch.nn.init.normal_(model.delta_head.weight)
    return model


def test_static_channels_stay_and_only_those_nearby_matter():
    model, act = lively(), torch.tensor([[0.3, -1.0]])
    before = scene(1, 1, still())
    after = model(before, act)
    assert torch.equal(after[:, 4:], before[:, 4:])
    assert not torch.equal(after[:, :4], before[:, :4])
    far, near = still().clone(), still().clone()
    far[:, :, 3:] += 5  # beyond the glimpse from column 1
    near[:, 1, 2] += 5
    assert torch.equal(model(scene(1, 1, far), act)[:, :4], after[:, :4])
    assert not torch.allclose(model(scene(1, 1, near), act)[:, :4], after[:, :4])
    # the action is read from the motion
    assert model.inverse(before, after).shape == (1, 2)
    assert not torch.equal(model.inverse(before, after), model.inverse(before, before))
    torch.testing.assert_close(
        model.inverse(before, after),
        model.inverse(scene(1, 1, far), torch.cat([after[:, :4], before[:, 4:]], 1)),
    )


def test_the_distance_depends_on_the_map_around_both_ends():
    torch.manual_seed(0)
    distance = GlimpseQuasimetricConfig(glimpse=GLANCE).build(SHAPE)
    start, goal = scene(1, 1, still()), scene(4, 4, still())
    other = still().clone()
    other[:, 4, 4] += 3
    assert distance(start, goal) >= 0
    assert distance(start, start) == 0
    assert distance(start, goal) != distance(start, scene(4, 4, other))


def make_evaluators(**output) -> KeypointMapEncoder:
    torch.manual_seed(0)
    return KeypointMapEncoderConfig(**output).build({"obs": (3, 12, 12)})


def image(seed: int) -> Tensor:
    return torch.randint(256, (3, 12, 12), generator=torch.Generator().manual_seed(seed)).byte()


def test_a_keypoint_map_is_the_moving_channels_and_then_the_static_ones():
    see = make_evaluators(channels=2)
    assert see.shape == (4 + 2 * 6 * 6, 1, 1)
    one, moved, walled = image(0), image(0), image(0)
    moved[1:] = image(1)[1:]
    walled[0] = image(2)[0]
    here, there, elsewhere = see(torch.stack([one, moved, walled]), {})
    assert torch.equal(here[4:], there[4:])
    assert not torch.allclose(here[:4], there[:4])
    assert torch.equal(here[:4], elsewhere[:4])
    assert not torch.allclose(here[4:], elsewhere[4:])
    swapped = see(one[None, [0, 2, 1]], {})[0]
    point = see.points(one[None, 1:2] / 255)[0]
    torch.testing.assert_close(here[:2], POSITION_SCALE * point)
    torch.testing.assert_close(
        here[2:4], see.config.motion_scale * (here[:2] - swapped[:2]) / POSITION_SCALE
    )
    rest = one.clone()
    rest[2] = rest[1]
    assert see(rest[None], {})[0, 2:4].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("output", "shape", "message"),
    [
        (
            {"current_channels": (1,), "previous_channels": ()},
            (3, 12, 12),
            "current_channels has 1 channels, previous_channels 0 and static_channels 1",
        ),
        ({"static_channels": ()}, (3, 12, 12), "static_channels 0"),
        ({"static_channels": (3,)}, (3, 12, 12), "channel 3 of an image that has 3"),
        ({}, (3, 12, 16), "the image is of 12 by 16; it must be a square"),
        ({}, (4,), "no images"),
        ({"stride": 0}, (3, 12, 12), "stride is 0"),
    ],
)
def test_observations_without_static_channels_are_refused(output, shape, message):
    with pytest.raises(ConfigError, match=message):
        KeypointMapEncoderConfig(**output).build({"obs": shape})


# Points in the square from 0 to 6, with a wall on the line x = 3 that is open above
# y = 4, or not at all; a step leads half a unit on, and none leads through the wall.


def walking(gate: float):
    def ahead(state: Tensor, free: Tensor) -> Tensor:
        position, path = state[:, None].expand(-1, free.shape[1], -1), []
        for act in (free / free.norm(dim=-1, keepdim=True).clamp_min(1)).unbind(2):
            onward = (position + STEP * act).clamp(0, 6)
            crossed = (position[..., 0] < 3) != (onward[..., 0] < 3)
            stopped = crossed & (torch.minimum(position[..., 1], onward[..., 1]) < gate)
            position = torch.where(stopped[..., None], position, onward)
            path.append(position)
        return torch.stack(path, 2)

    return ahead


def near_by(state: Tensor, goal: Tensor) -> Tensor:
    """Steps in a straight line, except across the wall, which is known nearby only."""
    across = ((state[..., 0] < 3) != (goal[..., 0] < 3)) & (
        torch.minimum(state[..., 1], goal[..., 1]) < 4
    )
    far = straight(state, goal) / STEP
    return far + 30 * (across & (far < 7))


def imagining(gate: float = 4, distance=near_by, **output) -> Stepping:
    config = ImaginedLandmarkGraphConfig(
        **{"num_landmarks": 97, "min_spacing": 1.0, "subgoal_spacing": 3.0, **output}
    )
    quasimetric = QuasimetricFns(lambda state: state, distance)
    return Stepping(config.build((2, 1, 1), 2, quasimetric, walking(gate)))


START, GOAL = torch.tensor([[1.0, 1.0]]), torch.tensor([[5.0, 1.0]])


def with_target(goal: Tensor):
    return make_context(goal, weights={"critic": 1.0})


def test_imagined_landmarks_are_reachable_states_alone():
    positions = imagining().build(START, GOAL).landmarks[0]
    assert positions.shape == (97, 2)
    assert torch.equal(positions[0], START[0])
    for x, y in ((0.5, 5.5), (0.5, 0.5), (5.5, 0.5), (5.5, 5.5)):  # all over
        assert straight(positions, torch.tensor([x, y])).min() < 1.5
    closed = imagining(gate=7).build(START, GOAL)
    assert (closed.landmarks[..., 0] < 3).all()
    # spread: none are nearer than that while there is anything as far
    few = imagining(num_landmarks=9, min_spacing=2.0, nodes_per_round=8, branches=60)
    few = few.build(START, GOAL)
    steps = near_by(few.landmarks[0][:, None], few.landmarks[0]).fill_diagonal_(torch.inf)
    assert steps.min() >= 2.0


def test_the_path_leads_round_the_wall():
    level = imagining(subgoal_spacing=1.0)  # a straight path would cut corners
    state = START
    passed = []
    for _ in range(60):
        goal = level(state, with_target(GOAL)).goal
        assert straight(state, goal) > 0
        onward = (goal - state) / straight(state, goal)[:, None].clamp_min(STEP)
        state = walking(4)(state, onward[:, None, None])[:, 0, 0]
        passed.append(state)
        if straight(state, GOAL) < STEP:
            break
    way = torch.cat(passed)
    assert straight(state, GOAL) < STEP
    assert way[:, 1].max() > 4  # through the gate
    # in a straight line, no agent gets there
    assert torch.equal(imagining(num_landmarks=2)(START, with_target(GOAL)).goal, GOAL)


def test_the_cost_of_a_path_is_the_least():
    level = imagining()
    graph = level.build(START, GOAL)
    every = torch.cat([graph.landmarks[0], GOAL])
    price = distance_penalty(
        near_by(every[:, None], every), level.config.trusted_edge_length
    ).clamp_min(1e-9)
    known = dijkstra(price.double().numpy().T, indices=len(every) - 1)[:-1]
    np.testing.assert_allclose(graph.cost_to_go[0].numpy(), known, rtol=1e-3, atol=0.1)


def test_the_cheapest_path_is_found_whatever_the_order():
    line = torch.full((4, 4), torch.inf)
    line[3, 1] = line[1, 0] = line[0, 2] = 1.0
    last = torch.tensor([torch.inf, torch.inf, 1.0, 50.0])
    assert bellman_ford(line, last).tolist() == [2.0, 3.0, 1.0, 4.0]
    assert bellman_ford(line[None], last[None])[0].tolist() == [2.0, 3.0, 1.0, 4.0]


def test_envs_do_not_mix_and_a_seed_imagines_the_same():
    starts = torch.tensor([[2.0, 1.0], [5.0, 5.0], [0.5, 3.0]])
    goals = torch.tensor([[4.0, 1.0], [0.5, 0.5], [5.5, 3.0]])
    level, single = imagining(), imagining()
    together = level(starts, with_target(goals))
    for env in range(3):
        single.reset(0)
        own = single(starts[env : env + 1], with_target(goals[env : env + 1]))
        torch.testing.assert_close(own.goal[0], together.goal[env])
        torch.testing.assert_close(
            single.carry.graph.landmarks[0], level.carry.graph.landmarks[env]
        )
    once = level.carry.graph.landmarks
    level.reset(1)
    level(starts, with_target(goals))
    assert not torch.equal(level.carry.graph.landmarks[:, 1:], once[:, 1:])


def test_landmarks_are_kept_for_an_episode():
    level = imagining()
    level(START, with_target(GOAL))
    first = level.carry.graph.landmarks
    level(START + 0.3, with_target(GOAL))
    assert level.carry.graph.landmarks is first
    level.reset()
    level(START + 0.3, with_target(GOAL))
    assert not torch.equal(level.carry.graph.landmarks, first)


def test_without_progress_the_agent_follows_closely_and_then_takes_another_path():
    level = imagining(subgoal_spacing=3.0, stuck_after=2)
    tried = [level(START, with_target(GOAL)).goal for _ in range(40)]  # whatever the subgoal
    away = [float(straight(START, goal)) for goal in tried]
    assert len({round(step, 3) for step in away[:2]}) == 1
    assert away[2] < away[0]  # the next landmark, not a full spacing ahead
    assert len({tuple(goal[0].tolist()) for goal in tried}) > 3
    lively = imagining(subgoal_spacing=3.0, stuck_after=2)
    first = lively(START, with_target(GOAL)).goal
    for moved in (1.0, 2.0, 3.0):  # an agent with progress penalises no edge
        lively(START + torch.tensor([[0.0, moved]]), with_target(GOAL))
    assert not lively.carry.edge_feedback.penalty.any()
    assert torch.equal(lively(START, with_target(GOAL)).goal, first)


def test_where_the_direct_way_fails_another_path_is_taken():
    zero_weights, near = (
        straight,
        torch.tensor([[2.2, 1.0]]),
    )  # two steps and more, whatever is between
    level = imagining(distance=lambda state, goal: zero_weights(state, goal) / STEP, stuck_after=2)
    assert torch.equal(level(START, with_target(near)).goal, near)
    chosen = []
    for _ in range(20):
        level(START, with_target(near))
        chosen.append(int(level.carry.edge_feedback.chosen_edge))
    straight_on = chosen.index(97)
    assert any(edge != 97 for edge in chosen[straight_on:])


def test_near_goals_are_pursued_directly_and_none_where_there_is_none():
    level = imagining()
    near = START + torch.tensor([[0.0, 0.4]])
    assert torch.equal(level(START, with_target(near)).goal, near)
    idle = make_context(GOAL, weights={"control_cost": 1.0})
    assert level(START, idle) is idle


def test_without_a_goal_critic_landmarks_have_no_distances():
    with pytest.raises(ConfigError, match="ImaginedLandmarkGraph needs the critic's distance"):
        ImaginedLandmarkGraphConfig().build((2, 1, 1), 2, None, walking(4))


@pytest.mark.parametrize(
    "setting",
    [
        "num_landmarks",
        "nodes_per_round",
        "branches",
        "branch_steps",
        "frontier_size",
        "trusted_edge_length",
        "subgoal_spacing",
        "num_subgoals",
        "max_edges",
    ],
)
def test_settings_of_zero_are_refused(setting):
    with pytest.raises(ConfigError, match=f"{setting} is 0"):
        ImaginedLandmarkGraphConfig(**{setting: 0})


def test_the_recipe_trains_and_gives_subgoals(tmp_path):
    config = small(recipes.recipe("maze-random"))
    agent = train(config, out=tmp_path / "run", seed=0)
    controller = agent.controller(tensors=True)
    env = config.eval_env.build(3, goal_distance="long")
    obs, info = env.reset(0)
    controller.set_task(Task(goal=env.goal(info)))
    plan = controller.act(obs)
    assert plan.upper_plans.shape == (3, 1, 4, agent.shape[0])
    assert plan.subgoals.shape == (3, 1, agent.shape[0])


def test_stuck_recovery_is_refused_with_imagined_landmarks():
    config = override(
        small(recipes.recipe("maze-random")), {"actor.stuck_recovery": StuckPerturbationConfig()}
    )
    with pytest.raises(ConfigError, match="with subgoals ImaginedLandmarkGraph it must be None"):
        check_stages(config)


def test_training_and_evaluation_have_different_layouts():
    config = recipes.recipe("maze-random")
    assert config.env.options["split"] == "train"
    assert config.eval_env.options["split"] == "test"
    assert isinstance(build(config, config.env.build(1).spec).subgoals, ImaginedLandmarkGraph)
