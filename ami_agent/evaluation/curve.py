"""Learning curves: an agent is evaluated while it is trained, and the training is not disturbed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ami_agent.adapters.fault_tolerance import EnvCreationError, EnvResetError
from ami_agent.agent import Agent
from ami_agent.config import Config
from ami_agent.evaluation.evaluate import FIRST_EVAL_SEED, EpisodeResults, run_many
from ami_agent.evaluation.policies import agent_policy_factory
from ami_agent.training import StageRun
from ami_agent.training.base import HoldsEnvs


def evaluation_metrics(
    agent: Agent, config: Config, task: str, mode: str, episodes: int, stage_run: StageRun | None
) -> dict[str, float]:
    """The means over some episodes of a task, by name. `pupil`: the stage in progress, whose
    environments may be the only ones that can be open."""
    task_spec = config.tasks[task]
    controller = agent.controller(episodes)  # of its own, so the training goes on undisturbed
    run = partial(
        run_many, agent_policy_factory(agent.eval(), mode, task_spec, controller=controller),
        config.eval_env.for_task(task_spec), episodes, FIRST_EVAL_SEED, agent.device,
    )  # fmt: skip
    results = _run_beside_stage(stage_run, run)
    results = results.with_failures_filled(results.reports_success)
    metrics = {
        "final_success": results.final_success, "score": results.score,
        "return": results.signal_sums[:, 0],
    }  # fmt: skip
    return {n: float(part.mean()) for n, part in metrics.items() if not part.isnan().any()}


def _run_beside_stage(
    stage_run: StageRun | None, run: Callable[[], EpisodeResults]
) -> EpisodeResults:
    """Plays while the environments of a stage are open; where no other can be opened beside them,
    they are closed meanwhile."""
    try:
        return run()
    except (EnvCreationError, EnvResetError):
        if not isinstance(stage_run, HoldsEnvs):
            raise
    stage_run.close_envs()
    results = run()
    stage_run.reopen_envs()
    return results
