"""Episodes shorter than a window teach as well, and nothing after their end is learnt from."""

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
from ami_agent.build import build
from ami_agent.learning import Learning
from ami_agent.lessons import Bootstrap, Foresee, Interact, Live, NoLesson, Separate
from ami_agent.lessons.foresight import promise
from ami_agent.life import WorldConfig, live, owned, walk
from ami_agent.losses import (
    Multiplier,
    in_strides,
    lambda_returns,
    level_loss,
    unroll_loss,
    world_model_loss,
)
from ami_agent.show.camera import Render
from modules import objectives
from modules.cost import Critic
from modules.distance import Quasimetric
from modules.dynamics import VectorDynamics
from modules.hierarchy.levels import UpperLevel
from modules.latents import GaussianLatent, SparseLatent
from modules.memory import Memory
from modules.recall import Belief, NoRecall
from modules.types import Trajectory, Transition, by_sense
from modules.world_model import Ensemble, StepFeeling, WorldModel

D, A, T = 3, 2, 4


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_lengths(*lengths: int, capacity: int = 400) -> Memory:
    """One environment, episodes of so many steps, each ended by the environment; observations are
    (episode, step)."""
    memory, last = None, None
    for episode, length in enumerate(lengths):
        for step in range(length):
            now, then = (torch.tensor([[float(episode), float(s)]]) for s in (step, step + 1))
            over = torch.tensor([step == length - 1])
            if step == 0 and last is not None:  # the step that only resets
                reset = Transition(last, now * 0, now[:, :1] * 0, now, ~over & over, ~over & over)
                memory.remember(reset)
            taken = Transition(now, now, then, then, over, ~over & over)
            taken = taken._replace(interoception=then[:, 1:], action=now)
            memory = memory or Memory(capacity, taken, "cpu")
            memory.remember(taken)
            last = then
    return memory


def test_every_step_of_short_episodes_is_drawn_and_the_terminal_one_too():
    lengths = (1, 3, 2, 7, 1, 4)
    memory = of_lengths(*lengths)
    drawn = memory.sample(4000, 4, dice())
    first = {tuple(start) for start in drawn.obs[:, 0].int().tolist()}
    assert first == {(e, s) for e, n in enumerate(lengths) for s in range(n)}
    counts = drawn.obs[:, 0].unique(dim=0, return_counts=True)[1]
    assert counts.min() > 0.6 * counts.float().mean()
    taken = {
        tuple(obs) for obs, valid in zip(drawn.obs[:, :-1].flatten(0, 1).int().tolist(),
                                         drawn.valid.flatten().tolist(), strict=True) if valid
    }  # fmt: skip
    assert taken == {(e, s) for e, n in enumerate(lengths) for s in range(n)}
    last = drawn.obs[torch.arange(4000), drawn.lasts]
    ends = drawn.terminated[torch.arange(4000), drawn.lasts - 1]
    whole = torch.tensor(lengths)[drawn.obs[:, 0, 0].long()]
    assert torch.equal(ends, last[:, 1] == whole)
    assert memory.fraction(4) == 1


def test_where_no_episode_is_shorter_the_same_is_drawn_as_before_padding():
    lengths, length = (5, 9, 4, 6), 4
    memory = of_lengths(*lengths)
    starts = [[(e, s) for s in range(n - length + 1)] for e, n in enumerate(lengths)]
    flat = [start for episode in starts for start in episode]
    random = dice(3)
    leader = torch.randint(len(flat), (8, 1), generator=random)
    place = torch.rand((8, 2), dtype=torch.float64, generator=random)
    by_hand = []
    for index, shares in zip(leader[:, 0].tolist(), place.tolist(), strict=True):
        episode = starts[flat[index][0]]
        by_hand += [episode[int(share * len(episode))] for share in shares]
    drawn = memory.sample(16, length, dice(3), together=2)
    assert drawn.valid is None
    assert [tuple(start) for start in drawn.obs[:, 0].int().tolist()] == by_hand


def test_what_is_still_running_or_was_broken_off_is_not_taken_for_a_short_episode():
    memory = of_lengths(2, 6)
    start = torch.tensor([[9.0, 0.0]])
    never = torch.tensor([False])
    memory.cut()
    for step in range(2):
        now, then = start + torch.tensor([0.0, step]), start + torch.tensor([0.0, step + 1.0])
        memory.remember(Transition(now, now, then[:, 1:], then, never, never))
    drawn = memory.sample(500, 4, dice())
    assert not (drawn.obs[:, 0, 0] == 9).any()
    assert memory.fraction(4) == pytest.approx(8 / 10)
    assert memory.fraction(2) == 1
    assert {tuple(start) for start in drawn.obs[:, 0].int().tolist()} == {
        *((0, s) for s in range(2)),
        *((1, s) for s in range(6)),
    }
    again = of_lengths(1)
    again.load_state_dict({n: part.clone() for n, part in memory.state_dict().items()})
    assert again.fraction(4) == pytest.approx(8 / 10)
    older = {n: part for n, part in memory.state_dict().items() if n != "done"}
    again.load_state_dict(older)  # of a version that did not say where episodes are done
    assert again.fraction(4) == pytest.approx(8 / 10)


def padded(seed: int = 0, count: int = 8, size: int = D) -> Trajectory:
    """Windows of T steps that end after 1, 2, ... T steps."""
    random = dice(seed)
    lasts = torch.arange(count) % T + 1
    valid = torch.arange(T) < lasts[:, None]
    states = torch.randn(count, T + 1, size, generator=random)
    actions = torch.randn(count, T, A, generator=random)
    return Trajectory(states, actions, actions[..., :1], ~valid & valid, lasts, valid)


def garbage(batch: Trajectory, size: float) -> Trajectory:
    """The same windows with other things after the end."""
    beyond = ~batch.valid
    met = torch.cat([beyond[:, :1] & False, beyond], 1)
    states = torch.where(met[..., None], size * torch.ones_like(batch.states), batch.states)
    actions = torch.where(beyond[..., None], size * torch.ones_like(batch.actions), batch.actions)
    felt = torch.where(beyond[..., None], size * batch.interoception[:1], batch.interoception)
    return batch._replace(obs=states, actions=actions, interoception=felt)


def model(latent=None) -> WorldModel:
    torch.manual_seed(0)
    config = WorldModel.Config(
        dynamics=VectorDynamics.Config(hidden=8), feeling=StepFeeling.Config(hidden=8),
        doubt=Ensemble.Config(members=2, hidden=4), **({"latent": latent} if latent else {}),
    )  # fmt: skip
    built = config.build((D, 1, 1), A, 1)
    nn.init.normal_(built.level(0).dynamics.change.weight)
    return built


def gradients(terms: dict[str, Tensor], *modules: nn.Module) -> list[Tensor]:
    for module in modules:
        module.zero_grad()
    torch.stack([term for term in terms.values()]).sum().backward()
    found = [p.grad.clone() for m in modules for p in m.parameters() if p.grad is not None]
    return [torch.stack([term.detach() for term in terms.values()]), *found]


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("together", [1, 4])
def test_no_term_of_the_world_model_depends_on_what_comes_after_an_end(context, together):
    perception, world_model = nn.Linear(D, D), model(GaussianLatent.Config(size=2, hidden=4))
    recall = Belief(D, 4)
    kinds = torch.randn(4, D, generator=dice(1))
    found = []
    for size in (0.0, 3.0, -40.0):
        batch = garbage(padded(), size)
        terms = world_model_loss(
            batch, perception, lambda obs, features: features, recall, world_model, dice(),
            channels=D, together=together, context=context, others=objectives.OTHERS, kinds=kinds,
        )  # fmt: skip
        found.append(gradients(terms, perception, world_model, recall))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    assert all(part.isfinite().all() for part in found[0])


def test_windows_that_are_whole_have_the_same_terms_with_and_without_a_mask():
    perception, world_model = nn.Linear(D, D), model(SparseLatent.Config(size=2, hidden=4))
    world_model.eval()
    batch = padded()
    masks = (None, torch.ones_like(batch.valid))
    found = [
        world_model_loss(
            batch._replace(valid=mask),
            perception,
            lambda obs, features: features,
            NoRecall(),
            world_model,
            dice(),
            channels=D,
            together=2,
            context=1,
            others=objectives.OTHERS,
            kinds=torch.eye(D),
        )
        for mask in masks
    ]
    torch.testing.assert_close(found[1], found[0])


def test_what_is_inferred_after_an_end_is_not_kept_to_be_drawn():
    world_model = model(SparseLatent.Config(size=2, hidden=4, remembered=16))
    kept = []
    for size in (0.0, 50.0):
        unroll_loss(world_model, garbage(padded(), size), dice())
        kept.append(world_model.level(0).latent.remembered.clone())
    assert torch.equal(*kept)


def test_levels_above_learn_from_strides_that_are_whole():
    torch.manual_seed(0)
    config = UpperLevel.Config(
        size=4, macro=2, hidden=8, dynamics=VectorDynamics.Config(hidden=8),
        distance=Quasimetric.Config(),
    )  # fmt: skip
    level = config.build(D, A, 2, 2, None)
    found = []
    for size in (0.0, 5.0):
        batch = garbage(padded(), size)
        valid = in_strides(batch.valid, 2)
        assert valid.sum(1).tolist() == [0, 1, 1, 2] * 2
        terms, _, _ = level_loss(
            level, Multiplier(), batch.states, batch.actions, dice(), far=12, slack=0.05,
            valid=valid,
        )  # fmt: skip
        found.append(gradients(terms, level))
        none, _, _ = level_loss(
            level, Multiplier(), batch.states, batch.actions, dice(), far=12, slack=0.05,
            valid=valid & False,
        )  # fmt: skip
        assert sum(none.values()) == 0
    torch.testing.assert_close(found[1], found[0])


def test_a_return_bootstraps_from_the_last_valid_step_and_never_from_beyond():
    cost = torch.tensor([[[1.0], [2.0], [9.0]]])
    ahead = torch.tensor([[[10.0], [20.0], [900.0]]])
    lives = torch.tensor([[1.0, 1.0, 1.0]])
    valid = torch.tensor([[True, True, False]])
    found = lambda_returns(cost, ahead, lives, 0.9, 0.75, valid=valid)
    alone = lambda_returns(cost[:, :2], ahead[:, :2], lives[:, :2], 0.9, 0.75)
    torch.testing.assert_close(found[:, :2], alone)


def test_the_first_promise_of_the_value_critics_counts_valid_steps_alone():
    memory = of_lengths(1, 2, 1, 2)

    class Felt:
        def sample(self, *how, **which):
            drawn = memory.sample(*how, **which)
            assert by_sense(drawn.obs) == {}  # what nothing reads is not read
            felt = torch.where(drawn.valid[..., None], torch.ones(2), torch.full((2,), 77.0))
            return drawn._replace(interoception=felt)  # the reward, and whether the episode goes on

    config = recipe()
    config = replace(config, foresight=replace(config.foresight, discount=0.5))
    with closing(config.world.build(1)) as world:
        agent = build(config, world.spec)
    promise(agent, Felt(), 3)
    assert agent.cost.body.foresight.mean.item() == pytest.approx(-2)  # 1 for ever, at a half


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
        over = self.place == self.always or (not self.always and action != self.place % 4)
        return np.eye(6, dtype=np.float32)[self.place], float(not over), over, self.place == 5, {}


@pytest.fixture(autouse=True, scope="module")
def _known():
    gymnasium.register("ami-test/Brink-v0", entry_point=Brink)
    gymnasium.register("ami-test/Reused-v0", vector_entry_point=Reused)
    yield
    del gymnasium.registry["ami-test/Brink-v0"], gymnasium.registry["ami-test/Reused-v0"]


def recipe(always: int = 0, **options):
    config = ami.recipes.gym(WorldConfig(id="ami-test/Brink-v0", options={"always": always}))
    learning = Learning(steps=3, batch=16)
    return replace(
        config,
        life=Live(worlds=2, steps=30),
        objective=replace(config.objective, learning=learning, length=6, **options),
        foresee=Foresee(learning=learning, length=5),
        interact=Interact(
            steps=3, learning=learning, objective=replace(config.objective, learning=learning)
        ),
    )


@pytest.mark.parametrize("always", [0, 1, 2])
def test_a_run_learns_from_episodes_of_one_and_two_steps(always, tmp_path):
    agent = ami.train(recipe(always), out=tmp_path / "run", seed=0)
    assert all(part.isfinite().all() for part in agent.state_dict().values())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"drawn_fraction": ' in lines
    assert '"model drawn_fraction": ' in lines


def test_recall_of_what_was_before_goes_with_short_episodes(tmp_path):
    config = recipe(context=2)
    online = replace(config.interact.objective, context=2)
    config = replace(
        config, recall=Belief.Config(hidden=4), foresee=NoLesson(),
        interact=replace(config.interact, objective=online),
    )  # fmt: skip
    agent = ami.train(config, out=tmp_path / "run", seed=0)
    assert all(part.isfinite().all() for part in agent.state_dict().values())


@pytest.mark.parametrize("stage", [Separate, Bootstrap])
def test_critics_of_distance_learn_from_short_episodes(stage, tmp_path):
    teacher = stage(length=3, learning=Learning(steps=2, batch=8))
    config = replace(recipe(2), critic=Critic.Config(), teacher=teacher, interact=NoLesson())
    agent = ami.train(config, out=tmp_path / "run", seed=0)
    assert all(part.isfinite().all() for part in agent.state_dict().values())


def test_a_later_state_is_one_of_the_episode():
    drawn = of_lengths(2, 1, 5, 1).sample(200, 3, dice())
    asked = torch.randint(1, 4, (200,), generator=dice())
    later = drawn.later(asked)
    assert ((later >= 1) & (later <= drawn.lasts)).all()
    whole = drawn.lasts == 3
    assert torch.equal(later[whole], asked[whole])
    assert set(later[~whole & (drawn.lasts == 2)].tolist()) == {1, 2}


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


def test_transitions_are_as_they_were_whatever_the_environment_does_with_its_arrays():
    world = WorldConfig(id="ami-test/Reused-v0").build(2)
    obs, _ = world.reset(0)
    kept = [lived.transition for lived in islice(live(walk(world), world, obs), 12)]
    for time, step in enumerate(kept):
        for seen, moment in ((step.obs, time), (step.next_obs, time + 1)):
            for name, part in by_sense(seen).items():
                told = part.argmax(1) if name == "kind" else part
                assert (told == moment).all(), name
        assert (step.interoception == ((time + 1) if (time + 1) % 7 else 0)).all()
        assert (step.terminated == (time % 7 == 5)).all()
        assert not step.truncated.any()


def test_what_is_no_longer_the_environment_s_is_not_copied_again():
    array = np.zeros((2, 3), np.float32)
    mine = torch.as_tensor(array)
    assert owned(mine, array).data_ptr() != mine.data_ptr()
    other = torch.zeros(2, 3)
    assert owned(other, array) is other
    assert owned(mine, mine).data_ptr() != mine.data_ptr()
    assert owned(other, mine) is other


def test_pictures_that_are_drawn_into_one_array_are_kept_as_they_were():
    class Drawn:
        class envs:
            canvas = np.zeros((8, 8, 3), np.uint8)

            @classmethod
            def render(cls):
                cls.canvas[:] += 1
                return (cls.canvas,)

    camera = Render()
    kept = [camera(Drawn)[0][0] for _ in range(3)]
    assert [int(picture[0, 0, 0]) for picture in kept] == [1, 2, 3]
