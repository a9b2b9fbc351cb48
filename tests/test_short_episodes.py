"""Episodes shorter than a window are learnt from as well, and nothing after their end is."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from itertools import islice

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor, nn

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig, behaviour_policy, owned_copy, rollout
from ami_agent.config import build, override
from ami_agent.training import CollectBehaviour, OnlineActorCritic, TrainQuasimetric, TrainValue
from ami_agent.training.critics import LagrangeMultiplier, init_value_units, lambda_returns
from ami_agent.training.hierarchy import LevelWindow, hjepa_level_loss, valid_macro_steps
from ami_agent.training.jepa import JEPALoss, unroll_loss
from ami_agent.training.optim import OptimConfig
from ami_agent.viewer.camera import Camera
from modules.cost.goal_critic import GoalCriticConfig, QuasimetricConfig
from modules.memory.replay_buffer import ReplayBuffer
from modules.memory.short_term import GRUMemory, GRUMemoryConfig, ShortTermMemory
from modules.types import Trajectory, Transition, as_dict
from modules.world_model.dynamics import MLPDynamicsConfig
from modules.world_model.hjepa import JEPALevelConfig
from modules.world_model.jepa import (
    EnsembleConfig,
    TransitionHeadConfig,
    WorldModel,
    WorldModelConfig,
)
from modules.world_model.latents import GaussianLatentConfig, SparseLatentConfig

D, A, T = 3, 2, 4


def make_rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_lengths(*lengths: int, capacity: int = 400) -> ReplayBuffer:
    """One environment, episodes of so many steps, each ended by the environment; observations are
    (episode, step)."""
    memory, last = None, None
    for episode, length in enumerate(lengths):
        for step in range(length):
            now, then = (torch.tensor([[float(episode), float(s)]]) for s in (step, step + 1))
            done = torch.tensor([step == length - 1])
            if step == 0 and last is not None:  # the step that only resets
                reset = Transition(last, now * 0, now[:, :1] * 0, now, ~done & done, ~done & done)
                memory.add(reset)
            taken = Transition(now, now, then, then, done, ~done & done)
            taken = taken._replace(interoception=then[:, 1:], action=now)
            memory = memory or ReplayBuffer(capacity, taken, "cpu")
            memory.add(taken)
            last = then
    return memory


def test_every_step_of_short_episodes_is_sampled_including_the_terminal_one():
    lengths = (1, 3, 2, 7, 1, 4)
    memory = of_lengths(*lengths)
    sampled = memory.sample(4000, 4, make_rng())
    first = {tuple(start) for start in sampled.obs[:, 0].int().tolist()}
    assert first == {(e, s) for e, n in enumerate(lengths) for s in range(n)}
    counts = sampled.obs[:, 0].unique(dim=0, return_counts=True)[1]
    assert counts.min() > 0.6 * counts.float().mean()
    taken = {
        tuple(obs) for obs, valid in zip(sampled.obs[:, :-1].flatten(0, 1).int().tolist(),
                                         sampled.valid.flatten().tolist(), strict=True) if valid
    }  # fmt: skip
    assert taken == {(e, s) for e, n in enumerate(lengths) for s in range(n)}
    last = sampled.obs[torch.arange(4000), sampled.num_valid]
    ends = sampled.terminated[torch.arange(4000), sampled.num_valid - 1]
    whole = torch.tensor(lengths)[sampled.obs[:, 0, 0].long()]
    assert torch.equal(ends, last[:, 1] == whole)
    assert memory.fraction(4) == 1


def test_without_short_episodes_the_samples_are_those_before_padding():
    lengths, length = (5, 9, 4, 6), 4
    memory = of_lengths(*lengths)
    starts = [[(e, s) for s in range(n - length + 1)] for e, n in enumerate(lengths)]
    flat = [start for episode in starts for start in episode]
    random = make_rng(3)
    leader = torch.randint(len(flat), (8, 1), generator=random)
    position = torch.rand((8, 2), dtype=torch.float64, generator=random)
    by_hand = []
    for index, fractions in zip(leader[:, 0].tolist(), position.tolist(), strict=True):
        episode = starts[flat[index][0]]
        by_hand += [episode[int(fraction * len(episode))] for fraction in fractions]
    sampled = memory.sample(16, length, make_rng(3), group_size=2)
    assert sampled.valid is None
    assert [tuple(start) for start in sampled.obs[:, 0].int().tolist()] == by_hand


def test_running_and_interrupted_episodes_are_not_taken_for_short_ones():
    memory = of_lengths(2, 6)
    start = torch.tensor([[9.0, 0.0]])
    never = torch.tensor([False])
    memory.break_episodes()
    for step in range(2):
        now, then = start + torch.tensor([0.0, step]), start + torch.tensor([0.0, step + 1.0])
        memory.add(Transition(now, now, then[:, 1:], then, never, never))
    sampled = memory.sample(500, 4, make_rng())
    assert not (sampled.obs[:, 0, 0] == 9).any()
    assert memory.fraction(4) == pytest.approx(8 / 10)
    assert memory.fraction(2) == 1
    assert {tuple(start) for start in sampled.obs[:, 0].int().tolist()} == {
        *((0, s) for s in range(2)),
        *((1, s) for s in range(6)),
    }
    again = of_lengths(1)
    again.load_state_dict({n: part.clone() for n, part in memory.state_dict().items()})
    assert again.fraction(4) == pytest.approx(8 / 10)


def padded(seed: int = 0, count: int = 8, size: int = D) -> Trajectory:
    """Windows of T steps that end after 1, 2, ... T steps."""
    random = make_rng(seed)
    episode_steps = torch.arange(count) % T + 1
    valid = torch.arange(T) < episode_steps[:, None]
    states = torch.randn(count, T + 1, size, generator=random)
    actions = torch.randn(count, T, A, generator=random)
    return Trajectory(states, actions, actions[..., :1], ~valid & valid, episode_steps, valid)


def garbage(batch: Trajectory, size: float) -> Trajectory:
    """The same windows with other steps after the end."""
    beyond = ~batch.valid
    met = torch.cat([beyond[:, :1] & False, beyond], 1)
    states = torch.where(met[..., None], size * torch.ones_like(batch.states), batch.states)
    actions = torch.where(beyond[..., None], size * torch.ones_like(batch.actions), batch.actions)
    interoception = torch.where(
        beyond[..., None], size * batch.interoception[:1], batch.interoception
    )
    return batch._replace(obs=states, actions=actions, interoception=interoception)


def model(latent=None) -> WorldModel:
    torch.manual_seed(0)
    config = WorldModelConfig(
        dynamics=MLPDynamicsConfig(hidden=8), interoception_head=TransitionHeadConfig(hidden=8),
        ensemble=EnsembleConfig(members=2, hidden=4), **({"latent": latent} if latent else {}),
    )  # fmt: skip
    built = config.build((D, 1, 1), A, 1)
    nn.init.normal_(built.dynamics.delta_head.weight)
    return built


def gradients(terms: dict[str, Tensor], *modules: nn.Module) -> list[Tensor]:
    for module in modules:
        module.zero_grad()
    torch.stack([term for term in terms.values()]).sum().backward()
    found = [p.grad.clone() for m in modules for p in m.parameters() if p.grad is not None]
    return [torch.stack([term.detach() for term in terms.values()]), *found]


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("together", [1, 4])
def test_no_loss_term_of_the_world_model_depends_on_steps_after_an_end(context, together):
    perception, world_model = nn.Linear(D, D), model(GaussianLatentConfig(size=2, hidden=4))
    short_term = GRUMemory(D, 4)
    types = torch.randn(4, D, generator=make_rng(1))
    found = []
    for size in (0.0, 3.0, -40.0):
        batch = garbage(padded(), size)
        terms = JEPALoss(
            perception,
            lambda obs, features: features,
            short_term,
            world_model,
            channels=D,
            group_size=together,
            context_steps=context,
            left_out=(),
            prototypes=types,
        )(batch, make_rng())
        found.append(gradients(terms, perception, world_model, short_term))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    assert all(part.isfinite().all() for part in found[0])


def test_whole_windows_have_the_same_loss_with_and_without_a_mask():
    perception, world_model = nn.Linear(D, D), model(SparseLatentConfig(size=2, hidden=4))
    world_model.eval()
    batch = padded()
    masks = (None, torch.ones_like(batch.valid))
    found = [
        JEPALoss(
            perception,
            lambda obs, features: features,
            ShortTermMemory(),
            world_model,
            channels=D,
            group_size=2,
            context_steps=1,
            left_out=(),
            prototypes=torch.eye(D),
        )(batch._replace(valid=mask), make_rng())
        for mask in masks
    ]
    torch.testing.assert_close(found[1], found[0])


def test_latents_after_an_end_are_not_stored_in_the_memory_bank():
    world_model = model(SparseLatentConfig(size=2, hidden=4, memory_size=16))
    kept = []
    for size in (0.0, 50.0):
        unroll_loss(world_model, garbage(padded(), size), make_rng())
        kept.append(world_model.latent.memory_bank.clone())
    assert torch.equal(*kept)


def test_levels_above_learn_from_whole_chunks():
    torch.manual_seed(0)
    config = JEPALevelConfig(
        state_dim=4, macro_dim=2, hidden=8, dynamics=MLPDynamicsConfig(hidden=8),
        distance=QuasimetricConfig(),
    )  # fmt: skip
    level = config.build(D, A, 2, 2, None)
    found = []
    for size in (0.0, 5.0):
        batch = garbage(padded(), size)
        valid = valid_macro_steps(batch.valid, 2)
        assert valid.sum(1).tolist() == [0, 1, 1, 2] * 2
        steps = LevelWindow(batch.states, batch.actions, batch.valid)
        terms, _ = hjepa_level_loss(level, LagrangeMultiplier(), steps, make_rng(), max_distance=12)
        found.append(gradients(terms, level))
        steps = LevelWindow(batch.states, batch.actions, batch.valid & False)
        none, _ = hjepa_level_loss(level, LagrangeMultiplier(), steps, make_rng(), max_distance=12)
        assert sum(none.values()) == 0
    torch.testing.assert_close(found[1], found[0])


def test_a_return_bootstraps_from_the_last_valid_step():
    cost = torch.tensor([[[1.0], [2.0], [9.0]]])
    ahead = torch.tensor([[[10.0], [20.0], [900.0]]])
    episodes = torch.tensor([[1.0, 1.0, 1.0]])
    valid = torch.tensor([[True, True, False]])
    found = lambda_returns(cost, ahead, episodes, 0.9, 0.75, valid=valid)
    single = lambda_returns(cost[:, :2], ahead[:, :2], episodes[:, :2], 0.9, 0.75)
    torch.testing.assert_close(found[:, :2], single)


def test_the_initial_unit_of_the_value_critics_counts_valid_steps_alone():
    memory = of_lengths(1, 2, 1, 2)

    class MaskedBuffer:
        def sample(self, *how, **which):
            sampled = memory.sample(*how, **which)
            assert as_dict(sampled.obs) == {}  # what nothing reads is not read
            interoception = torch.where(
                sampled.valid[..., None], torch.ones(2), torch.full((2,), 77.0)
            )
            return sampled._replace(
                interoception=interoception
            )  # the reward, and whether the episode goes on

    config = recipe()
    config = override(config, {"cost.value_critics.discount": 0.5})
    with closing(config.env.build(1)) as env:
        agent = build(config, env.spec)
    init_value_units(agent, MaskedBuffer(), 3)
    assert agent.cost.interoceptive_cost.value_critics.mean.item() == pytest.approx(
        -2
    )  # 1 for ever, discounted by a half


class Brink(gymnasium.Env):
    """Of four choices, one leads on (reward 1); the others end the episode. Or it ends after so
    many steps."""

    observation_space = Box(0, 1, (6,), np.float32)
    action_space = Discrete(4)

    def __init__(self, always=0) -> None:
        self.always = always

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return np.eye(6, dtype=np.float32)[0], {}

    def step(self, action):
        self.place += 1
        done = self.place == self.always or (not self.always and action != self.place % 4)
        return np.eye(6, dtype=np.float32)[self.place], float(not done), done, self.place == 5, {}


@pytest.fixture(autouse=True, scope="module")
def _known():
    gymnasium.register("ami-test/Brink-v0", entry_point=Brink)
    gymnasium.register("ami-test/Reused-v0", vector_entry_point=Reused)
    yield
    del gymnasium.registry["ami-test/Brink-v0"], gymnasium.registry["ami-test/Reused-v0"]


def recipe(always: int = 0, **options):
    config = ami.recipes.gym(EnvConfig(id="ami-test/Brink-v0", options={"always": always}))
    optim = OptimConfig(steps=3, batch_size=16)
    return override(
        config,
        {
            "stages.collect": CollectBehaviour(num_envs=2, steps=30),
            "stages.train_jepa": replace(
                config.stages["train_jepa"], optim=optim, length=6, **options
            ),
            "stages.train_values": TrainValue(optim=optim, length=5),
            "stages.actor_critic": OnlineActorCritic(
                steps=3, optim=optim, train_jepa=replace(config.stages["train_jepa"], optim=optim)
            ),
        },
    )


@pytest.mark.parametrize("always", [0, 1, 2])
def test_a_run_learns_from_episodes_of_one_and_two_steps(always, tmp_path):
    agent = ami.train(recipe(always), out=tmp_path / "run", seed=0)
    assert all(part.isfinite().all() for part in agent.state_dict().values())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"drawn_fraction": ' in lines
    assert '"model drawn_fraction": ' in lines


def test_context_steps_go_with_short_episodes(tmp_path):
    config = recipe(context_steps=2)
    online = replace(config.stages["actor_critic"].train_jepa, context_steps=2)
    config = override(
        config,
        {
            "memory.short_term": GRUMemoryConfig(hidden=4),
            "stages.train_values": None,
            "stages.actor_critic.train_jepa": online,
        },
    )
    agent = ami.train(config, out=tmp_path / "run", seed=0)
    assert all(part.isfinite().all() for part in agent.state_dict().values())


def test_the_goal_critic_learns_from_short_episodes(tmp_path):
    teacher = TrainQuasimetric(length=3, optim=OptimConfig(steps=2, batch_size=8))
    config = override(
        recipe(2),
        {
            "cost.goal_critic": GoalCriticConfig(),
            "stages.train_goal_critic": teacher,
            "stages.actor_critic": None,
        },
    )
    agent = ami.train(config, out=tmp_path / "run", seed=0)
    assert all(part.isfinite().all() for part in agent.state_dict().values())


def test_a_future_state_is_of_the_same_episode():
    sampled = of_lengths(2, 1, 5, 1).sample(200, 3, make_rng())
    requested = torch.randint(1, 4, (200,), generator=make_rng())
    later = sampled.wrap_to_valid(requested)
    assert ((later >= 1) & (later <= sampled.num_valid)).all()
    whole = sampled.num_valid == 3
    assert torch.equal(later[whole], requested[whole])
    assert set(later[~whole & (sampled.num_valid == 2)].tolist()) == {1, 2}


class Reused(VectorEnv):
    """Writes all that it returns into the same arrays, at every step."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs=1, **_):
        self.num_envs = num_envs
        self.single_observation_space = Dict(
            numbers=Box(0, 99, (2,), np.float32), grey=Box(0, 255, (8, 8), np.uint8),
            first=Box(0, 255, (3, 8, 8), np.uint8), last=Box(0, 255, (8, 8, 3), np.uint8),
            wide=Box(0, 99, (2,), np.float64), kind=Discrete(99), many=Box(0, 99, (3, 2)),
        )  # fmt: skip
        self.single_action_space = Box(-1, 1, (1,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.shown = {
            name: np.zeros((num_envs, *space.shape), space.dtype)
            for name, space in self.single_observation_space.items()
        }
        self.reward = np.zeros(num_envs, np.float32)
        self.ends = np.zeros((2, num_envs), bool)
        self.time = 0

    def look(self):
        for part in self.shown.values():
            part[:] = self.time
        self.reward[:] = self.time if self.time % 7 else 0  # the step after an end only resets
        self.ends[:] = self.time % 7 == 6
        self.ends[1] = False
        return self.shown

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self.look(), {}

    def step(self, actions):
        self.time += 1
        return self.look(), self.reward, *self.ends, {}


def test_stored_transitions_do_not_change_with_the_arrays_of_the_env():
    env = EnvConfig(id="ami-test/Reused-v0").build(2)
    obs, _ = env.reset(0)
    kept = [
        collected.transition for collected in islice(rollout(behaviour_policy(env), env, obs), 12)
    ]
    for time, step in enumerate(kept):
        for observed, projected_step in ((step.obs, time), (step.next_obs, time + 1)):
            for name, part in as_dict(observed).items():
                output = part.argmax(1) if name == "kind" else part
                assert (output == projected_step).all(), name
        assert (step.interoception == ((time + 1) if (time + 1) % 7 else 0)).all()
        assert (step.terminated == (time % 7 == 5)).all()
        assert not step.truncated.any()


def test_arrays_that_are_already_copies_are_not_copied_again():
    array = np.zeros((2, 3), np.float32)
    mine = torch.as_tensor(array)
    assert owned_copy(mine, array).data_ptr() != mine.data_ptr()
    other = torch.zeros(2, 3)
    assert owned_copy(other, array) is other
    assert owned_copy(mine, mine).data_ptr() != mine.data_ptr()
    assert owned_copy(other, mine) is other


def test_images_that_an_env_draws_into_one_array_are_stored_unchanged():
    class Renderable:
        class vector_env:
            canvas = np.zeros((8, 8, 3), np.uint8)

            @classmethod
            def render(cls):
                cls.canvas[:] += 1
                return (cls.canvas,)

    camera = Camera()
    kept = [camera(Renderable)[0][0] for _ in range(3)]
    assert [int(picture[0, 0, 0]) for picture in kept] == [1, 2, 3]
