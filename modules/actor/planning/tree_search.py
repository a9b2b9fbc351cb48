"""Mode-2 by Monte Carlo tree search, for discrete actions: each simulation follows the tree of
action sequences until it leaves it, and the prior from there to the horizon (PUCT with the
constants of MuZero: Schrittwieser et al. 2020; the choice of root actions by Gumbel noise and
sequential halving: Danihelka et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2, prod
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor

from modules.actor.planning.evaluator import RolloutEvaluator, to_plan, without_nan
from modules.actor.policy import OneHotActions, Policy, PolicyProposal
from modules.by_hand.caches import row_numbers
from modules.types import (
    FRACTION,
    HORIZON,
    ITERATIONS,
    ConfigError,
    EvaluatedRollouts,
    Plan,
    PlannerCarry,
    PolicyFn,
    ProposalFn,
    Rollout,
    Settings,
    TaskContext,
)

EXPLORATION_BASE = 19652
"""c2 of PUCT (MuZero, appendix B)."""
VISIT_OFFSET, VALUE_SCALE = 50, 0.1
"""c_visit and c_scale of the Gumbel search, whose logits grow by (c_visit + most visits) c_scale
times the value (Danihelka et al. 2022, equation 8; 0.1 is their c_scale for Atari)."""
MAX_OPTIONS = 4096
"""Combinations of all choices above which there is no tree: each node has that many edges."""


@dataclass(frozen=True, kw_only=True)
class TreeSearchConfig(Settings):
    horizon: Annotated[int, HORIZON] = 8
    """Planning horizon in steps, H; the tree is at most that deep."""
    iterations: Annotated[int, ITERATIONS] = 32
    """Simulations of each plan, after a first one that follows the prior alone."""
    exploration: Annotated[float, (0.0, 1e3)] = 1.25
    """c1 of PUCT, not of the Gumbel search: how much the prior and few visits count beside the
    energies."""
    uniform_fraction: Annotated[float, FRACTION] = 0.0
    """Fraction of a uniform distribution in the prior of every node."""
    dirichlet_fraction: Annotated[float, FRACTION] = 0.0
    """Fraction of Dirichlet noise in the prior of the root."""
    dirichlet_alpha: Annotated[float, (1e-3, 1e3)] = 0.3
    """Concentration of the Dirichlet noise, where its fraction is above 0."""
    num_considered: Annotated[int, (0, MAX_OPTIONS)] = 0
    """Root actions among which the Gumbel search halves; 0: PUCT instead of the Gumbel search."""
    gumbel_scale: Annotated[float, (0.0, 1e3)] = 1.0
    """Factor on the noise of the Gumbel search; 0: the root actions most likely under the prior."""

    def build(self, evaluator: RolloutEvaluator, proposal_fn: ProposalFn) -> TreeSearch:
        """ConfigError unless the actions are choices, of at most MAX_OPTIONS combinations."""
        return TreeSearch(self, evaluator, proposal_fn)


class Path(NamedTuple):
    """The edges that a simulation follows, from the root; what stands after `length` is unused."""

    nodes: Tensor  # [B, H] int64: where each edge begins
    options: Tensor  # [B, H] int64
    length: Tensor  # [B] int64


class Tree(NamedTuple):
    """The trees of B environments, of N nodes with J edges each. Simulation n may make the nodes
    n H to n H + H - 1, one at each depth; node 0 is the root. The search fills these tensors in
    place."""

    child: Tensor  # [B, N, J] int64: the node that an edge leads to; -1 where none does yet
    visits: Tensor  # [B, N, J]: simulations that followed an edge
    total: Tensor  # [B, N, J]: the sum of their energies
    prior: Tensor  # [B, N, J]
    low: Tensor  # [B]: least mean energy that an edge had so far
    high: Tensor  # [B]: greatest

    @classmethod
    def empty(cls, num_nodes: int, num_options: int, like: Tensor) -> Tree:
        """For states `[B, D]`."""
        zeros = like.new_zeros(len(like), num_nodes, num_options)
        return cls(
            child=torch.full_like(zeros, -1, dtype=torch.long),
            visits=zeros,
            total=zeros.clone(),
            prior=zeros.clone(),
            low=like.new_full((len(like),), torch.inf),
            high=like.new_full((len(like),), -torch.inf),
        )

    def at(self, node: Tensor) -> Edges:
        """The edges of a node of each environment, `[B]`."""
        rows = row_numbers(len(node), node.device)
        visits, total, prior = (part[rows, node] for part in (self.visits, self.total, self.prior))
        return Edges(visits, total, prior, self.low[:, None], self.high[:, None])

    def root(self) -> Edges:
        """The edges of the root."""
        return self.at(torch.zeros_like(self.child[:, 0, 0]))

    def add(self, nodes: Tensor, options: Tensor, priors: Tensor, energy: Tensor) -> None:
        """A simulation: its edges to the horizon, by node and option `[B, H]`, the priors of these
        nodes `[B, H, J]`, and its energy `[B]`."""
        edges = nodes * self.visits.shape[2] + options
        visits, total, child = self.visits.flatten(1), self.total.flatten(1), self.child.flatten(1)
        visits.scatter_add_(1, edges, torch.ones_like(edges, dtype=visits.dtype))
        total.scatter_add_(1, edges, energy[:, None].expand(edges.shape))
        child.scatter_(1, edges[:, :-1], nodes[:, 1:])
        self.prior[row_numbers(len(nodes), nodes.device)[:, None], nodes] = priors
        mean = total.gather(1, edges) / visits.gather(1, edges)
        diverged = ~mean.isfinite()
        torch.minimum(self.low, mean.masked_fill(diverged, torch.inf).amin(1), out=self.low)
        torch.maximum(self.high, mean.masked_fill(diverged, -torch.inf).amax(1), out=self.high)


class Edges(NamedTuple):
    """The edges of one node of each environment."""

    visits: Tensor  # [B, J]
    total: Tensor  # [B, J]
    prior: Tensor  # [B, J]
    low: Tensor  # [B, 1]
    high: Tensor  # [B, 1]

    def normalise(self, energy: Tensor) -> Tensor:
        """Energies `[B, J]` -> values from 0, the greatest energy of the tree, to 1, the least; 0
        where the tree has known one energy only."""
        span = self.high - self.low
        return torch.where(span > 0, ((self.high - energy) / span).clamp(0, 1), 0)

    def values(self) -> Tensor:
        """Of the mean energies, `[B, J]`; edges without visits have the mean of the others under
        the prior (completed values, Danihelka et al. 2022, appendix D, of a node that has no other
        estimate). MuZero gives them 0, with which a search of few simulations stays where it
        begins."""
        visited = self.visits > 0
        mean = self.total / self.visits.clamp_min(1)
        weight = torch.where(visited & mean.isfinite(), self.prior, 0)
        by_prior = torch.where(weight > 0, weight * mean, 0).sum(-1, keepdim=True)
        total = weight.sum(-1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        return self.normalise(torch.where(visited, mean, by_prior / total))

    def puct(self, exploration: float) -> Tensor:
        """Q + P sqrt(n) / (1 + N) (c1 + log((n + c2 + 1) / c2)), `[B, J]` (MuZero, equation 2),
        n the visits of all edges of the node."""
        count = self.visits.sum(-1, keepdim=True)
        rate = exploration + ((count + EXPLORATION_BASE + 1) / EXPLORATION_BASE).log()
        return self.values() + self.prior * count.sqrt() / (1 + self.visits) * rate

    def improved_logits(self) -> Tensor:
        """log P + (c_visit + max N) c_scale Q, `[B, J]` (Danihelka et al. 2022)."""
        most = self.visits.amax(-1, keepdim=True)
        return self.prior.log() + (VISIT_OFFSET + most) * VALUE_SCALE * self.values()

    def follow_improved(self) -> Tensor:
        """pi' - N / (1 + n), `[B, J]`, by which the visits approach the improved policy pi', the
        softmax of the improved logits (Danihelka et al. 2022, equation 14)."""
        count = self.visits.sum(-1, keepdim=True)
        return self.improved_logits().softmax(-1) - self.visits / (1 + count)


class TreeSearch:
    """Monte Carlo tree search over sequences of discrete actions.

    A simulation follows the edges of the highest scores from the root until one leads to no node
    yet, and then the most likely actions of the policy (random ones without a policy) to the
    horizon. Its value is the energy that every planner gives this sequence of actions, with the
    critics' predictions at its states; energies of shorter sequences could not be compared with it.
    As the sequence is complete, all its states become nodes, not the first alone.

    In a world model with latent variables that is the energy of the sampled futures: the tree
    branches by the agent's actions alone (open-loop search; Bubeck & Munos 2010).

    The plan begins with the root action of the most visits and is the sequence of least energy
    that was simulated with it. Nothing but the random stream is carried to the next step."""

    def __init__(
        self, config: TreeSearchConfig, evaluator: RolloutEvaluator, proposal_fn: ProposalFn
    ) -> None:
        self.config, self.evaluator = config, evaluator
        space = evaluator.action_space
        if not isinstance(space, OneHotActions):
            raise ConfigError(
                f"actor.planner is TreeSearch, which chooses among discrete actions, but "
                f"action_space is {space}: take another planner, GradientPlanner for instance"
            )
        if prod(space.sizes) > MAX_OPTIONS:
            raise ConfigError(
                f"actor.planner is TreeSearch, which has an edge for every combination of choices, "
                f"but action_space {space} has {prod(space.sizes):,}; it must have at most "
                f"{MAX_OPTIONS:,}"
            )
        self.action_space, self.options = space, space.options()  # [J, A]
        policy = proposal_fn.policy if isinstance(proposal_fn, PolicyProposal) else None
        self.policy = policy if isinstance(policy, Policy) else None

    @torch.no_grad()
    def __call__(
        self, state: Tensor, context: TaskContext, carry: PlannerCarry
    ) -> tuple[Plan, PlannerCarry]:
        """`[B, D]` -> the best plan simulated that begins with the chosen action."""
        rng, options = carry.rng.clone_state(), self.options.to(state, non_blocking=True)
        draws = self._draw(context, rng)
        draws = Draws(*(part.to(state, non_blocking=True) for part in draws))
        count, horizon = context.iterations + 1, context.horizon
        tree = Tree.empty(count * horizon, len(options), state)
        steps = row_numbers(horizon, state.device)
        root = torch.zeros(len(state), horizon, dtype=torch.long, device=state.device)
        path, logits_fn = Path(root, root, root[:, 0]), self._logits_fn(options, context)
        simulations: list[EvaluatedRollouts] = []
        schedule = halving_schedule(
            min(self.config.num_considered, len(options)), context.iterations
        )
        for number in range(count):
            if number:
                path = self._select(tree, draws.gumbel, schedule[number - 1], horizon)
            walk = Walk(path, options, draws.default[number], logits_fn)
            simulations.append(self._evaluate(state, walk, context))
            nodes = torch.where(steps < path.length[:, None], path.nodes, number * horizon + steps)
            priors = self._priors(walk, draws.dirichlet)
            energy = without_nan(simulations[-1].energy[:, 0])
            tree.add(nodes, torch.stack(walk.taken, 1), priors, energy)
            if self.config.num_considered and not number:  # sequential halving counts from here on
                tree.visits[:, 0], tree.total[:, 0] = 0, 0
        evaluated = joined(simulations)
        first = (evaluated.rollout.actions[:, :, 0] @ options.T).argmax(-1)  # [B, P]
        chosen = self._root_score(tree, draws.gumbel).gather(1, first)
        is_chosen = chosen == chosen.amax(1, keepdim=True)
        energy = without_nan(evaluated.energy).masked_fill(~is_chosen, torch.inf)
        return to_plan(evaluated, energy.argmin(1), context), PlannerCarry(rng)

    def _draw(self, context: TaskContext, rng: torch.Generator) -> Draws:
        """The random numbers of a plan, on the host and for all environments, so that the plan for
        one depends on neither the device nor the others."""
        config, count = self.config, len(self.options)
        dirichlet = torch.ones(count) / count
        if config.dirichlet_fraction:
            seed = int(torch.randint(2**31, (), generator=rng))
            noise = np.random.default_rng(seed).dirichlet([config.dirichlet_alpha] * count)
            dirichlet = torch.from_numpy(noise)
        uniform = torch.rand(count, generator=rng).clamp(1e-20, 1 - 2**-24)
        gumbel = -config.gumbel_scale * (-uniform.log()).log()
        num_defaults = 0 if self.policy else count
        shape = (context.iterations + 1, context.horizon, num_defaults)
        return Draws(gumbel, dirichlet, torch.rand(shape, generator=rng))

    def _logits_fn(self, options: Tensor, context: TaskContext) -> PolicyFn:
        """States `[B, D]` -> the logits of every combination of choices under the policy, `[B, J]`;
        0 without a policy."""
        if self.policy is None:
            return lambda states: states.new_zeros(len(states), len(options))
        policy, goal, task_vector = self.policy, context.goal, context.task_vector
        of_task = None
        if type(policy) is Policy:  # a subclass may have another `pre_squash`
            of_task = policy.pre_squash_for_task(goal, task_vector)
        if of_task is None:
            return lambda states: policy.pre_squash(states, goal, task_vector) @ options.T
        return lambda states: of_task(states) @ options.T

    def _priors(self, walk: Walk, dirichlet: Tensor) -> Tensor:
        """The priors of the states of a simulation, `[B, H, J]`, the first that of the root."""
        prior = torch.stack(walk.logits, 1).softmax(-1)
        if self.config.uniform_fraction:
            uniform = torch.full_like(prior, 1 / prior.shape[-1])
            prior = torch.lerp(prior, uniform, self.config.uniform_fraction)
        if self.config.dirichlet_fraction:
            prior[:, 0] = torch.lerp(prior[:, 0], dirichlet, self.config.dirichlet_fraction)
        return prior

    def _select(self, tree: Tree, gumbel: Tensor, considered: int, horizon: int) -> Path:
        """From the root along the highest scores to an edge without a node, or to the horizon.
        `considered`: the visits of the root actions that the Gumbel search halves among."""
        node = torch.zeros_like(tree.child[:, 0, 0])
        searching, length, steps = node == 0, node, []
        rows, use_gumbel = row_numbers(len(node), node.device), self.config.num_considered > 0
        for step in range(horizon):
            edges = tree.at(node)
            if not use_gumbel:
                score = edges.puct(self.config.exploration)
            elif step:
                score = edges.follow_improved()
            else:
                score = gumbel + edges.improved_logits()
                score = score.masked_fill(edges.visits != considered, -torch.inf)
            option = score.argmax(-1)
            steps.append((node, option))
            length = length + searching
            child = tree.child[rows, node, option]
            searching = searching & (child >= 0)
            node = torch.where(searching, child, node)
        nodes, options = (torch.stack(parts, 1) for parts in zip(*steps, strict=True))
        return Path(nodes, options, length)

    def _evaluate(self, state: Tensor, walk: Walk, context: TaskContext) -> EvaluatedRollouts:
        """The future of a simulation and its energy, `[B, 1, ...]`."""
        nothing = self.evaluator.no_candidates(state, context)
        if context.noise is None:
            return self.evaluator.evaluate_with(state, walk, nothing, context)
        # the policy acts in the most likely future, and all sampled ones have its actions
        actions = self.evaluator.imagine_policy(state, walk, nothing).actions
        return self.evaluator.evaluate(state, actions, context)

    def _root_score(self, tree: Tree, gumbel: Tensor) -> Tensor:
        """Root actions by preference, `[B, J]`: by visits, and in the Gumbel search by improved
        logits among those of the most visits."""
        root = tree.root()
        if not self.config.num_considered:
            return root.visits
        most = root.visits.amax(-1, keepdim=True)
        score = gumbel + root.improved_logits()
        return score.masked_fill(root.visits < most, -torch.inf)


class Draws(NamedTuple):
    """Random numbers of a plan."""

    gumbel: Tensor  # [J]
    dirichlet: Tensor  # [J]
    default: Tensor  # [N, H, J]: actions beyond the tree are their maxima; J is 0 with a policy


class Walk:
    """A simulation as a policy, called once for each step with the states `[B, D]` of that step:
    the actions of a path, and after it the most likely ones."""

    def __init__(self, path: Path, options: Tensor, default: Tensor, logits_fn: PolicyFn) -> None:
        """`default`: `[H, J]`, the numbers whose maximum is the action after the path; the logits
        if J is 0."""
        self.path, self.options, self.default = path, options, default
        self.logits_fn = logits_fn
        self.logits: list[Tensor] = []  # of each state, [B, J]
        self.taken: list[Tensor] = []  # the option of each step, [B]

    def __call__(self, states: Tensor) -> Tensor:
        step, logits = len(self.taken), self.logits_fn(states)
        default = self.default[step] if self.default.shape[-1] else logits
        on_path = step < self.path.length
        self.logits.append(logits)
        self.taken.append(torch.where(on_path, self.path.options[:, step], default.argmax(-1)))
        return self.options[self.taken[-1]]


def joined(simulations: list[EvaluatedRollouts]) -> EvaluatedRollouts:
    """The candidates of all simulations, one after the other."""

    def cat(*parts: Tensor) -> Tensor:
        return torch.cat(parts, 1)

    return EvaluatedRollouts(
        rollout=Rollout(*map(cat, *(simulation.rollout for simulation in simulations))),
        terms={
            name: cat(*(simulation.terms[name] for simulation in simulations))
            for name in simulations[0].terms
        },
        energy=cat(*(simulation.energy for simulation in simulations)),
        scenario_states=cat(*(simulation.scenario_states for simulation in simulations)),
    )


def halving_schedule(num_considered: int, num_simulations: int) -> list[int]:
    """For each simulation the visits that its root action must have had, so that all considered
    actions are simulated equally often before the worse half is dropped (sequential halving, Karnin
    et al. 2013): the budget is divided evenly among log2(m) rounds, and the last two actions share
    what is left."""
    if num_considered <= 1:
        return list(range(num_simulations))
    schedule: list[int] = []
    rounds, left, done = ceil(log2(num_considered)), num_considered, 0
    while len(schedule) < num_simulations:
        for _ in range(max(1, num_simulations // (rounds * left))):
            schedule += [done] * left
            done += 1
        left = max(2, left // 2)
    return schedule[:num_simulations]
