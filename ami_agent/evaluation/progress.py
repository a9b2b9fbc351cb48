"""The progress of episodes: how many have ended, and how long the others will take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil
from types import MappingProxyType

from torch import Tensor

from ami_agent.adapters.env import EnvAdapter
from ami_agent.logger import Logger, Progress

NOTHING_RECORDED: Mapping[str, float] = MappingProxyType({})


class EpisodeProgress:
    """Tells the progress of episodes that are stepped side by side, in batches of B environments,
    by the steps of all of them.

    An episode is expected to last as long as the longest that has ended, or as `expected_steps`
    says. Where nothing is known or an episode lasts longer, the environment's time limit is the
    most that it can take; without a limit no time left is shown."""

    def __init__(self, bar: Progress, episodes: int, expected_steps: float = 0.0) -> None:
        self.bar, self.episodes, self.longest = bar, episodes, ceil(expected_steps)
        self.num_ended = 0  # episodes, of earlier batches
        self.limit = self.step = 0
        self._expect(self.longest, self.episodes * self.longest)

    def begin(self, env: EnvAdapter) -> None:
        """The next batch of episodes begins, or a batch whose process died begins again."""
        self.limit, self.step = ceil(env.max_episode_steps()[0]), 0
        self.longest = min(self.longest, self.limit or self.longest)

    def advance(self, length: Tensor, running: Tensor) -> None:
        """A step of the batch; the steps `[B]` of each episode so far, and which `[B]` go on."""
        self.step += 1
        batch, num_running = len(running), int(running.sum())
        if num_running < batch:
            self.longest = max(self.longest, int(length[~running].max()))
        total = self.longest if self.step < self.longest or not num_running else self.limit
        steps_left = max(total - self.step, 1) * batch if num_running else 0
        later_episodes = self.episodes - self.num_ended - batch
        self._expect(total, self.bar.done + batch + steps_left + later_episodes * total)
        self.bar.advance(batch, **{"episodes done": self.num_ended + batch - num_running})
        self.num_ended += 0 if num_running else batch

    def _expect(self, steps: int, total: int) -> None:
        """`steps`: of an episode, 0 where unknown; `total`: of all together."""
        self.bar.total = total if steps else None
        self.bar.is_limit = steps > self.longest


class PolicyProgress:
    """Tells the progress of policies, one after the other. `recorded_steps`: those of an episode
    under a policy of this name, where they are known; where they are not, an episode is expected to
    last as long as the longest under the policy before. `label`: what the policies do."""

    def __init__(
        self, logger: Logger, recorded_steps: Mapping[str, float] = NOTHING_RECORDED,
        label: str = "evaluate",
    ) -> None:  # fmt: skip
        self.logger, self.label = logger, label
        self.expected_steps, self.longest = dict(recorded_steps), 0.0

    @contextmanager
    def policy(self, name: str, episodes: int) -> Iterator[EpisodeProgress]:
        """The progress of so many episodes of a policy, which is shown within the block."""
        expected_steps = self.expected_steps.get(name) or self.longest
        with self.logger.progress(f"{self.label}, {name}", None) as bar:
            progress = EpisodeProgress(bar, episodes, expected_steps)
            yield progress
        self.expected_steps[name] = self.longest = progress.longest
