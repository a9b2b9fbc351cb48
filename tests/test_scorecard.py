"""Metrics of representations, measured on representations with known answers."""

from __future__ import annotations

from dataclasses import replace
from math import log
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ami_agent import recipes
from ami_agent.adapters.env import EnvAdapter, EnvConfig, EnvironmentSpec
from ami_agent.adapters.tensors import ModalitySpec
from ami_agent.config import build, override
from ami_agent.probing import metrics, plot
from ami_agent.probing.data import (
    MIN_POINTS,
    NUM_ENVS,
    NUM_LINES,
    NUM_STEPS,
    POINTS_PER_LINE,
    collect_trajectories,
    factor_lines,
    load_perturbations,
    reset_to_factors,
)
from ami_agent.probing.energies import NextStateEnergy
from ami_agent.probing.scorecard import (
    MEASURES,
    NO_BETTER,
    Scorecard,
    compute_scorecard,
    energy_gradient,
    measure_of,
    open_loop_error,
    task_gradient_overlap,
)
from ami_agent.viewer.drawing import pixels
from modules.types import ConfigError, Rollout
from modules.world_model.hjepa import HierarchicalJEPAConfig
from tests.conftest import unexpected_query


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_explained_variance_is_a_fraction():
    true = torch.tensor([[0.0, 5.0], [2.0, 7.0]])
    assert metrics.explained_variance(true, true) == 1
    assert metrics.explained_variance(true.mean(0).expand(2, -1), true) == pytest.approx(0)
    half = torch.tensor([[0.5, 5.0], [1.5, 7.0]])
    assert metrics.explained_variance(half, true) == pytest.approx((0.75 + 1) / 2)


def test_nearest_neighbours_read_what_a_linear_probe_can_not():
    angle = 6.28 * uniform(3000, 1)
    states = torch.cat([angle.sin(), angle.cos()], 1)
    folded = angle.sin() * angle.cos()
    read = metrics.knn_read(states[:2500], folded[:2500], states[2500:])
    assert metrics.explained_variance(read, folded[2500:]) > 0.99


def test_slowness_by_hand():
    path = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None, None].expand(-1, 2, 1)
    step, variance = 1.0, 2 / 7  # of eight numbers, half of them 1
    assert metrics.slowness(path) == pytest.approx(step / (2 * variance))
    noise = uniform(40, 50, 3)
    assert metrics.slowness(noise) == pytest.approx(1, abs=0.05)
    assert metrics.slowness(noise[:1].expand(40, -1, -1)) == 0


def test_position_states_are_smooth_and_shuffled_ones_are_not():
    positions = uniform(500, 2)
    assert metrics.smoothness(7 * positions, positions * torch.tensor([1.0, 1.0])) > 0.99
    assert abs(metrics.smoothness(positions[torch.randperm(500)], positions)) < 0.1
    assert metrics.smoothness(0 * positions, positions) == 0


def test_sparsity_by_hand():
    alike = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    single = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert metrics.sparsity(alike) == pytest.approx(0, abs=1e-6)
    assert metrics.sparsity(single) == pytest.approx(1, abs=1e-6)
    assert metrics.sparsity(alike[:, :1]) == 0


def test_disentanglement_by_hand():
    assert metrics.dci(torch.eye(3)) == pytest.approx(1)
    assert metrics.dci(torch.ones(4, 3)) == pytest.approx(0, abs=1e-6)
    mixed = torch.tensor([[3.0, 1.0], [0.0, 4.0]])
    entropy = -(0.75 * log(0.75) + 0.25 * log(0.25)) / log(2)
    assert metrics.dci(mixed) == pytest.approx((1 - entropy + 1) / 2)
    assert metrics.dci(torch.ones(4, 1)) == 1


def test_the_mutual_information_gap_is_wide_where_one_dimension_informs_and_zero_where_two_do():
    factors = uniform(8000, 2)
    assert metrics.mig(factors.flip(1), factors) > 0.95
    assert metrics.mig(factors.repeat(1, 2), factors) == pytest.approx(0, abs=1e-6)
    assert metrics.mig(uniform(8000, 2, seed=1), factors) < 0.05
    assert metrics.mig(factors[:, :1], factors[:, :1]) == pytest.approx(1)


def test_noise_and_constants_inform_about_nothing_and_a_copy_of_the_factor_does():
    cue = (uniform(3000, 1) > 0.5).float()
    noise, dead = uniform(3000, 2, seed=1), torch.ones(3000, 3)
    assert metrics.mig(torch.cat([noise, dead], 1), cue) < 0.01
    assert metrics.mig(torch.cat([cue, noise, dead], 1), cue) > 0.98


def test_a_silhouette_by_hand():
    at = torch.tensor([[0.0], [1.0], [10.0], [11.0], [30.0]])
    distance, group = torch.cdist(at, at), torch.tensor([0, 0, 1, 1, 2])
    pair = 9.5 / 10.5 + 8.5 / 9.5  # cluster labels; both groups alike
    assert metrics.silhouette(distance, group) == pytest.approx(2 * pair / 5)  # alone is 0


def test_clusters_are_distinguished_from_their_absence():
    blobs = torch.cat([uniform(300, 2), 9 + uniform(300, 2, seed=1), uniform(300, 2, seed=2) - 9])
    clear, grouped = metrics.cluster(blobs)
    assert clear > 0.9
    assert len(grouped[:, -1].unique()) == 3
    assert (grouped[:, :-1] == blobs[::2]).all()
    assert (
        metrics.cluster(torch.randn(900, 200, generator=torch.Generator().manual_seed(0)))[0] < 0.1
    )
    assert metrics.cluster(torch.zeros(50, 3))[0] == 0


def test_invariance_and_equivariance_by_hand():
    states, other = uniform(4000, 3), uniform(4000, 3, seed=1)
    assert metrics.invariance(states, states) == 1
    assert metrics.invariance(states, other) == pytest.approx(0, abs=0.05)
    assert metrics.equivariance(other, other) == 1
    assert metrics.equivariance(other.mean(0).expand(4000, -1), other) == pytest.approx(0, abs=1e-3)


def test_task_gradients_overlap_as_far_as_they_point_the_same_way():
    x, y = torch.eye(2)[:1].repeat(9, 1), torch.eye(2)[1:].repeat(9, 1)
    assert metrics.gradient_overlap([x, -3 * x]) == pytest.approx(1)
    assert metrics.gradient_overlap([x, y]) == 0
    assert metrics.gradient_overlap([x, x, y]) == pytest.approx(1 / 3)  # one pair of three


def test_a_perfect_prediction_has_error_0_and_that_of_rest_1():
    start, actions = uniform(6, 2), uniform(6, NUM_STEPS, 2, seed=1)
    states = torch.cat([start[:, None], start[:, None] + actions.cumsum(1)], 1)

    class TwoLevelAgent:
        device = torch.device("cpu")
        subgoals = None
        moved = 1.0

        @property
        def world_model(self):
            return self

        def imagine(self, state: Tensor, acts: Tensor) -> Rollout:
            moved = state[:, None, None] + self.moved * acts.cumsum(2)
            path = torch.cat([state[:, None, None], moved], 2)
            return Rollout(path, acts, acts[..., :0], acts[..., :0])

    by_moment, agent = states.transpose(0, 1).flatten(0, 1), TwoLevelAgent()
    (found,) = open_loop_error(agent, by_moment, actions).values()
    assert found == pytest.approx({step: 0 for step in range(1, NUM_STEPS + 1)}, abs=1e-5)
    agent.moved = 0.0
    (found,) = open_loop_error(agent, by_moment, actions).values()
    assert found == pytest.approx({step: 1 for step in range(1, NUM_STEPS + 1)})


def test_trajectories_in_which_an_episode_ends_are_left_out():
    walked = collect_trajectories(EnvConfig(id="CartPole-v1"), 0)
    kept = len(walked.actions)
    assert 0 < kept < NUM_ENVS
    assert len(walked.obs) == (NUM_STEPS + 1) * kept
    first = walked.obs[:kept, 2].abs()
    assert first.max() <= 0.05  # all begin upright
    last = walked.obs[-kept:, 2].abs()
    assert last.max() <= 0.21  # and none has fallen


def test_along_a_line_one_factor_varies_and_no_other():
    config = EnvConfig(id="ami/TwoRooms-v0", variant="random")
    walked = collect_trajectories(config, 5)
    found = factor_lines(config, walked)
    assert {line.factor for line in found} == {0, 1, 2, 3}
    assert max([line.factor for line in found].count(n) for n in range(4)) <= NUM_LINES
    across = next(line for line in found if line.factor == 0)
    assert MIN_POINTS <= len(across.obs) <= POINTS_PER_LINE
    assert (across.factor_values.diff() > 0).all()
    dot, walls = across.obs[:, 0].float(), across.obs[:, 1]
    assert (walls == walls[0]).all()
    position = (dot.sum(1) * torch.arange(dot.shape[-1])).sum(-1) / dot.sum((1, 2))
    assert (position.diff() > 0).all()
    rows = (dot.sum(2) * torch.arange(dot.shape[-2])).sum(-1) / dot.sum((1, 2))
    assert rows == pytest.approx(rows[0].item(), abs=0.05)


def test_where_other_factors_vary_as_well_there_is_no_line(monkeypatch):
    config = EnvConfig(id="ami/TwoRooms-v0", variant="random")
    walked, reset = collect_trajectories(config, 5), EnvAdapter.reset

    def otherwise(self, seed, factors):
        across, down, *layout = factors[0]
        return reset(self, seed, factors=[[across, (down + across) / 2, *layout]])

    monkeypatch.setattr(EnvAdapter, "reset", otherwise)
    found = {line.factor for line in factor_lines(config, walked)}
    assert 0 not in found  # down changes with it


def test_an_env_that_can_not_be_reset_to_factors_says_so():
    config = EnvConfig(id="ami/TwoRooms-v0", variant="fixed")
    env = config.build(1)
    _, info = env.reset(3)
    at = info["factors"][0].copy()
    assert reset_to_factors(env, at, 3) is not None
    at[0] = at[2]  # in the wall
    at[1] = at[3] + 0.3 if at[3] < 0.5 else at[3] - 0.3
    assert reset_to_factors(env, at, 3) is None
    mute = EnvConfig(id="CartPole-v1")
    assert factor_lines(mute, collect_trajectories(mute, 0)) == []


def test_images_are_shifted_dimmed_and_mirrored_and_vectors_get_noise_alone():
    spec = EnvironmentSpec(
        {"eye": ModalitySpec((1, 2, 64), torch.uint8), "arm": ModalitySpec((3,), torch.float32)},
        1,
        ("reward",),
    )
    changes = load_perturbations("", spec)
    assert list(changes) == ["noise", "shift", "dim", "mirror"]
    evaluator = (255 * uniform(50, 1, 2, 64)).to(torch.uint8)
    obs = {"eye": evaluator, "arm": uniform(50, 3)}
    assert (changes["shift"](obs)["eye"][..., 2:] == evaluator[..., :-2]).all()
    assert (changes["shift"](obs)["eye"][..., :2] == evaluator[..., :1]).all()
    assert (changes["dim"](obs)["eye"].float() - 0.7 * evaluator.float()).abs().max() <= 0.5
    assert (changes["mirror"](changes["mirror"](obs)["eye"]) == evaluator).all()
    assert all((changes[name](obs)["arm"] == obs["arm"]).all() for name in list(changes)[1:])
    shaken = changes["noise"](obs)
    assert shaken["eye"].dtype == torch.uint8
    off = (shaken["arm"] - obs["arm"]).std(0) / obs["arm"].std(0)
    assert off == pytest.approx([0.05] * 3, rel=0.3)
    assert (changes["noise"](obs)["arm"] == shaken["arm"]).all()  # the same noise
    zero_weights = load_perturbations("", spec._replace(modalities={"arm": spec.modalities["arm"]}))
    assert list(zero_weights) == ["noise"]


def test_perturbations_of_the_users_own_come_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def changes():\n    return {'upside down': lambda obs: obs.flip(-2)}\n"
        "def none():\n    return {}\n"
    )
    spec = EnvironmentSpec({}, 1, ("reward",))
    (name,), (change,) = zip(*load_perturbations(f"{file}:changes", spec).items(), strict=True)
    assert name == "upside down"
    assert change(torch.arange(3)[:, None]).flatten().tolist() == [2, 1, 0]
    with pytest.raises(ConfigError, match="no function 'nothing'"):
        load_perturbations(f"{file}:nothing", spec)
    with pytest.raises(ConfigError, match="must return functions of observations"):
        load_perturbations(f"{file}:none", spec)


def test_a_perturbation_that_fails_or_changes_the_kind_is_reported(tiny):
    env = tiny.eval_env.build(1)
    agent = build(tiny, env.spec, seed=3, device="cpu", num_envs=1, buffer_size=8).eval()
    with pytest.raises(
        ConfigError, match=r"the perturbation 'odd' fails: ZeroDivisionError: integer division"
    ):
        compute_scorecard(agent, tiny, 0, {"odd": lambda obs: obs / (1 // 0)})
    with pytest.raises(
        ConfigError, match=r"the perturbation 'cut' returns .*torch\.uint8; it must return"
    ):
        compute_scorecard(agent, tiny, 0, {"cut": lambda obs: obs[..., 1:]})


def card(**changes: object) -> Scorecard:
    states = uniform(6, 3)
    energies = {"true": NextStateEnergy(0.1, 0.0), "noise 1": NextStateEnergy(1.1, 0.9)}
    empty = Scorecard({}, {}, {}, states, states[:, :0], (), {}, uniform(6, 4), energies)
    return empty._replace(**changes)


def test_measures_in_which_the_agent_is_worse_than_a_baseline_are_named():
    metrics = {
        "linear": {"agent": 0.9, "untrained": 0.1, "observation": 0.95},
        "slowness": {"agent": 0.3, "untrained": 0.1, "observation": 0.299},  # lower is better
        "sparsity": {"agent": 0.1, "untrained": 0.2, "observation": 0.3},  # neither is
        "task_gradient_overlap": {"agent": 0.1, "untrained": 0.2},
    }
    perturbed = {"dim: follows": {"agent": 0.2, "untrained": 0.5, "observation": 0.1}}
    assert card(metrics=metrics, perturbations=perturbed).remarks() == [
        "worse than an untrained network: change in a step 0.3 (0.1), dim: equivariance 0.2 (0.5)",
        "worse than the raw observation: linear probe 0.9 (0.95)",
    ]
    assert card(metrics={"sparsity": metrics["sparsity"]}).remarks() == []


def test_a_prediction_that_is_no_better_than_no_change_is_called_that():
    good, bad = {1: 0.2, 12: 0.4}, {3: 1.0, 6: NO_BETTER}
    assert card(prediction_errors={"agent": good, "level 2": bad}).remarks() == [
        "agent: the relative open-loop error is 0.2 at 1 and 0.4 at 12 steps ahead, and that of "
        "predicting no change is 1",
        "level 2 predicts no better than 'nothing changes': the relative open-loop error is 1 at 3 "
        "and 0.95 at 6 steps ahead, and that of predicting no change is 1",
    ]


def test_tables_pictures_and_documentation_name_the_measures_alike(monkeypatch, tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "probing.md").read_text()
    values = {"agent": 0.5, "untrained": 0.4, "observation": -3.0}
    perturbations = {f"noise: {key}": values for key in ("stays", "follows")}
    metrics = {key: values for key in MEASURES if key not in ("stays", "follows")}
    found = card(
        metrics=metrics, perturbations=perturbations, prediction_errors={"agent": {1: 0.2, 2: 0.3}}
    )
    figures: list[Figure] = []
    monkeypatch.setattr(plot, "pixels", lambda figure: figures.append(figure) or pixels(figure))
    plot.draw_scorecard(tmp_path / "probe.png", found, "run")
    by_title = {axes.get_title(): axes for axes in figures[0].axes}
    shown = [str(cell) for each in found.tables() for cell in each.columns[0].cells]
    for key, measure in MEASURES.items():
        assert f"| {measure.label} | {measure.unit} | {measure.better or 'neither'} |" in page
        title = f"{measure.label} ({measure.direction})" if measure.better else measure.label
        assert by_title[title].get_ylabel() == measure.unit
        name = key if key in metrics else f"noise: {key}"
        assert measure_of(name).label in shown
    ahead = by_title["open-loop error (lower is better)"]
    assert (ahead.get_xlabel(), ahead.get_ylabel()) == ("steps ahead", "relative error")
    assert all(float(tick).is_integer() for tick in ahead.get_xticks())
    assert by_title["states, coloured by cluster"].get_xlabel() == "first principal direction"
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == list(values)
    assert found.figures()["gap"] == values  # the names in JSON stay as they are


def test_tasks_of_different_drives_overlap_less_than_one_with_itself():
    config = recipes.forage()
    env = config.eval_env.build(1)
    agent = build(config, env.spec, seed=3, device="cpu", num_envs=1, buffer_size=8).eval()
    walked = collect_trajectories(config.eval_env, 0)
    gradients = {name: energy_gradient(agent, walked, task) for name, task in agent.tasks.items()}
    assert all(s.shape == gradients["eat"].shape and s.any() for s in gradients.values())
    found = task_gradient_overlap(agent, walked)["task_gradient_overlap"]
    assert 0 < found < 1
    agent.tasks = {"eat": agent.tasks["eat"]}
    assert task_gradient_overlap(agent, walked) == {}


def test_levels_with_states_of_their_own_are_evaluated_beside_the_lowest():
    config = override(
        recipes.maze_levels(),
        {
            "actor.subgoals": HierarchicalJEPAConfig(
                steps_per_level=(3, 2), level=replace(HierarchicalJEPAConfig().level, state_dim=5)
            )
        },
    )
    env = config.eval_env.build(1)
    agent = build(config, env.spec, seed=3, device="cpu", num_envs=1, buffer_size=8).eval()
    found = compute_scorecard(agent, config, 0, load_perturbations("", agent.spec))
    label = ["agent", "level 2", "level 3", "untrained", "observation"]
    by_metric = {**found.metrics, **found.perturbations}
    assert all(list(values) == label for values in by_metric.values())
    assert list(found.prediction_errors["level 2"]) == [3, 6, 9, 12]
    assert list(found.prediction_errors["level 3"]) == [6, 12]
    flat = replace(config.actor.subgoals, level=replace(config.actor.subgoals.level, state_dim=0))
    agent = build(
        override(config, {"actor.subgoals": flat}),
        env.spec,
        seed=3,
        device="cpu",
        num_envs=1,
        buffer_size=8,
    )
    assert [level.has_own_states for level in agent.subgoals.learned_levels] == [False, False]


def test_a_level_predicts_the_outcome_of_its_own_macro_actions():
    levels = HierarchicalJEPAConfig(steps_per_level=(3, 2)).build(
        (4, 1, 1), 2, None, unexpected_query
    )
    low, high = levels.learned_levels
    assert (low.num_steps, high.num_steps) == (3, 6)
    state, actions = uniform(7, 4), uniform(7, 14, 2, seed=1)
    one, two = levels.levels
    macros = one.encode_actions(actions[:, :12])
    assert torch.equal(low.predict(state, actions), one.world_model.unroll(state, macros))
    beyond = two.world_model.unroll(state, two.encode_actions(macros))
    assert torch.equal(high.predict(state, actions), beyond)


def test_a_scorecard_distinguishes_a_trained_agent_from_an_untrained_one(tiny):
    config = replace(tiny, eval_env=replace(tiny.eval_env, options={"max_episode_steps": 30}))
    env = config.eval_env.build(1)
    agent = build(config, env.spec, seed=3, device="cpu", num_envs=1, buffer_size=8).eval()
    found = compute_scorecard(agent, config, 0, load_perturbations("", agent.spec))
    metrics = found.metrics
    assert set(metrics) == set(MEASURES) - {
        "stays",
        "follows",
        "task_gradient_overlap",
    }  # there is one task
    stays = {name: values["agent"] for name, values in found.perturbations.items()}
    assert stays["noise: stays"] > 0.8 > stays["mirror: stays"]
    assert set(found.factor_sweeps) == {"dot x", "dot y"}
    assert found.names == ("dot x", "dot y")  # walls that never move are no factor
    assert all(list(metric) == ["agent", "untrained", "observation"] for metric in metrics.values())
    assert 0.3 < metrics["linear"]["observation"] < metrics["neighbours"]["observation"] <= 1
    assert list(found.prediction_errors["agent"]) == [*range(1, NUM_STEPS + 1)]
    zero_weights = recipes.gym(EnvConfig(id="Pendulum-v1"))
    env = zero_weights.eval_env.build(1)
    agent = build(zero_weights, env.spec, seed=3, device="cpu", num_envs=1, buffer_size=8).eval()
    found = compute_scorecard(agent, zero_weights, 0, load_perturbations("", agent.spec))
    assert list(found.metrics) == [
        "slowness",
        "sparsity",
        "dimensions",
        "groups",
    ]
    assert found.names == ()
