"""Online actor-critic training: its data, saving and resuming, and that it improves."""

from __future__ import annotations

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.adapters.fault_tolerance import EnvError
from ami_agent.config import buffer_steps, build, override
from ami_agent.evaluation.evaluate import evaluate_modes
from ami_agent.storage import checkpoint
from ami_agent.train import Trainer
from ami_agent.training import CollectBehaviour, OnlineActorCritic, TrainJEPA
from ami_agent.training.actor_critic import actor_critic_loss, choice_loss
from ami_agent.training.critics import lambda_returns
from ami_agent.training.optim import OptimConfig
from modules.actor.planning.risk import ScenarioCVaR
from modules.actor.policy import MAX_ALTERNATIVES, OneHotActions
from modules.cost.drives import Drives, InteroceptiveCost
from modules.memory.short_term import GRUMemoryConfig
from modules.types import ConfigError, Rollout
from modules.world_model.latents import SparseLatentConfig


class Line(gymnasium.Env):
    """A position on a line, where an episode ends at 1; being near 0 is rewarded, and the actions
    are to go left or right (or by so much)."""

    observation_space = Box(-2, 2, (1,), np.float32)

    def __init__(self, choices=False, luck=False, breaks_at=0) -> None:
        self.choices, self.luck, self.breaks_at, self.moments = choices, luck, breaks_at, 0
        self.action_space = Discrete(2) if choices else Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = float(self.np_random.uniform(-0.9, 0.9))
        return np.array([self.position], np.float32), {}

    def step(self, action):
        self.moments += 1
        if self.moments == self.breaks_at:
            raise RuntimeError("the line broke")
        move = 2 * int(action) - 1 if self.choices else float(action[0])
        noise = np.random.default_rng().normal() if self.luck else 0.0
        self.position += 0.1 * move + 0.01 * noise
        done = abs(self.position) > 1
        return (
            np.array([self.position], np.float32),
            1 - abs(self.position),
            done,
            False,
            {},
        )


@pytest.fixture(autouse=True, scope="module")
def _known():
    gymnasium.register("ami-test/Line-v0", entry_point=Line, max_episode_steps=20)
    yield
    del gymnasium.registry["ami-test/Line-v0"]


def recipe(steps=60, ratio=0.5, **options):
    config = ami.recipes.gym(EnvConfig(id="ami-test/Line-v0", options=options))
    optim = OptimConfig(steps=0, batch_size=16)
    return override(
        config,
        {
            "stages.collect": CollectBehaviour(num_envs=2, steps=40),
            "stages.train_jepa.optim": replace(optim, steps=4),
            "stages.actor_critic.steps": steps,
            "stages.actor_critic.updates_per_step": ratio,
            "stages.actor_critic.eval_every": 20,
            "stages.actor_critic.optim": optim,
            "stages.actor_critic.train_jepa.optim": optim,
        },
    )


def stage_run_of(config, collected=True):
    env = config.env.build(1)
    agent = build(
        config, env.spec, num_envs=config.collect.num_envs, buffer_size=buffer_steps(config)
    )
    env.close()
    if collected:
        episode = config.collect.start(agent, config.env, 1)
        for _ in range(config.collect.steps):
            episode.update()
        episode.finish()
    return config.stages["actor_critic"].start(agent, config.env, 2)


def test_rewards_after_termination_do_not_count():
    cost = InteroceptiveCost(Drives(("reward",), ("reward", "alive")), None, 0.5)
    interoception = torch.tensor([[[[1.0, 1.0], [1.0, 0.25], [1.0, 1.0]]]])  # [B, P, H, I]
    path = torch.zeros(1, 1, 4, 2)
    rollout = Rollout(path, torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 0), interoception)
    # mean of the returns over 1, 2 and 3 steps: -1, -1 - 1/2, -1 - 1/2 - 1/4 of a quarter
    by_hand = -(1 + 1.5 + 1.5 + 0.25 * 0.25) / 3
    assert cost(rollout, {})["reward"].item() == pytest.approx(by_hand)
    immortal = InteroceptiveCost(Drives(("reward",), ("reward",)), None, 0.5)
    endless = rollout._replace(interoception=interoception[..., :1])
    assert immortal(endless, {})["reward"].item() == pytest.approx(-(1 + 1.5 + 1.75) / 3)


def test_a_return_by_hand_where_episodes_continue_with_a_probability():
    cost = torch.tensor([[[1.0], [2.0]]])
    ahead = torch.tensor([[[10.0], [20.0]]])
    episodes = torch.tensor([[0.5, 1.0]])
    last = 2 + 0.9 * 20
    first = 1 + 0.5 * 0.9 * (0.25 * 10 + 0.75 * last)
    found = lambda_returns(cost, ahead, episodes, 0.9, 0.75)
    torch.testing.assert_close(found, torch.tensor([[[first], [last]]]))


@pytest.mark.parametrize("choices", [False, True])
def test_a_collected_step_is_stored_and_learnt_from(choices):
    stage_run = stage_run_of(recipe(choices=choices))
    before = {name: part.clone() for name, part in stage_run.agent.state_dict().items()}
    collected = stage_run.agent.replay_buffer.num_added
    for _ in range(3):
        news = stage_run.update()
    assert stage_run.agent.replay_buffer.num_added == collected + 3 * 2
    assert {"model scaled_prediction", "model interoception", "actor energy", "actor value"} <= set(
        news
    )
    moved = {n for n, part in stage_run.agent.state_dict().items() if not part.equal(before[n])}
    for box in (
        "world_model.dynamics",
        "world_model.interoception_head",
        "cost.interoceptive_cost.value_critics",
        "policy",
    ):
        assert any(name.startswith(box) for name in moved), box
    done = stage_run.agent.replay_buffer.recent_actions(3)
    if choices:
        assert (done.sum(-1) == 1).all()
        assert set(done.unique().tolist()) == {0, 1}


def test_the_policy_update_moves_neither_the_world_model_nor_its_critic():
    actor = stage_run_of(recipe()).learner.actor
    agent = actor.agent
    kept = {n: p.clone() for n, p in agent.world_model.named_parameters()}
    slow = [p.clone() for p in actor.target_critics.parameters()]
    actor.post_step = lambda: None
    for _ in range(3):
        actor.update()
    assert all(p.equal(kept[n]) and p.grad is None for n, p in agent.world_model.named_parameters())
    assert all(p.equal(q) for p, q in zip(actor.target_critics.parameters(), slow, strict=True))


@pytest.mark.parametrize(
    ("ratio", "latent"),
    [(0.5, None), (0.2, None), (0.5, SparseLatentConfig())],
)
def test_saved_and_restored_it_collects_and_learns_the_same(ratio, latent, tmp_path):
    config = recipe(ratio=ratio)
    config = replace(config, world_model=replace(config.world_model, latent=latent))
    whole, first = stage_run_of(config), stage_run_of(config)
    for _ in range(35):
        whole.update()
        first.update()
    checkpoint.save(tmp_path / "put-away", first.state_dict(), {})
    agent = first.agent.state_dict()
    second = stage_run_of(config)
    second.agent.load_state_dict(agent)
    second.load_state_dict(checkpoint.load(tmp_path / "put-away", "cpu")[0])
    assert second.step == 35
    for _ in range(25):
        whole.update()
        second.update()
    for name, part in whole.agent.state_dict().items():
        assert part.equal(second.agent.state_dict()[name]), name
    assert torch.equal(
        whole.agent.replay_buffer.recent_actions(60), second.agent.replay_buffer.recent_actions(60)
    )


@pytest.mark.parametrize("method", ["_save_buffer", "_save"])
def test_killed_at_the_end_of_an_episode_it_collects_no_more_steps(method, tmp_path, monkeypatch):
    config = recipe(steps=12)
    whole = ami.train(config, out=tmp_path / "whole", keep_replay_buffer=True)
    index = list(config.stages).index("actor_critic")
    do = getattr(Trainer, method)

    def killed(run, *message):
        if run.stage_index == index + 1:
            raise KeyboardInterrupt
        do(run, *message)

    monkeypatch.setattr(Trainer, method, killed)
    with pytest.raises(KeyboardInterrupt):
        ami.train(config, out=tmp_path / "cut", keep_replay_buffer=True)
    monkeypatch.undo()
    again = ami.train(config, out=tmp_path / "cut", keep_replay_buffer=True, resume=True)
    assert again.replay_buffer.num_added == whole.replay_buffer.num_added
    assert torch.equal(
        again.replay_buffer.recent_actions(60), whole.replay_buffer.recent_actions(60)
    )
    for name, part in whole.state_dict().items():
        assert part.equal(again.state_dict()[name]), name


def test_every_update_imagines_with_other_noise(monkeypatch):
    config = recipe()
    config = replace(config, world_model=replace(config.world_model, latent=SparseLatentConfig()))
    stage_run = stage_run_of(config)
    sample, sampled = ScenarioCVaR.sample, []

    def observed(self, horizon, rng):
        sampled.append(sample(self, horizon, rng))
        return sampled[-1]

    monkeypatch.setattr(ScenarioCVaR, "sample", observed)
    for _ in range(3):
        stage_run.learner.update()
    assert not torch.equal(sampled[0], sampled[1])
    assert not torch.equal(sampled[1], sampled[2])


@pytest.mark.parametrize("latent", [None, SparseLatentConfig()])
def test_the_values_of_the_energy_are_those_that_the_critics_learn_from(latent, monkeypatch):
    config = recipe()
    config = replace(config, world_model=replace(config.world_model, latent=latent))
    actor, found = stage_run_of(config).learner.actor, []

    def observed(evaluated, pre_squash, drives, critics, next_values, td_lambda):
        found.append((evaluated.rollout.states[:, :, 1:], next_values))
        return actor_critic_loss(evaluated, pre_squash, drives, critics, next_values, td_lambda)

    monkeypatch.setattr("ami_agent.training.actor_critic.actor_critic_loss", observed)
    for _ in range(2):
        actor.loss(actor.generator)
        states, next_values = found[-1]
        torch.testing.assert_close(next_values, actor.target_critics.average(states))
        actor.update()


def test_collection_with_short_term_memory_is_the_same_with_and_without_evaluation(tmp_path):
    config = recipe(steps=41)
    online = replace(config.stages["actor_critic"].train_jepa, context_steps=2)
    config = override(
        config,
        {
            "memory.short_term": GRUMemoryConfig(),
            "stages.train_jepa.context_steps": 2,
            "stages.actor_critic.train_jepa": online,
            "stages.actor_critic.eval_every": 7,
        },
    )
    single = ami.train(config, out=tmp_path / "alone")
    for episodes in (2, 3):  # as many as it collects, and others
        evaluated = ami.train(config, out=tmp_path / str(episodes), eval_episodes=episodes)
        for name, part in single.state_dict().items():
            assert part.equal(evaluated.state_dict()[name]), name


def test_where_the_env_can_not_be_restored_another_episode_begins():
    config = recipe(luck=True)
    first, second = stage_run_of(config), stage_run_of(config)
    for _ in range(7):
        first.update()
    state = {name: part.clone() for name, part in first.state_dict().items()}
    second.load_state_dict(state)
    second.update()
    memory = second.agent.replay_buffer
    joined = memory.sample(400, 1, torch.Generator().manual_seed(0))
    assert (joined.states[:, 1] - joined.states[:, 0]).abs().max() < 0.2


def test_what_was_learnt_is_kept_when_the_env_fails(tmp_path):
    config = recipe(breaks_at=45)
    config = override(config, {"stages.collect": replace(config.collect, options={"breaks_at": 0})})
    with pytest.raises(EnvError, match="the line broke"):
        ami.train(config, out=tmp_path / "run", seed=0)
    tensors, facts = checkpoint.load(checkpoint.latest(tmp_path / "run"), "cpu")
    assert 44 <= int(tensors["stage_run.here.step"]) < 60  # a step that only resets breaks nothing
    assert facts["stages"][facts["stage_index"]] == "actor_critic"
    assert ami.load(tmp_path / "run").spec.action_dim == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_space": OneHotActions(sizes=(2,))}, "the environment's actions are numbers"),
        ({"cost.drives": ()}, "the costs of drives|needs drives"),
    ],
)
def test_agents_that_do_not_fit_are_refused(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        ami.train(override(recipe(), changes), out=tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("choices", [False, True])
def test_it_learns_to_stay_where_it_is_rewarded(choices, tmp_path):
    config = ami.recipes.gym(EnvConfig(id="ami-test/Line-v0", options={"choices": choices}))
    config = override(
        config,
        {
            "stages.collect": CollectBehaviour(num_envs=1, steps=200),
            "stages.actor_critic": OnlineActorCritic(
                steps=400,
                train_jepa=TrainJEPA(
                    weights=config.stages["train_jepa"].weights,
                    optim=OptimConfig(steps=0, batch_size=64),
                    length=3,
                ),
            ),
        },
    )
    agent = ami.train(config, out=tmp_path / "run", seed=0)
    found = evaluate_modes(agent, config.eval_env, episodes=50)
    best = 20 - 0.05 * 20  # at 0 but for the way there, or for a step beside it
    random = found["plan"]["baselines"]["random"]["return"]["mean"]
    enough = max(0.85 * best, random + 3)
    assert found["plan"]["return"]["mean"] > enough
    assert found["react"]["return"]["mean"] > enough


class Cliff(gymnasium.Env):
    """Positions in a row: one of four options leads on (reward 1), the others end the episode."""

    observation_space = gymnasium.spaces.Box(0, 1, (7,), np.float32)
    action_space = gymnasium.spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = 0
        return np.eye(7, dtype=np.float32)[0], {}

    def step(self, action):
        right = bool(action == (7 * self.position + 3) % 4)
        self.position += right
        obs = np.eye(7, dtype=np.float32)[self.position]
        return obs, float(right), not right, self.position == 6, {}


gymnasium.register("ami-test/Cliff-v0", entry_point=Cliff)


@pytest.mark.slow
def test_both_modes_learn_where_three_of_four_options_end_the_episode(tmp_path):
    config = ami.recipes.gym(EnvConfig(id="ami-test/Cliff-v0"))
    config = override(config, {"stages.actor_critic.steps": 600})
    found = evaluate_modes(ami.train(config, out=tmp_path / "run"), config.eval_env, episodes=10)
    assert min(found[mode]["return"]["mean"] for mode in ("plan", "react")) >= 4


def test_every_option_of_every_choice_is_evaluated_by_itself():
    bounds = OneHotActions(sizes=(2, 3))
    tried = bounds.alternatives(torch.tensor([[0.0, 1, 1, 0, 0]]))
    assert tried.int().tolist() == [
        [[1, 0, 1, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 1, 0, 0, 1]]
    ]
    assert not OneHotActions(sizes=(MAX_ALTERNATIVES + 1,)).alternatives(torch.zeros(1, 65)).numel()


def test_a_policy_that_is_certain_of_the_wrong_option_is_corrected():
    logits = torch.tensor([[30.0, 0, 0], [0, 30, 0]], requires_grad=True)
    energy = torch.tensor([[5.0, 1, 3], [5, 1, 3]])
    (slope,) = torch.autograd.grad(choice_loss(logits, energy, (3,))["choice"], logits)
    assert slope[0, 0] > 0.3  # the wrong option becomes less probable
    assert slope[0, 1] < -0.3
    assert slope[1].abs().max() < 0.1  # which is right about the other
    straight = OneHotActions(sizes=(3,)).squash(logits)
    (vanished,) = torch.autograd.grad((straight * energy).sum(), logits)
    assert vanished[0].abs().max() < 1e-6


def test_the_unit_of_energies_does_not_matter_to_the_policy():
    logits, energy = torch.randn(8, 5), torch.randn(8, 5)
    plain = choice_loss(logits, energy, (2, 3))["choice"]
    torch.testing.assert_close(choice_loss(logits, 1e6 * energy + 7, (2, 3))["choice"], plain)
    assert choice_loss(logits, 0 * energy, (2, 3))["choice"].isfinite()
