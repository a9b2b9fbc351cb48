"""Speed of planning, of training and of environments as ratios to references that others know."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import tyro
from gymnasium import spaces
from rich.console import Console
from torch import Tensor, nn

from ami_agent.adapters.env import EnvAdapter, EnvConfig
from ami_agent.agent import Agent
from ami_agent.bench import sb3
from ami_agent.bench.speed import EnvSpeed, measure_rates
from ami_agent.cli.command_flags import CommandFlags, check_file_path
from ami_agent.components import CEMConfig, MPPIConfig
from ami_agent.config import buffer_steps, build, override
from ami_agent.evaluation.evaluate import FIRST_EVAL_SEED
from ami_agent.evaluation.policies import EpisodeStart, TaskTracker
from ami_agent.logger import one_line, print_line, print_table
from ami_agent.recipes.gym import gym
from ami_agent.storage import run_dir
from ami_agent.training import OfflineActorCritic, TrainJEPA
from ami_agent.training.actor_critic import OfflineRun
from ami_agent.training.optim import OptimConfig, tune_malloc
from modules.actor.policy import PolicyProposal
from modules.types import ConfigError, PlannerCarry, PlannerProtocol, ProposalFn, TaskContext

TDMPC2 = {"horizon": 3, "iterations": 6, "warm_iterations": 6, "num_samples": 488}
"""The planner of TD-MPC2 (Hansen et al. 2024): 512 samples in 6 iterations over 3 steps, of which
POLICY_TRAJECTORIES are the policy's, and ELITES are refitted to."""
POLICY_TRAJECTORIES = 24
ELITES = 64
BATCH, HIDDEN = 256, 256
"""Of the updates, and of each hidden layer: the default settings of SAC in Stable-Baselines3."""
ENV_ID = "Pendulum-v1"
NUM_ENVS = 16


class Ratio(NamedTuple):
    """The rates of this project and of a reference, measured by turns."""

    ours: str
    reference: str
    unit: str
    our_rate: float
    reference_rate: float | None
    left_out: str = ""  # why the reference is

    @property
    def value(self) -> float | None:
        return self.our_rate / self.reference_rate if self.reference_rate else None

    @property
    def name(self) -> str:
        return f"{self.ours} / {self.reference}"


@dataclass(frozen=True, kw_only=True)
class References(CommandFlags):
    """Speed as ratios to references: the agent's planner beside CEM and MPPI of TD-MPC2's size and
    stable-worldmodel's solvers, updates beside Stable-Baselines3's SAC, environments beside
    Gymnasium's SyncVectorEnv."""

    run: str = "runs/reference/two-rooms"
    """Run folder of the agent that plans; its world model and cost are those of all planners."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Files (x.py) and modules that the run folder names."""
    trust: bool = False
    """Import all modules that the run folder names."""
    seconds: Annotated[float, (0.0, 1e6)] = 10.0
    """Seconds of measurement for each rate."""
    out: str = ""
    """A picture of the ratios (.png)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out:
            check_file_path("--out", self.out)

    def measure(self, console: Console) -> dict[str, Any]:
        """By comparison, both rates and their ratio; None for a reference that is left out."""
        ratios = [*self._planning(console), *self._training(console), *self._envs(console)]
        rows = [
            [ratio.name, _number(ratio.our_rate), _number(ratio.reference_rate),
             _times(ratio.value)]
            for ratio in ratios
        ]  # fmt: skip
        columns = ["ours / reference", "ours", "reference", "ratio"]
        title = "plans, updates and environment steps per second"
        print_table(console, title, columns, rows)
        for ratio in ratios:
            if ratio.left_out:
                print_line(console, f"{ratio.name} is left out: {ratio.left_out}")
        if self.out:
            draw(ratios, Path(self.out))
        return {ratio.name: {**ratio._asdict(), "ratio": ratio.value} for ratio in ratios}

    def _planning(self, console: Console) -> list[Ratio]:
        print_line(console, f"planners with the world model of {self.run}, one environment")
        folder = Path(self.run)
        config = run_dir.config_of(folder, self.imports, self.trust)
        agent = run_dir.load(folder, config=config)
        with closing(config.eval_env.build(1)) as env:
            state, context = first_state(agent, env)
        policy = trajectories(agent, POLICY_TRAJECTORIES)
        short = context._replace(horizon=TDMPC2["horizon"], iterations=TDMPC2["iterations"])
        cem = CEMConfig(**TDMPC2, num_elites=ELITES).build(agent.evaluator, policy)
        mppi = MPPIConfig(**TDMPC2).build(agent.evaluator, policy)
        ours = type(agent.planner).__name__
        plans = {
            ours: plan_repeatedly(agent.planner, state, context),
            "our CEM 512 x 6": plan_repeatedly(cem, state, short),
            "our MPPI 512 x 6": plan_repeatedly(mppi, state, short),
        }
        left_out: dict[str, str] = {}
        try:
            plans |= stable_worldmodel_solvers(agent, state, context)
        except ImportError as error:
            reason = f"stable-worldmodel can't be imported ({one_line(error)})"
            left_out = dict.fromkeys(SOLVERS, reason)
        with contextlib.redirect_stdout(io.StringIO()):  # the solvers print in every call
            rates = measure_rates(plans, self.seconds)
        names = [*(name for name in rates if name != ours), *left_out]
        return [
            Ratio(ours, name, "plans", rates[ours], rates.get(name), left_out.get(name, ""))
            for name in names
        ]

    def _training(self, console: Console) -> list[Ratio]:
        print_line(console, f"updates in {ENV_ID}, batches of {BATCH}, layers of {HIDDEN}")
        tune_malloc()  # as `ami train` does
        run, sac = offline_run(), "SB3's SAC"
        updates: dict[str, Callable[[], int]] = {
            "actor, critics": partial(_count, run.actor.update),
            "the same, world model": partial(_count, run.update),
        }
        left_out = ""
        try:
            sb3.check_installed()
            updates[sac] = sac_updates()
        except ConfigError as error:
            left_out = str(error).partition(",")[0]
        rates = measure_rates(updates, self.seconds)
        return [
            Ratio(name, sac, "updates", rate, rates.get(sac), left_out)
            for name, rate in rates.items()
            if name != sac
        ]

    def _envs(self, console: Console) -> list[Ratio]:
        bench = EnvSpeed(num_envs=(NUM_ENVS,), seconds=self.seconds)
        ratios = []
        for name in ("ami/TwoRooms-v0", "ami/Maze-v0"):
            rates = bench.measure_modes(EnvConfig(id=name), NUM_ENVS, console)
            ours, reference = rates["batched"], rates["sync"]
            assert ours is not None
            ratios.append(Ratio(f"{NUM_ENVS} {name}", "SyncVectorEnv", "steps", ours, reference))
        return ratios


def first_state(agent: Agent, env: EnvAdapter) -> tuple[Tensor, TaskContext]:
    """The state and the context of the first step of an episode, by the agent's first task."""
    obs, info = env.reset(FIRST_EVAL_SEED)
    controller = agent.controller(env.num_envs, tensors=True)
    start = EpisodeStart(env, obs, info)
    controller.set_task(TaskTracker(agent.task_spec("")).task(start, "plan"))
    return controller.perceive(obs)


def plan_repeatedly(
    planner: PlannerProtocol, state: Tensor, context: TaskContext
) -> Callable[[], int]:
    """A function that plans once, from the warm start that the plan before left, and returns 1."""
    carry = PlannerCarry.initial(0)

    @torch.no_grad()
    def plan() -> int:
        nonlocal carry
        _, carry = planner(state, context, carry)
        return 1

    return plan


def trajectories(agent: Agent, count: int) -> ProposalFn:
    """The actions of `count` rollouts of the policy, as candidates `[B, count, H, A]`."""
    proposal = PolicyProposal(agent.policy, agent.evaluator)

    def propose(state: Tensor, context: TaskContext, rng: torch.Generator) -> Tensor:
        rows = torch.arange(len(state), device=state.device).repeat_interleave(count)
        return proposal(state[rows], context.select(rows), rng).unflatten(0, (-1, count))[:, :, 0]

    return propose


SOLVERS = "stable-worldmodel's CEM", "stable-worldmodel's gradient"


class SolverCost(nn.Module):
    """Our world model and cost, as stable-worldmodel's solvers call them."""

    def __init__(self, agent: Agent, context: TaskContext) -> None:
        super().__init__()
        self.agent, self.context = agent, context

    def get_cost(self, info: dict[str, Tensor], candidates: Tensor) -> Tensor:
        """States `[B, P, D]`, the same for every candidate, and candidates `[B, P, H, A]`,
        unbounded -> their energies `[B, P]`."""
        evaluator = self.agent.evaluator
        actions = evaluator.action_space.squash(candidates)
        return evaluator.evaluate(info["state"][:, 0], actions, self.context).energy


def stable_worldmodel_solvers(
    agent: Agent, state: Tensor, context: TaskContext
) -> dict[str, Callable[[], int]]:
    """Its CEM of TD-MPC2's size, and its gradient solver with as many candidates, steps and
    iterations as our planner takes from a cold start. ImportError where it is not installed."""
    from stable_worldmodel.policy import PlanConfig  # not a dependency
    from stable_worldmodel.solver import CEMSolver, GradientSolver

    samples = TDMPC2["num_samples"] + POLICY_TRAJECTORIES
    size = {"num_samples": samples, "n_steps": TDMPC2["iterations"], "topk": ELITES}
    candidates = agent.planner.config.num_proposals + 1  # type: ignore[attr-defined]
    optimizer = {"optimizer_cls": torch.optim.Adam, "optimizer_kwargs": {"lr": 0.2}}
    short = context._replace(horizon=TDMPC2["horizon"])
    solvers = {
        SOLVERS[0]: (CEMSolver(SolverCost(agent, short), **size), short),
        SOLVERS[1]: (
            GradientSolver(
                SolverCost(agent, context), n_steps=context.iterations, num_samples=candidates,
                **optimizer,
            ),
            context,
        ),
    }  # fmt: skip
    action_space = spaces.Box(-1, 1, (1, agent.spec.action_dim))
    solve: dict[str, Callable[[], int]] = {}
    for name, (solver, task) in solvers.items():
        plan_config = PlanConfig(horizon=task.horizon, receding_horizon=1)
        solver.configure(action_space=action_space, n_envs=1, config=plan_config)
        solve[name] = partial(_count, solver, {"state": state})
    return solve


def offline_run() -> OfflineRun:
    """The training of a `gym` agent on random steps, with layers and batches as SAC has them."""
    env = EnvConfig(id=ENV_ID)
    config = override(
        gym(env),
        {
            "world_model.dynamics.hidden": HIDDEN,
            "world_model.interoception_head.hidden": HIDDEN,
            "cost.value_critics.hidden": HIDDEN,
            "actor.policy.hidden": HIDDEN,
        },
    )
    with closing(env.build(1)) as adapter:
        agent = build(config, adapter.spec, buffer_size=buffer_steps(config))
    collector = config.collect.start(agent, env, 0)
    while collector.step < collector.total:
        collector.update()
    collector.finish()
    optim = OptimConfig(steps=0, batch_size=BATCH)
    train_jepa = config.stages["train_jepa"]
    assert isinstance(train_jepa, TrainJEPA)
    stage = OfflineActorCritic(
        optim=optim, train_jepa=replace(train_jepa, optim=optim), updates=1_000_000
    )
    run = stage.start(agent, env, 0)
    assert isinstance(run, OfflineRun)
    return run


def sac_updates() -> Callable[[], int]:
    """A function that updates SAC once, with its default settings."""
    model = sb3.make_model("sac", EnvConfig(id=ENV_ID), seed=0, device="cpu")
    model.learn(BATCH)  # fills its replay buffer, too
    return partial(_count, model.train, 1, BATCH)


def _count(function: Callable[..., Any], *args: Any) -> int:
    function(*args)
    return 1


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g} x"


def draw(ratios: Sequence[Ratio], path: Path) -> None:
    """The ratios as bars, on a logarithmic axis."""
    from matplotlib.figure import Figure  # slow to import

    from ami_agent.viewer.drawing import MUTED, PLANNED, pixels, write_png

    known = [(ratio.name, ratio.value) for ratio in ratios if ratio.value is not None]
    figure = Figure((8, 0.6 + 0.4 * len(known)), dpi=100, facecolor="white", layout="tight")
    axes = figure.subplots()
    names = [name.replace(" / ", "\n/ ") for name, _ in known]
    values = [value for _, value in known]
    bars = axes.barh(range(len(known)), [v - 1 for v in values], left=1, color=PLANNED)
    axes.bar_label(bars, [_times(value) for value in values], padding=3, size=8)
    axes.set_yticks(range(len(known)), names, size=8)
    axes.set(xscale="log", xlabel="speed, reference = 1")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.axvline(1, color=MUTED, lw=0.8)
    write_png(path, pixels(figure))
