"""Training: the lessons of a Config one after the other, logged, checkpointed, resumable."""

from __future__ import annotations

import shutil
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from ami_agent import checkpoint, runs
from ami_agent.agent import Agent
from ami_agent.arguments import check_count, check_device, check_is, check_number, check_path
from ami_agent.build import Config, build, capacity, lessons
from ami_agent.checks import check_config
from ami_agent.evaluate import EPISODES_FROM, Outcome, play_many
from ami_agent.failures import Failed, FailedInReset, NotMade
from ami_agent.learning import average, check_finite, keep_freed_memory
from ami_agent.lessons import Pupil
from ami_agent.lessons.base import HoldsEnvs
from ami_agent.lessons.foresight import longest_episode
from ami_agent.lessons.life import EPISODE_METRICS
from ami_agent.players import mind
from ami_agent.probe import examiner, verdict
from ami_agent.report import Report, Reporter
from ami_agent.resuming import adopt, check_resumable
from ami_agent.spaces import check_same_spaces
from modules.cost import Foresight
from modules.types import UnusableInput

LOG_EVERY = 50
EXAMINE_EVERY = 300
EXAMINED = {"objective"}
"""Lessons that change what a state means, and are examined as they go."""


class Reached(NamedTuple):
    """How far a run has come: updates in all, the lesson it is in, its pupil's state."""

    updates: int = 0
    lesson: int = 0
    pupil: Mapping[str, Tensor] = {}


def train(
    config: Config, *, out: Path | str, seed: int = 0, device: torch.device | str = "cpu",
    resume: bool = False, report: Reporter | None = None, save_every: float = 60.0,
    curve: int = 0, keep_memory: bool = False,
) -> Agent:  # fmt: skip
    """Trains an agent in the run folder `out` and returns it.

    The seed decides everything: on a CPU, a run that was killed and resumed ends with the same
    weights as one that never was. `save_every`: seconds between checkpoints within a lesson.
    `curve`: Mode-2 is judged in so many episodes after every lesson; what they take is not counted.
    `keep_memory`: what was lived stays in the run folder.
    """
    check(config, out, seed, resume)
    check_device(device)
    check_count("curve", curve, 0)
    check_number("save_every", save_every, 0, inf)
    keep_freed_memory()
    if report is None:
        with closing(Report(Path(out), Console(quiet=True))) as quiet:
            return train(
                config, out=out, seed=seed, device=device, resume=resume, report=quiet,
                save_every=save_every, curve=curve, keep_memory=keep_memory,
            )  # fmt: skip
    training = Training(
        config, Path(out), seed, device, report, save_every, resume, curve, keep_memory
    )
    if resume:
        for change in adopt(Path(out), config):
            report.say(f"changed for a stage that has not begun: {change}")
    else:
        runs.start(Path(out), config, seed, str(device), training.agent.spec)
    return training.run()


def check(config: Config, out: Path | str, seed: int, resume: bool) -> None:
    """Raises UnusableInput if such a run can't be begun, or resumed, in this folder."""
    check_is("config", config, Config)
    check_path("out", out)
    check_count("seed", seed, 0)
    check_config(config)
    if resume:
        check_resumable(Path(out), config, seed)
        check_resumed(Path(out), config)
    else:
        runs.check_free(Path(out))


def check_resumed(run: Path, config: Config) -> None:
    """Raises UnusableInput where the environment is no longer that of the run."""
    with closing(config.world.build(1)) as world:
        check_same_spaces(runs.spec_of(run, config), world.spec, config.world)


def lesson_seed(seed: int, name: str) -> int:
    """Where a lesson's chance starts. World i of a lesson lives the life of this number + i, so the
    lessons of one run, and of runs with other seeds, lie far apart; and another lesson in the list
    changes none."""
    return zlib.crc32(f"{seed} {name}".encode()) % 2**30


def _beside(pupil: Pupil | None, play: Callable[[], Outcome]) -> Outcome:
    """Plays while a learner's environments are open; where no other can be opened beside them, they
    are closed meanwhile."""
    try:
        return play()
    except (NotMade, FailedInReset):
        if not isinstance(pupil, HoldsEnvs):
            raise
    pupil.close_envs()
    outcome = play()
    pupil.reopen_envs()
    return outcome


class Training:
    """One run on its way through its lessons."""

    def __init__(
        self, config: Config, run: Path, seed: int, device: torch.device | str,
        report: Reporter, save_every: float, resume: bool, curve: int, keep_memory: bool,
    ) -> None:  # fmt: skip
        self.config, self.folder, self.seed, self.report = config, run, seed, report
        self.save_every, self.curve, self.keep_memory = save_every, curve, keep_memory
        self.saved = self.noted = time.monotonic()
        world = config.world.build(1)
        for line in world.obs_summary():
            report.say(line)
        self.limit = world.limit(config.world)
        self.agent = build(
            config, world.spec, seed=seed, device=device,
            worlds=config.life.worlds, capacity=capacity(config),
        )  # fmt: skip
        world.close()
        self.reached = self._restore() if resume else Reached()
        self.examine = examiner(config.evaluation, seed)

    def run(self) -> Agent:
        """Takes every lesson that is left."""
        self._say_limit()
        for index, (name, lesson) in enumerate(lessons(self.config).items()):
            if index < self.reached.lesson:
                continue
            self.noted = time.monotonic()
            discount = self.agent.cost.body.foresight.discount
            pupil = lesson.begin(self.agent, self.config.world, lesson_seed(self.seed, name))
            if not discount and (found := self.agent.cost.body.foresight.discount):
                steps = longest_episode(self.agent.memory)
                self.report.say(f"discount {found:.3g}, for episodes of {steps} steps as collected")
            if self.reached.pupil:
                pupil.load_state_dict(self.reached.pupil)
            self._learn(index, name, pupil)
            pupil.finish()
            self._note(name)
            if lesson.lives and "reward" in self.config.drives:
                self._say_constant_reward()
            if lesson.lives and (learnt := pupil.state_dict()):
                self._save(learnt)  # before memory says that this lesson is over
            self.reached = Reached(self.reached.updates, index + 1)
            if lesson.lives:
                self._keep_memory()
            self._save({})
            if self.curve and not lesson.lives and pupil.total:
                self._judge(name)
        if not self.keep_memory:
            shutil.rmtree(self.folder / "memory", ignore_errors=True)
        return self.agent.eval()

    def _learn(self, index: int, name: str, pupil: Pupil) -> None:
        recent: list[dict[str, Tensor]] = []
        shown: dict[str, Tensor] = {}  # of the episode that was done last
        with self.report.progress(name, pupil.total, pupil.step) as bar:
            while pupil.step < pupil.total:
                if name in EXAMINED and pupil.step % EXAMINE_EVERY == 0:
                    self._examine(name, pupil.step)
                try:
                    recent.append(pupil.update())
                    shown |= {n: v for n, v in recent[-1].items() if n in EPISODE_METRICS}
                    bar.advance(1, **shown)
                    self.reached = Reached(self.reached.updates + 1, index)
                    if self.curve and pupil.milestone:
                        self._note(name)
                        self._judge(name, pupil.milestone, pupil)
                        self.noted = time.monotonic()
                except Failed:
                    self._log(name, pupil.step, recent)
                    self._save(pupil.state_dict())
                    raise
                if pupil.step % LOG_EVERY == 0 or pupil.step == pupil.total:
                    self._log(name, pupil.step, recent)
                if time.monotonic() - self.saved > self.save_every:
                    self._log(name, pupil.step, recent)
                    self._note(name)
                    self._save(pupil.state_dict())
        if name in EXAMINED:
            self._examine(name, pupil.step)

    def _say_limit(self) -> None:
        """How long episodes last and how far they are foreseen, and what says so."""
        foresight = self.agent.cost.body.foresight
        if not isinstance(foresight, Foresight):
            return
        limit, source = self.limit
        stated = "nothing states how long an episode lasts"
        if limit:
            stated = f"an episode lasts at most {limit:g} steps ({source})"
        gamma = (
            f"discount {foresight.discount:.3g}"
            if foresight.discount
            else "the discount follows from the episodes that are collected first"
        )
        self.report.say(f"{stated}; {gamma}")

    def _say_constant_reward(self) -> None:
        rewards = self.agent.memory.values("interoception")[:, 0]
        if not len(rewards) or rewards.amin() < rewards.amax():
            return
        said = f"the reward was {float(rewards[0]):.6g} at each of {len(rewards):,} steps"
        ends = rewards[0] != 0 and bool(self.agent.memory.values("terminated").any())
        self.report.say(
            f"{said}: only how long an episode lasts can be learnt from"
            if ends
            else f"{said}: nothing to learn from yet"
        )

    def _log(self, name: str, step: int, recent: list[dict[str, Tensor]]) -> None:
        """Also the guard before every checkpoint: what is not finite is never saved."""
        if recent:
            values = average(recent)
            recent.clear()
            check_finite(name, step, values)
            if values:
                self.report.scalars(name, step, values)

    def _examine(self, name: str, step: int) -> None:
        marks = self.examine(self.agent)
        self.report.scalars("state", step, marks)
        self.report.say(f"{name} {step}: {verdict(marks) if step else 'nothing learnt yet'}")

    def _judge(self, name: str, mode: str = "plan", pupil: Pupil | None = None) -> None:
        seconds = runs.seconds_of(self.folder)
        for task, assignment in self.config.tasks.items():
            controller = self.agent.controller(self.curve)  # training goes on undisturbed
            play = partial(
                play_many, mind(self.agent.eval(), mode, assignment, controller=controller),
                self.config.evaluation.under(assignment), self.curve, EPISODES_FROM,
                self.agent.device,
            )  # fmt: skip
            outcome = _beside(pupil, play)
            outcome = outcome.settled(outcome.reports_success)
            told = {
                "final_success": outcome.final_success, "score": outcome.score,
                "return": outcome.felt[:, 0],
            }  # fmt: skip
            marks = {n: float(part.mean()) for n, part in told.items() if not part.isnan().any()}
            lived = {"seconds": seconds, "lived": float(self.agent.memory.lived)}
            self.report.scalars(f"curve/{task}", self.reached.updates, {**lived, **marks})
            said = ", ".join(f"{n} {value:.3g}" for n, value in marks.items())
            self.report.say(
                f"after {name}, {seconds:.0f} s, {self.agent.memory.lived} steps of life, {task}, "
                f"{mode}: {said} (mean of {self.curve})"
            )

    def _note(self, name: str) -> None:
        """What the lesson took since it was last noted; what is lost in a kill is not counted."""
        now = time.monotonic()
        seconds, self.noted = now - self.noted, now
        known = runs.manifest_of(self.folder)
        known["seconds"][name] = round(known["seconds"].get(name, 0) + seconds, 1)
        runs.write_json(self.folder / "manifest.json", known)

    def _keep_memory(self) -> None:
        facts = {"lesson": self.reached.lesson}
        checkpoint.save(self.folder / "memory", self.agent.memory.state_dict(), facts)

    def _save(self, pupil: Mapping[str, Tensor]) -> None:
        tensors = {**runs.weights(self.agent), **{f"pupil.{k}": v for k, v in pupil.items()}}
        facts = {
            "updates": self.reached.updates,
            "lesson": self.reached.lesson,
            "lessons": list(lessons(self.config)),
        }
        checkpoint.save(checkpoint.place(self.folder, self.reached.updates), tensors, facts)
        checkpoint.prune(self.folder)
        self.saved = time.monotonic()

    def _restore(self) -> Reached:
        """From the newest checkpoint, if there is one yet."""
        if not checkpoint.checkpoints(self.folder):
            return Reached()
        newest = checkpoint.latest(self.folder)
        tensors, facts = checkpoint.load(newest, self.agent.device)
        if facts.get("lessons") != list(lessons(self.config)):
            raise UnusableInput(
                f"{newest} is of another version, which took other lessons: it can be loaded, but "
                "not resumed"
            )
        if not all(isinstance(facts.get(known), int) for known in ("updates", "lesson")):
            raise UnusableInput(f"{newest} does not say where it was: it can't be resumed")
        runs.put_weights(self.agent, tensors, newest)
        lesson = facts["lesson"]
        if 0 < lesson < len(lessons(self.config)):
            memory, told = checkpoint.load(self.folder / "memory", "cpu")
            self.agent.memory.load_state_dict(memory)
            if told["lesson"] > lesson:  # killed when a life was kept, but not yet that it was
                return Reached(facts["updates"], told["lesson"])
        pupil = {
            name.removeprefix("pupil."): value
            for name, value in tensors.items()
            if name.startswith("pupil.")
        }
        return Reached(facts["updates"], lesson, pupil)
