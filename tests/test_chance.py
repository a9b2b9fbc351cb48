"""Chance where it is: which recorded steps are chance, what is learnt without them, and paths over
landmarks from which chance may lead elsewhere."""

from __future__ import annotations

from itertools import islice
from math import log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ami_agent import recipes
from ami_agent.ablation import without
from ami_agent.config import build, override
from ami_agent.train import train
from ami_agent.training import SelectLandmarks, TrainQuasimetric
from ami_agent.training.base import encode_buffer
from ami_agent.training.chance_steps import ChanceDetector, chance_threshold, replace_chance
from ami_agent.training.optim import OptimConfig
from modules.actor.planning.risk import cvar_weights
from modules.actor.subgoals import LandmarkGraphConfig
from modules.actor.subgoals.landmark_graph import RecordedChance
from modules.actor.subgoals.shortest_paths import Edges, bellman_ford, follow_nodes, shortest_paths
from modules.actor.subgoals.stochastic_edges import (
    ChanceEvents,
    Halves,
    ShortestEdges,
    StochasticPaths,
    estimate_events,
)
from modules.configurator import Task
from modules.cost.goal_critic import QuasimetricConfig
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.types import ConfigError, QuasimetricFns, Trajectory
from modules.world_model.jepa import Step
from tests.conftest import Stepping, small, unexpected_query
from tests.test_hierarchy import lattice, straight, with_target
from tests.test_replay_buffer import assert_is_one_window, collect_data, random_steps

FAR = 1000.0
LOST = torch.tensor(1e4)


def no_events(count: int) -> ChanceEvents:
    return ChanceEvents(torch.zeros(count), torch.eye(count))


def shortest(steps: Tensor) -> ShortestEdges:
    """Edges whose cost is their length."""
    return ShortestEdges.of(Edges(steps, steps), shortest_paths(steps))


def one_way(*lengths: tuple[int, int, float], count: int = 4) -> ShortestEdges:
    """The same; all other edges are far."""
    steps = torch.full((count, count), FAR).fill_diagonal_(0)
    for start, end, length in lengths:
        steps[start, end] = length
    return shortest(steps)


def to_goal(*lengths: float) -> Edges:
    return Edges(*[torch.tensor([lengths])] * 2)


def test_value_iteration_by_hand():
    """From 0 over 1 to the goal it is two steps a hop; half of those who are at 1 for a step are
    thrown, half of them back to 0 and half of them to 3, which is 20 steps away from the goal. The
    detour over 2 takes 5 steps a hop."""
    onward = one_way((0, 1, 2.0), (0, 2, 5.0))
    last = to_goal(FAR, 2.0, 5.0, 20.0)
    outcomes = torch.eye(4)
    outcomes[1] = torch.tensor([0.5, 0, 0, 0.5])
    events = ChanceEvents(torch.tensor([0.0, log(2), 0.0, 0.0]), outcomes)
    paths = StochasticPaths(events, 1.0, LOST)
    costs, after, node = paths.solve(onward, last, torch.tensor([3]))
    # thrown after a step; v0 is the cost of the detour, 10, which is cheaper
    thrown = (10 + 20) / 2
    v1 = 0.5 * (1 + thrown) + 0.5 * 2
    assert costs[0].tolist() == pytest.approx([10, v1, 5, 20])
    assert after[0].tolist() == pytest.approx([10, thrown, 5, 20])
    assert node.tolist() == [[2, 4, 4, 4]]
    hop = 0.5 * (1 + 1 + thrown) + 0.5 * (2 + v1)  # from 0 to 1: thrown in its second half
    here = Halves(torch.zeros(()), events.rate[1])
    edge = Edges(torch.tensor(2.0), torch.tensor(2.0))
    found = paths.edge_costs(edge, costs[0, 1], here, Halves(after[0, 0], after[0, 1]))
    assert float(found) == pytest.approx(hop)
    assert hop > 10


def test_where_chance_is_kind_the_way_leads_through_it():
    """The same, but 3 is a step from the goal: with luck it is nearer than on the detour."""
    onward = one_way((0, 1, 2.0), (0, 2, 5.0))
    last = to_goal(FAR, 20.0, 5.0, 1.0)
    outcomes = torch.eye(4)
    outcomes[1] = torch.tensor([0.5, 0, 0, 0.5])
    events = ChanceEvents(torch.tensor([0.0, log(2), 0.0, 0.0]), outcomes)
    (mean,), _, node = StochasticPaths(events, 1.0, LOST).solve(onward, last, torch.tensor([3]))
    assert node[0, 0] == 1
    assert mean[0] < 10
    (worst,), _, node = StochasticPaths(events, 0.0, LOST).solve(onward, last, torch.tensor([3]))
    assert node[0, 0] == 2
    assert worst[0] == pytest.approx(10)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 9), alpha=st.sampled_from([0.0, 0.4, 1.0]))
def test_without_events_paths_are_the_shortest(seed, count, alpha):
    rng = torch.Generator().manual_seed(seed)
    steps = (0.1 + 5 * torch.rand(count, count, generator=rng)).fill_diagonal_(0)
    last = 0.1 + 5 * torch.rand(3, count, generator=rng)
    paths = StochasticPaths(no_events(count), alpha, LOST)
    found = paths.solve(shortest(steps), Edges(last, last), torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(found[0], bellman_ford(steps, last))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 7))
def test_expected_costs_solve_the_equations_of_the_decision_process(seed, count):
    """The costs of the chosen nodes, by linear equations; and no other node is better."""
    rng = torch.Generator().manual_seed(seed)
    steps = (0.5 + 3 * torch.rand(count, count, generator=rng)).fill_diagonal_(0).double()
    last = 0.5 + 3 * torch.rand(1, count, generator=rng).double()
    rate = torch.rand(count, generator=rng).double() * (torch.rand(count, generator=rng) < 0.5)
    outcomes = torch.rand(count, count, generator=rng).double()
    outcomes = outcomes / outcomes.sum(1, keepdim=True)
    goal_node = torch.zeros(1, dtype=torch.long)
    paths = StochasticPaths(ChanceEvents(rate, outcomes), 1.0, LOST.double())
    costs, _, node = paths.solve(shortest(steps), Edges(last, last), goal_node)

    def row(start: int, end: int) -> tuple[np.ndarray, float]:
        """Weights of the costs of all landmarks, and the cost of the edge itself."""
        length = float(last[0, start] if end == count else steps[start, end])
        second = 0 if end == count else end
        half, weights, own = length / 2, np.zeros(count), 0.0
        stays = 1.0
        for before, node in ((0.0, start), (half, second)):
            event = 1 - np.exp(-float(rate[node]) * half)
            spent = before + min(half, 1 / max(float(rate[node]), 1e-12))
            weights += stays * event * outcomes[node].numpy()
            own += stays * event * spent
            stays *= 1 - event
        if end < count:
            weights[end] += stays
        return weights, own + stays * length

    chosen = [row(start, int(end)) for start, end in enumerate(node[0])]
    matrix = np.eye(count) - np.stack([weights for weights, _ in chosen])
    known = np.linalg.solve(matrix, np.array([own for _, own in chosen]))
    np.testing.assert_allclose(costs[0].numpy(), known, rtol=1e-3)
    for start in range(count):
        for end in [count, *shortest(steps).nodes[start][shortest(steps).exist[start]].tolist()]:
            weights, own = row(start, end)
            assert weights @ known + own >= known[start] * (1 - 1e-3)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_the_cost_after_an_event_is_the_cvar_of_its_outcomes(alpha):
    costs = torch.tensor([[3.0, 9.0, 1.0, 5.0], [1.0, 2.0, 3.0, 4.0]])
    events = ChanceEvents(torch.ones(4), torch.full((4, 4), 0.25))
    found = StochasticPaths(events, alpha, LOST).after_event(costs)
    known = (cvar_weights(costs, alpha) * costs).sum(1, keepdim=True)
    torch.testing.assert_close(found, known.expand(2, 4))


def test_goals_are_solved_as_if_each_were_alone():
    rng = torch.Generator().manual_seed(0)
    steps = (0.1 + torch.rand(80, 80, generator=rng)).fill_diagonal_(0)
    last = 1 + 9 * torch.rand(5, 80, generator=rng)
    events = ChanceEvents(torch.rand(80, generator=rng), torch.full((80, 80), 1 / 80))
    paths, nodes = StochasticPaths(events, 0.5, LOST), torch.arange(5)
    together = paths.solve(shortest(steps), Edges(last, last), nodes)
    single = paths.solve(shortest(steps), Edges(last[3:4], last[3:4]), nodes[3:4])
    torch.testing.assert_close(together[0][3:4], single[0], rtol=1e-3, atol=0)
    assert torch.equal(together[2][3:4], single[2])


def test_neither_one_event_nor_one_safe_step_is_a_certainty():
    visits = torch.tensor([1.0, 1.0, 1000.0, 0.0])
    events = estimate_events(visits, torch.tensor([1]), torch.tensor([2]), torch.tensor(0.5))
    step = 1 - (-events.rate * 0.5).exp()  # the probability in a fast step
    assert step.tolist() == pytest.approx([0, 0.5, 0, 0])
    assert events.outcomes[1].tolist() == [0, 0.5, 0.5, 0]
    assert torch.equal(events.outcomes[[0, 2, 3]], torch.eye(4)[[0, 2, 3]])
    more_events_than_visits = estimate_events(
        torch.zeros(4), torch.tensor([1, 1, 1]), torch.tensor([2, 2, 2]), torch.tensor(0.0)
    )
    assert more_events_than_visits.rate.isfinite().all()
    often = estimate_events(
        torch.full((4,), 99.0), torch.tensor([1] * 99), torch.tensor([2] * 66 + [3] * 33), step[1]
    )
    assert often.outcomes[1].tolist() == pytest.approx([0, 0.01, 0.66, 0.33])


def test_nodes_are_followed_to_the_goal():
    next_node = torch.tensor([[1, 2, 3], [3, 3, 0]])
    onward = torch.arange(9.0).view(3, 3)
    last = torch.tensor([[7.0, 8.0, 9.0], [1.0, 2.0, 3.0]])
    nodes, travelled = follow_nodes(
        torch.tensor([0, 3]), torch.tensor([0.5, 4.0]), next_node, onward, last, 5
    )
    assert nodes.tolist() == [[0, 1, 2, 3, 3], [3] * 5]
    assert travelled.tolist() == [[0.5, 1.5, 6.5, 15.5, 15.5], [4.0] * 5]


def entry(states: Tensor) -> Tensor:
    """Where chance strikes: in the middle of the bottom line of the lattice."""
    return (states - torch.tensor([3.1, 0.0])).norm(dim=-1) < 0.5


def thrown_to(position: list[float], events: int = 20, safe: int = 0) -> RecordedChance:
    """At the entry as many steps as `events` ended elsewhere, and `safe` ones did not."""
    states = lattice()
    at_entry = states[entry(states)].expand(events + safe, -1)
    visited = torch.cat([states[~entry(states)].repeat(20, 1), at_entry])
    after = torch.tensor(position).expand(events, -1)
    return RecordedChance(at_entry[:events], after, visited, len(visited))


def stochastic(recorded: RecordedChance | None, **output) -> Stepping:
    states = lattice()
    config = LandmarkGraphConfig(
        num_landmarks=len(states),
        num_subgoals=40,
        subgoal_spacing=0.5,
        max_edges=40,
        **{"trusted_edge_length": 1.0, "stochastic_edges": True, **output},
    )
    quasimetric = QuasimetricFns(lambda state: state, straight)
    level = Stepping(config.build((2, 1, 1), 2, quasimetric, unexpected_query))
    pairs = ((states[:, None] - states).norm(dim=-1) < 1.5).nonzero()
    level.build(states, states[pairs], states[:, None], recorded)
    return level


START, GOAL = torch.tensor([[0.1, 0.0]]), torch.tensor([[6.1, 0.0]])


def highest(level: Stepping, alpha: float = 1.0) -> float:
    return float(level.plan(START, GOAL, alpha)[0, :, 1].max())


def test_paths_lead_around_places_from_which_chance_leads_back():
    assert highest(stochastic(thrown_to([0.1, 0.0]))) >= 1
    assert highest(stochastic(thrown_to([0.1, 0.0]), stochastic_edges=False)) == 0


def test_a_short_cut_by_chance_is_taken_where_it_pays_on_average():
    def through_entry(level: Stepping, start: Tensor) -> bool:
        return bool(entry(level.plan(start, GOAL)[0]).any())

    start = torch.tensor([[3.1, 3.0]])  # three steps above the entry
    assert through_entry(stochastic(thrown_to([6.1, 0.0])), start)
    assert not through_entry(stochastic(thrown_to([0.1, 0.0])), start)


def test_what_counts_is_how_often_chance_struck():
    """One step of a thousand is worth no detour; in the worst case it is."""
    level = stochastic(thrown_to([0.1, 0.0], events=1, safe=999))
    assert highest(level) == 0
    assert highest(level, 0.0) >= 1


def path_length(start, path):
    """`[B, 2]`, `[B, N, 2]` -> `[B]`"""
    return torch.cat([start[:, None], path], 1).diff(dim=1).norm(dim=-1).sum(-1)


def test_without_chance_stochastic_edges_change_no_path():
    rng = torch.Generator().manual_seed(0)
    state, goal = torch.rand(2, 9, 2, generator=rng) * 6
    plain = stochastic(None, stochastic_edges=False)
    for alpha in (1.0, 0.3):
        calm = stochastic(thrown_to([0.1, 0.0], events=0, safe=20))
        paths = calm.plan(state, goal, alpha), plain.plan(state, goal, alpha)
        # of paths of the same length, rounding decides which is the shorter one
        torch.testing.assert_close(*(path_length(state, path) for path in paths))


def test_each_task_has_its_own_paths_and_feedback_applies_to_them():
    level = stochastic(thrown_to([0.1, 0.0]), stuck_after=4)
    goals = torch.cat([GOAL, torch.tensor([[0.1, 5.0]])])
    starts = START.expand(2, -1)
    led = level(starts, with_target(goals))
    assert torch.equal(led.upper_plans[:, 0], level.plan(starts, goals))
    for _ in range(30):
        level(starts, with_target(goals))  # no agent moves
    assert (level.carry.edge_feedback.penalty.amax(-1) > 0).all()
    level.reset()
    swapped = level(starts, with_target(goals.flip(0)))
    assert torch.equal(swapped.upper_plans[:, 0], level.plan(starts, goals.flip(0)))


def test_graphs_with_stochastic_edges_are_restored():
    level, other = (stochastic(recorded) for recorded in (thrown_to([0.1, 0.0]), None))
    assert highest(other) == 0
    other.load_state_dict(level.state_dict())
    assert torch.equal(other.plan(START, GOAL), level.plan(START, GOAL))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    capacity=st.integers(2, 40),
    steps=st.integers(3, 60),
    length=st.integers(1, 4),
)
def test_no_window_contains_a_step_at_which_episodes_are_split(seed, capacity, steps, length):
    memory = collect_data(seed, steps, capacity)

    def split_at(step):
        """By environment, episode and time."""
        code = (step.obs[:, 0] * torch.tensor([7.0, 13.0, 29.0])).sum(-1)
        return (code + seed) % 5 < 2

    parts = memory.split_episodes(split_at)
    whole = memory.values("action")
    kept = whole[~split_at_values(whole, seed)]
    assert len(parts) == len(kept)
    torch.testing.assert_close(parts.values("action"), kept)
    assert len(memory) == len(whole)  # as it was
    if not len(kept) or parts.max_window() < 1:
        return
    try:
        sample = parts.sample(30, length, torch.Generator().manual_seed(0))
    except Exception:
        return
    assert_is_one_window(sample)
    valid = torch.ones(30, length).bool() if sample.valid is None else sample.valid
    assert not split_at_values(sample.actions[valid], seed).any()


def split_at_values(obs: Tensor, seed: int) -> Tensor:
    return ((obs * torch.tensor([7.0, 13.0, 29.0])).sum(-1) + seed) % 5 < 2


def test_parts_of_an_episode_have_ids_of_their_own():
    transitions = list(islice(random_steps(0, ends=0.0), 9))
    memory = collect_data(0, 9, 9, ends=0.0)
    parts = memory.split_episodes(lambda step: step.obs[:, 0, 2] == 3)
    assert len(memory.episode_ids()) == 3
    ids = parts.episode_ids()
    assert len(ids) == 6
    assert len(ids.unique()) == 6
    assert sorted(parts.get_episode(i).actions.shape[1] for i in ids) == [3] * 3 + [5] * 3
    assert len(transitions) == 9


def test_a_miss_is_chance_where_it_exceeds_two_fast_steps():
    motion = torch.linspace(-1, 1, 2001)[:, None] * torch.tensor([1.0, 0.001])
    threshold = chance_threshold(motion)
    assert threshold.tolist() == pytest.approx([1.9, 0.095], abs=0.01)


def test_predictions_have_no_error_from_a_jump_on():
    predicted = torch.zeros(3, 4, 1, requires_grad=True)
    targets = torch.zeros(3, 4, 1)
    targets[0] = 0.9  # inaccurate
    targets[1, 2:] = 9.0  # a jump in the third step
    targets[2] = torch.tensor([0.9, 1.9, 2.9, 3.9])[:, None]  # one wrong step after the other
    replaced = replace_chance(predicted, targets, torch.tensor([1.0]))
    (replaced - predicted).square().sum().backward()
    assert (predicted.grad != 0).squeeze(-1).tolist() == [
        [True] * 4,
        [False] * 4,
        [True] * 4,
    ]
    assert replaced[1, 2:].tolist() == [[0.0], [0.0]]
    assert not replaced.requires_grad


class LineWorld:
    """A line on which an action moves the point mass, and from whose end chance throws it to its
    beginning."""

    def step(self, state: Tensor, action: Tensor, noise: Tensor | None = None) -> Step:
        return Step(state + 0.05 * action[..., :1] * torch.tensor([1.0, 0, 0, 0]), action)


def line_episodes(count: int, steps: int) -> Trajectory:
    """Walks to the end of the line, with jumps to its beginning, noise, and velocity 0."""
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(count, generator=rng)
    xs, actions = [x], []
    for _ in range(steps):
        actions.append(2 * torch.rand(count, generator=rng) - 0.7)
        moved = x + 0.05 * actions[-1] + 0.002 * torch.randn(count, generator=rng)
        x = torch.where(x > 0.95, 0.05, moved.clamp_min(0))
        xs.append(x)
    obs = nn.functional.pad(torch.stack(xs, 1)[..., None], (0, 3))
    shape = (count, steps)
    return Trajectory(
        obs,
        torch.stack(actions, 1)[..., None].expand(-1, -1, 2).contiguous(),
        torch.zeros(*shape, 1),
        torch.zeros(shape, dtype=torch.bool),
        torch.arange(count),
        None,
    )


@pytest.fixture
def line(monkeypatch):
    """An agent that knows the motion on the line, with recorded walks there, and its settings."""
    config = override(
        recipes.recipe("maze"),
        {
            "perception": MultiModalEncoderConfig(vector_dim=0),
            "cost.goal_critic.distance": QuasimetricConfig(hidden=32),
            "actor.subgoals": LandmarkGraphConfig(num_landmarks=12, stochastic_edges=True),
        },
    )
    agent = build(config, config.env.build(1).spec, num_envs=60, buffer_size=50)
    agent.replay_buffer.add_episode(line_episodes(60, 50))
    monkeypatch.setattr(agent.world_model, "step", LineWorld().step)
    return agent, config


def test_the_detector_finds_every_jump_and_nothing_else(line):
    agent, _ = line
    buffer = encode_buffer(agent)
    steps = buffer.sample(2000, 1, torch.Generator().manual_seed(1))
    jumps = steps.states[:, 1, 0] < steps.states[:, 0, 0] - 0.2
    found = ChanceDetector.fit(agent, buffer)(steps)
    assert 0.005 < jumps.float().mean() < 0.1
    assert torch.equal(found, jumps)


def test_a_jump_is_no_step_of_the_critic(line):
    agent, config = line
    optim = OptimConfig(steps=250, batch_size=64, lr=5e-3, warmup_steps=10)
    start, end = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0.05, 0, 0, 0]])
    lengths, fractions = {}, {}
    for exclude_chance in (False, True):
        torch.manual_seed(0)
        for layer in agent.cost.goal_critic.distance.embed:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        stage = TrainQuasimetric(optim=optim, exclude_chance=exclude_chance)
        stage_run = stage.start(agent, config.env, 0)
        for _ in range(stage_run.total):
            metrics = stage_run.update()
        fractions[exclude_chance] = float(metrics.get("chance_fraction", 0))
        with torch.no_grad():
            lengths[exclude_chance] = float(agent.cost.goal_critic.distance(start, end))
    assert lengths[True] > 1.5 * lengths[False]
    assert 0.005 < fractions[True] < 0.1


def test_the_stage_counts_jumps_where_they_happen(line):
    agent, config = line
    stage_run = SelectLandmarks(num_candidates=500, num_windows=200).start(agent, config.env, 0)
    while stage_run.step < stage_run.total:
        stage_run.update()
    stage_run.finish()
    graph = agent.subgoals
    position, rate = graph.states[:, 0], graph.event_rates
    assert position[rate.argmax()] > 0.9
    landed = position[graph.event_outcomes[rate.argmax()].argmax()]
    assert landed < 0.3
    assert (rate[position < 0.8] == 0).all()
    assert graph.lost_cost > 0


WITH_CHANCE = {
    "actor.subgoals.stochastic_edges": True,
    "stages.train_jepa.exclude_chance": True,
    "stages.train_goal_critic.exclude_chance": True,
}


def test_what_chance_is_worth_is_an_ablation():
    plain = recipes.recipe("windy-rooms")
    assert without(override(plain, WITH_CHANCE), "chance") == plain
    with pytest.raises(ConfigError, match="--without chance changes nothing in windy-rooms"):
        without(plain, "chance")
    untrained = override(override(plain, WITH_CHANCE), {"stages.train_jepa": None})
    with pytest.raises(ConfigError, match="exclude_chance needs the stage train_jepa"):
        untrained.stages["train_goal_critic"].check(untrained, "train_goal_critic")


def test_recipes_with_chance_train_and_act(tmp_path):
    config = override(small(recipes.recipe("windy-rooms")), WITH_CHANCE)
    agent = train(config, out=tmp_path / "run")
    again = train(config, out=tmp_path / "run", resume=True)
    assert torch.equal(agent.subgoals.event_rates, again.subgoals.event_rates)
    assert agent.subgoals.lost_cost == again.subgoals.lost_cost > 0
    obs, info = (env := config.eval_env.build(3)).reset(0)
    for alpha in (1.0, 0.0):
        task = Task(goal=env.goal(info), cvar_alpha=alpha)
        plan = agent.controller(tensors=True, task=task).act(obs)
        assert plan.upper_plans.shape[:2] == (3, 1)
