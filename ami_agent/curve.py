"""Learning curves: an agent is evaluated while it is trained, and the training is not disturbed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ami_agent.agent import Agent
from ami_agent.build import Config
from ami_agent.evaluate import EPISODES_FROM, Outcome, play_many
from ami_agent.failures import FailedInReset, NotMade
from ami_agent.lessons import Pupil
from ami_agent.lessons.base import HoldsEnvs
from ami_agent.players import mind


def curve_metrics(
    agent: Agent, config: Config, task: str, mode: str, episodes: int, pupil: Pupil | None
) -> dict[str, float]:
    """The means over some episodes of a task, by name. `pupil`: the stage in progress, whose
    environments may be the only ones that can be open."""
    assignment = config.tasks[task]
    controller = agent.controller(episodes)  # of its own, so the training goes on undisturbed
    play = partial(
        play_many, mind(agent.eval(), mode, assignment, controller=controller),
        config.evaluation.under(assignment), episodes, EPISODES_FROM, agent.device,
    )  # fmt: skip
    outcome = _beside(pupil, play)
    outcome = outcome.settled(outcome.reports_success)
    found = {
        "final_success": outcome.final_success, "score": outcome.score,
        "return": outcome.felt[:, 0],
    }  # fmt: skip
    return {n: float(part.mean()) for n, part in found.items() if not part.isnan().any()}


def _beside(pupil: Pupil | None, play: Callable[[], Outcome]) -> Outcome:
    """Plays while the environments of a stage are open; where no other can be opened beside them,
    they are closed meanwhile."""
    try:
        return play()
    except (NotMade, FailedInReset):
        if not isinstance(pupil, HoldsEnvs):
            raise
    pupil.close_envs()
    outcome = play()
    pupil.reopen_envs()
    return outcome
