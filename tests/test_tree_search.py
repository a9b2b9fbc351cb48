"""Tree search finds the optimum of tabular environments, by the formulas of the papers, with the
energies of every other planner."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from math import log, sqrt

import pytest
import torch
from torch import Tensor, nn

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.config import build, override
from ami_agent.training import DistillPlanner
from modules.actor.planning import RolloutEvaluator, TreeSearchConfig
from modules.actor.planning.tree_search import Edges, Tree, halving_schedule
from modules.actor.policy import BoxActions, OneHotActions, Policy, PolicyProposal
from modules.types import ConfigError, Plan, PlannerCarry, PolicyFn, Rollout, TaskContext
from modules.world_model.latents import GaussianLatentConfig
from tests.conftest import error_line, make_context, tiny_gym


class Table:
    """A world of S states and J actions with known costs of steps and values of states, as an
    evaluator; states and actions are one-hot."""

    def __init__(self, num_states: int, num_options: int, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.num_states, self.num_options = num_states, num_options
        shape = num_options, num_states, num_states
        self.next = torch.rand(shape, generator=rng).argmax(-1)  # [J, S]
        self.cost = torch.rand(num_options, num_states, generator=rng)
        self.value = 2 * torch.rand(num_states, generator=rng)
        self.scale, self.offset = 1.0, 0.0

    def imagine(self, state: Tensor, actions: Tensor) -> Rollout:
        here = state.argmax(-1)[:, None].expand(actions.shape[:2])
        states, costs = [here], []
        for option in actions.argmax(-1).unbind(2):
            costs.append(self.cost[option, here])
            here = self.next[option, here]
            states.append(here)
        one_hot = nn.functional.one_hot(torch.stack(states, 2), self.num_states)
        return Rollout(
            one_hot.to(state), actions, actions[..., :0], torch.stack(costs, 2)[..., None]
        )

    def terms(self, rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
        total = rollout.interoception[..., 0].sum(-1) + rollout.states[:, :, -1] @ self.value
        return {"cost": self.scale * total + self.offset}

    def evaluator(self) -> RolloutEvaluator:
        space = OneHotActions(sizes=(self.num_options,))
        return RolloutEvaluator(
            self.imagine, self.imagine_policy, self.terms, space, self.num_options
        )

    def imagine_policy(self, state: Tensor, policy: PolicyFn, candidates: Tensor) -> Rollout:
        """A closed-loop rollout; there are no candidates beside it."""
        here, rows, actions = state, torch.eye(self.num_states), []
        for _ in range(candidates.shape[2]):
            actions.append(policy(here))
            here = rows[self.next[actions[-1].argmax(-1), here.argmax(-1)]]
        return self.imagine(state, torch.stack(actions, 1)[:, None])

    def starts(self, *numbers: int) -> Tensor:
        return torch.eye(self.num_states)[list(numbers)]


def fixed_policy(*logits: float, state_dim: int) -> Policy:
    """A policy with the same logits in every state."""
    count = len(logits)
    layers = nn.Linear(3 * state_dim, count)
    nn.init.zeros_(layers.weight)
    layers.bias.data = torch.tensor(logits)
    return Policy(layers, count, OneHotActions(sizes=(count,)), state_dim)


def plan_with(
    table: Table, state: Tensor, *, horizon: int = 4, iterations: int = 64,
    policy: Policy | None = None, seed: int = 0, **settings: float,
) -> Plan:  # fmt: skip
    evaluator = table.evaluator()
    proposal = evaluator.no_candidates if policy is None else PolicyProposal(policy, evaluator)
    search = TreeSearchConfig(**settings).build(evaluator, proposal)
    context = make_context(torch.zeros_like(state), horizon=horizon, iterations=iterations)
    return search(state, context, PlannerCarry.initial(seed))[0]


def all_sequences(num_options: int, horizon: int) -> Tensor:
    """`[1, J ** H, H, J]`"""
    options = torch.arange(num_options)
    index = torch.cartesian_prod(*[options] * horizon).reshape(-1, horizon)
    return nn.functional.one_hot(index, num_options).float()[None]


def optimum(table: Table, state: Tensor, horizon: int) -> tuple[Tensor, Tensor, Tensor]:
    """Among all sequences the least energy `[B]`, the number of its first action, and by how much
    the best sequence of any other first action is worse."""
    actions = all_sequences(table.num_options, horizon).expand(len(state), -1, -1, -1)
    energy = sum(table.terms(table.imagine(state, actions), make_context(state)).values())
    by_first = energy.unflatten(1, (table.num_options, -1)).amin(-1)  # [B, J]
    least, first = by_first.topk(2, largest=False)
    return least[:, 0], first[:, 0], least[:, 1] - least[:, 0]


GUMBEL = {"num_considered": 4, "gumbel_scale": 0.0}


@pytest.mark.parametrize("settings", [{}, GUMBEL], ids=["puct", "gumbel"])
@pytest.mark.parametrize(("num_options", "horizon"), [(2, 3), (3, 2), (4, 1)])
def test_finds_the_optimum_of_a_tabular_world(num_options, horizon, settings):
    table = Table(8, num_options)
    state = table.starts(*range(8))
    energy, action, gap = optimum(table, state, horizon)
    plan = plan_with(table, state, horizon=horizon, iterations=120, **settings)
    is_clear = gap > 0.1  # the means of nearly equal actions take many more simulations
    assert is_clear.sum() >= 5
    torch.testing.assert_close(plan.energy[is_clear], energy[is_clear])
    assert plan.action.argmax(-1)[is_clear].tolist() == action[is_clear].tolist()


def test_the_value_of_the_root_approaches_the_least_energy():
    """The mean energy of all simulations, the value of the root in the tree."""
    table = Table(6, 3)
    state = table.starts(0)
    energy, _, _ = optimum(table, state, 2)
    plan = plan_with(table, state, horizon=2, iterations=500)
    mean = plan.candidate_energies.cumsum(1)[0, [10, 100, 500]] / torch.tensor([11, 101, 501])
    excess = mean - energy
    assert (excess.diff() < 0).all()
    assert 0 <= excess[2] < 0.3 * excess[0]
    torch.testing.assert_close(plan.energy, energy)


class Sequences(Table):
    """Two actions, and an energy for each sequence of two of them: 00, 01, 10, 11."""

    def __init__(self, *energies: float) -> None:
        super().__init__(2, 2)
        self.energies = torch.tensor(energies)

    def terms(self, rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
        first, second = rollout.actions[..., 1].unbind(-1)
        return {"cost": self.energies[(2 * first + second).long()]}


def test_simulations_by_hand():
    """The prior of action 0 is 0.7 everywhere, and c1 = 1.25, here without its logarithm:

    0. the prior alone: 00, energy 4;
    1. one energy is known, and worth 0: 0.7 / 2 > 0.3 at both nodes, so 00 again;
    2. 0.7 sqrt(2) / 3 < 0.3 sqrt(2): 1, then the most likely action 0, energy 1, which is worth 1;
    3. 0.7 sqrt(3) / 3 c1 < 1 + 0.3 sqrt(3) / 2 c1: 1; what is unknown after it is worth 1 too, and
       0.7 / 2 > 0.3: 10 again;
    4. 1, and then 0.7 sqrt(2) / 3 < 0.3 sqrt(2): 11, energy 3."""
    policy = fixed_policy(log(0.7), log(0.3), state_dim=2)
    table = Sequences(4.0, 2.0, 1.0, 3.0)
    energies, actions = [4.0, 4.0, 1.0, 1.0, 3.0], [0, 0, 0, 1, 1]
    for count in range(5):
        plan = plan_with(table, table.starts(0), horizon=2, iterations=count, policy=policy)
        assert plan.candidate_energies.tolist() == [energies[: count + 1]]
        # of the most visits; with two each, after three simulations, of the least energy
        assert plan.action.argmax(-1).tolist() == [actions[count]]
        assert float(plan.energy) == (1 if actions[count] else 4)


def some_edges() -> Edges:
    """Mean energies 2 and 6 after 1 and 2 visits, and an edge without visits; the energies of the
    tree go from 1 to 9."""
    return Edges(
        visits=torch.tensor([[1.0, 2.0, 0.0]]),
        total=torch.tensor([[2.0, 12.0, 0.0]]),
        prior=torch.tensor([[0.2, 0.5, 0.3]]),
        low=torch.tensor([[1.0]]),
        high=torch.tensor([[9.0]]),
    )


def test_the_lowest_energy_of_the_tree_is_worth_1_and_the_highest_0():
    edges = some_edges()
    assert edges.normalise(torch.tensor([[1.0, 5.0, 9.0]])).tolist() == [[1.0, 0.5, 0.0]]
    diverged = edges.normalise(torch.tensor([[torch.inf, 2.0, 3.0]]))
    torch.testing.assert_close(diverged, torch.tensor([[0.0, 7 / 8, 6 / 8]]))
    # what is unknown is not thought to diverge with its sibling
    total = torch.tensor([[torch.inf, 12.0, 0.0]])
    expected = torch.tensor([[0.0, 3 / 8, 3 / 8]])
    torch.testing.assert_close(edges._replace(total=total).values(), expected)
    flat = edges._replace(low=edges.high)
    assert flat.values().tolist() == [[0.0, 0.0, 0.0]]


def test_the_range_of_the_tree_is_that_of_mean_energies():
    """Energies 4 and 2 of one edge have the mean 3."""
    tree = Tree.empty(4, 2, torch.zeros(1, 2))
    zero, priors = torch.zeros(1, 2, dtype=torch.long), torch.full((1, 2, 2), 0.5)
    for energy in (4.0, 2.0):
        tree.add(torch.tensor([[0, 1]]), zero, priors, torch.tensor([energy]))
    assert (float(tree.low), float(tree.high)) == (3, 4)
    root = tree.root()
    assert root.visits.tolist() == [[2, 0]]
    assert root.total.tolist() == [[6, 0]]
    assert tree.child[0, 0].tolist() == [1, -1]


VALUES = torch.tensor([7 / 8, 3 / 8, (9 - (0.2 * 2 + 0.5 * 6) / 0.7) / 8])
"""Of `some_edges`; the last is that of the mean of the others under the prior."""


def test_puct_by_hand():
    torch.testing.assert_close(some_edges().values()[0], VALUES)
    rate = 1.25 + log((3 + 19652 + 1) / 19652)
    prior = torch.tensor([0.2 / 2, 0.5 / 3, 0.3 / 1]) * sqrt(3) * rate
    torch.testing.assert_close(some_edges().puct(1.25)[0], VALUES + prior)


def test_the_improved_policy_by_hand():
    logits = torch.tensor([0.2, 0.5, 0.3]).log() + (50 + 2) * 0.1 * VALUES
    torch.testing.assert_close(some_edges().improved_logits()[0], logits)
    score = logits.softmax(-1) - torch.tensor([1.0, 2.0, 0.0]) / 4
    torch.testing.assert_close(some_edges().follow_improved()[0], score)


@pytest.mark.parametrize("settings", [{}, GUMBEL], ids=["puct", "gumbel"])
def test_the_search_does_not_depend_on_the_unit_of_the_energy(settings):
    tables = Table(6, 3), Table(6, 3)
    tables[1].scale, tables[1].offset = 64.0, -32.0  # exact in binary
    state = tables[0].starts(0, 1, 2)
    plans = [plan_with(table, state, iterations=20, **settings) for table in tables]
    torch.testing.assert_close(plans[0].candidate_states, plans[1].candidate_states)
    torch.testing.assert_close(64 * plans[0].energy - 32, plans[1].energy)


@pytest.mark.parametrize("settings", [{"dirichlet_fraction": 0.5}, {"num_considered": 3}], ids=str)
def test_a_batch_is_planned_as_each_environment_alone(settings):
    table = Table(6, 3)
    state = table.starts(0, 3, 4, 5)
    together = plan_with(table, state, iterations=40, **settings)
    for i in range(len(state)):
        alone = plan_with(table, state[i : i + 1], iterations=40, **settings)
        torch.testing.assert_close(alone.actions[0], together.actions[i])
        torch.testing.assert_close(alone.candidate_energies[0], together.candidate_energies[i])


@pytest.mark.parametrize("settings", [{"dirichlet_fraction": 0.5}, {"num_considered": 3}], ids=str)
def test_the_seed_decides_the_plan(settings):
    table = Table(6, 3)
    state, policy = table.starts(0), fixed_policy(0.0, 0.1, 0.2, state_dim=6)
    settings = {"iterations": 12, "policy": policy, **settings}
    first, again, other = (
        plan_with(table, state, seed=seed, **settings).candidate_states for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_first_simulations_follow_the_policy():
    table = Table(6, 3)
    state = table.starts(0, 1)
    policy = fixed_policy(0.0, 0.0, 9.0, state_dim=6)
    plan = plan_with(table, state, iterations=2, policy=policy)
    third = torch.tensor([0.0, 0.0, 1.0]).expand(2, 1, 4, 3)
    expected = table.imagine(state, third).states.expand(-1, 3, -1, -1)
    torch.testing.assert_close(plan.candidate_states, expected)
    # with half of the prior uniform the other actions are tried
    plan = plan_with(table, state, iterations=12, policy=policy, uniform_fraction=0.5)
    assert len(plan.candidate_energies[0].unique()) > 2


def test_no_simulation_leaves_the_plan_of_the_policy():
    table = Table(6, 3)
    policy = fixed_policy(0.0, 9.0, 0.0, state_dim=6)
    for settings in ({}, GUMBEL):
        plan = plan_with(table, table.starts(0), iterations=0, policy=policy, **settings)
        assert plan.actions.argmax(-1).tolist() == [[1, 1, 1, 1]]


def test_an_improbable_action_of_least_energy_is_found():
    table = Sequences(4.0, 4.0, 1.0, 0.0)
    policy = fixed_policy(log(0.95), log(0.05), state_dim=2)
    plan = plan_with(table, table.starts(0), horizon=2, iterations=100, policy=policy)
    assert plan.actions.argmax(-1).tolist() == [[1, 1]]


class Bandit(Table):
    """One step; the energy is the number of the action, but -1 for the last but one."""

    def terms(self, rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
        number = rollout.actions[:, :, 0].argmax(-1)
        return {"cost": torch.where(number == self.num_options - 2, -1.0, number.float())}


def test_sequential_halving_by_hand():
    assert halving_schedule(4, 8) == [0, 0, 0, 0, 1, 1, 2, 2]
    assert halving_schedule(8, 24) == [*[0] * 8, *[1] * 4, *[2] * 4, 3, 3, 4, 4, 5, 5, 6, 6]
    assert halving_schedule(4, 10) == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert halving_schedule(2, 5) == [0, 0, 1, 1, 2]
    assert halving_schedule(1, 3) == [0, 1, 2]


def test_the_gumbel_search_finds_the_best_of_many_actions_in_few_simulations():
    table = Bandit(2, 16)
    state, policy = table.starts(0), fixed_policy(*[0.0] * 16, state_dim=2)
    settings = {"horizon": 1, "iterations": 16, "policy": policy}
    plan = plan_with(table, state, num_considered=16, gumbel_scale=0.0, **settings)
    assert plan.action.argmax(-1).tolist() == [14]
    # of fewer, those of the largest Gumbel numbers are simulated
    plans = [plan_with(table, state, num_considered=4, seed=seed, **settings) for seed in range(2)]
    considered = [plan.candidate_energies[0, 1:].unique().tolist() for plan in plans]
    assert [len(energies) for energies in considered] == [4, 4]
    assert considered[0] != considered[1]


@pytest.mark.parametrize("settings", [{}, {"num_considered": 6}], ids=["puct", "gumbel"])
def test_a_future_that_diverges_is_never_chosen(settings):
    table = Bandit(2, 6)
    own = table.terms

    def diverging(rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
        energy = own(rollout, context)["cost"]
        return {"cost": torch.where(energy % 2 == 0, torch.nan, energy)}

    table.terms = diverging  # type: ignore[method-assign]
    plan = plan_with(table, table.starts(0), horizon=1, iterations=60, **settings)
    assert float(plan.energy) == -1


def one_hot_agent(latent: GaussianLatentConfig | None = None, **changes: object) -> tuple:
    """An agent of `CartPole-v1` that has learnt nothing, and states."""
    config = override(
        ami.recipes.gym(EnvConfig(id="CartPole-v1")),
        {
            "actor.planner": TreeSearchConfig(horizon=5, iterations=12),
            "world_model.latent": latent,
            "actor.risk.num_scenarios": 4,
            **changes,
        },
    )
    with closing(config.env.build(3)) as env:
        agent = build(config, env.spec)
        obs, _ = env.reset(0)
    return agent, obs


@pytest.mark.parametrize("latent", [None, GaussianLatentConfig()], ids=["certain", "stochastic"])
def test_energies_are_those_that_every_planner_gives_the_same_actions(latent):
    agent, obs = one_hot_agent(latent)
    controller = agent.controller(tensors=True)
    controller.set_task(agent.task_spec("").to_task(None, "plan"))
    state, context = controller.perceive(obs)
    assert (context.noise is None) == (latent is None)
    plan = controller.plan(state, context)
    known = agent.evaluator.evaluate(state, plan.actions[:, None], context)
    torch.testing.assert_close(plan.energy, known.energy[:, 0])
    torch.testing.assert_close(dict(plan.terms), {n: t[:, 0] for n, t in known.terms.items()})
    torch.testing.assert_close(plan.states, known.rollout.states[:, 0])
    num_futures = 1 if latent is None else 4
    assert plan.candidate_states.shape == (3, 13 * num_futures, 6, agent.shape[0])
    assert (plan.energy[:, None] == plan.candidate_energies).any(1).all()
    assert all(weights.grad is None for weights in agent.parameters())


def test_the_policy_of_the_agent_is_the_prior_in_the_mode_auto_too():
    agent, obs = one_hot_agent(**{"stages.distill_policy": DistillPlanner()})
    head = [part for part in agent.policy.layers.modules() if isinstance(part, nn.Linear)][-1]
    head.bias.data.copy_(torch.tensor([0.0, 100.0]))
    assert agent.planner.policy is agent.policy
    for mode in ("plan", "auto"):
        controller = agent.controller(tensors=True)
        controller.set_task(agent.task_spec("").to_task(None, mode))
        plan = controller.act(obs)
        assert plan.action.argmax(-1).tolist() == [1, 1, 1]
        assert plan.actions.shape == (3, 5, 2)


def test_several_choices_are_searched_together():
    space = OneHotActions(sizes=(2, 3))
    options = space.options()
    assert options.shape == (6, 5)
    assert torch.equal(space.project(options), options)
    assert len(options.unique(dim=0)) == 6
    assert (options @ options.T).argmax(-1).tolist() == list(range(6))


def test_numbers_and_too_many_choices_are_refused(capsys):
    table = Table(2, 2)
    for space, message in (
        (BoxActions(), "chooses among discrete actions, but action_space is BoxActions"),
        (OneHotActions(sizes=(3,) * 10), "has 59,049; it must have at most 4,096"),
    ):
        evaluator = replace(table.evaluator(), action_space=space)
        with pytest.raises(ConfigError, match=message):
            TreeSearchConfig().build(evaluator, evaluator.no_candidates)
    for recipe in (("two-rooms",), ("gym", "--env.id", "Pendulum-v1")):
        assert "discrete actions" in error_line(capsys, "train", *recipe, "--planner", "TreeSearch")


def test_an_agent_learns_and_acts_with_tree_search(tmp_path):
    config = tiny_gym(EnvConfig(id="FrozenLake-v1", max_episode_steps=8))
    config = override(config, {"actor.planner": TreeSearchConfig(horizon=2, iterations=4)})
    agent = ami.train(config, seed=0, out=tmp_path / "run")
    again = ami.load(tmp_path / "run")
    assert type(again.planner) is type(agent.planner)
