"""Learning curves: evaluations of an agent during training, which they do not disturb."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ami_agent.adapters.fault_tolerance import EnvCreationError, EnvResetError
from ami_agent.agent import Agent
from ami_agent.config import Config
from ami_agent.evaluation.evaluate import FIRST_EVAL_SEED, EpisodeResults, run_many
from ami_agent.evaluation.policies import agent_policy_factory
from ami_agent.training import StageRun


def evaluation_metrics(
    agent: Agent, config: Config, task: str, mode: str, episodes: int, stage_run: StageRun | None
) -> dict[str, float]:
    """Metrics of a task, by name, each the mean over episodes. `stage_run`: the stage in progress,
    whose environments may be the only ones that can be open."""
    task_spec = config.tasks[task]
    make_policy = agent_policy_factory(agent.eval(), mode, task_spec)
    env = config.eval_env.for_task(task_spec)
    run = partial(run_many, make_policy, env, episodes, FIRST_EVAL_SEED, agent.device)
    results = _run_beside_stage(stage_run, run)
    results = results.with_failures_filled(results.reports_success)
    metrics = {
        "final_success": results.final_success, "score": results.score,
        "return": results.signal_sums[:, 0],
    }  # fmt: skip
    return {name: float(v.mean()) for name, v in metrics.items() if not v.isnan().any()}


def _run_beside_stage(
    stage_run: StageRun | None, run: Callable[[], EpisodeResults]
) -> EpisodeResults:
    """The results of `run`, for which the environments of the stage are closed where no others can
    be open at the same time."""
    try:
        return run()
    except (EnvCreationError, EnvResetError):
        if stage_run is None:
            raise
    stage_run.close_envs()
    results = run()
    stage_run.reopen_envs()
    return results
