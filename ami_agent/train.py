"""Training: the lessons of a Config one after the other, logged, checkpointed, resumable."""

from __future__ import annotations

import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from ami_agent import checkpoint, runs
from ami_agent.agent import Agent
from ami_agent.arguments import check_count, check_device, check_is, check_number, check_path
from ami_agent.atomic import NotWritten, clean
from ami_agent.build import Config, buffer_in_words, build, capacity, lessons
from ami_agent.checks import check_config
from ami_agent.curve import curve_metrics
from ami_agent.failures import Failed
from ami_agent.files import fitting
from ami_agent.interrupt import Interrupted, deferred, keyboard
from ami_agent.learning import average, check_finite, keep_freed_memory, stacked, unstacked
from ami_agent.lessons import Lesson, Pupil
from ami_agent.lessons.foresight import longest_episode
from ami_agent.lessons.life import EPISODE_METRICS
from ami_agent.lessons.rehearse import joined, part_of
from ami_agent.probe import examiner, verdict
from ami_agent.replay import Chunks, head
from ami_agent.report import Report, Reporter, one_line
from ami_agent.resuming import adopt, check_resumable
from ami_agent.run_lock import owned
from ami_agent.spaces import check_same_spaces
from modules.cost import Foresight
from modules.types import UnusableInput

LOG_EVERY = 50
EXAMINE_EVERY = 300
EXAMINED = {"objective"}
"""Lessons that change what a state means, and are examined as they go."""


class Reached(NamedTuple):
    """How far a run has come: updates in all, the stage it is in, and that stage's own state."""

    updates: int = 0
    lesson: int = 0
    pupil: Mapping[str, Tensor] = {}
    recent: Sequence[Mapping[str, Tensor]] = ()  # figures that were not logged yet
    looked: Mapping[str, int] = {}  # what was evaluated in this stage, and at which step last


def train(
    config: Config, *, out: Path | str, seed: int = 0, device: torch.device | str = "cpu",
    resume: bool = False, report: Reporter | None = None, save_every: float = 60.0,
    curve: int = 0, keep_memory: bool = False,
) -> Agent:  # fmt: skip
    """Trains an agent in the run folder `out` and returns it.

    The seed decides everything: on a CPU, a run that was killed and resumed ends with the same
    weights and the same log as one that never was. `save_every`: seconds between checkpoints within
    a stage. `curve`: Mode-2 is judged in so many episodes after every lesson; what they take is not
    counted. `keep_memory`: the replay buffer stays in the run folder.

    One process at a time trains in a folder; UnusableInput names the other. Ctrl-C saves a
    checkpoint and raises Interrupted, a KeyboardInterrupt.
    """
    check(config, out, seed, resume)
    check_device(device)
    check_count("curve", curve, 0)
    check_number("save_every", save_every, 0, inf)
    keep_freed_memory()
    with owned(Path(out)), keyboard():
        if report is None:
            with closing(Report(Path(out), Console(quiet=True))) as quiet:
                return train(
                    config, out=out, seed=seed, device=device, resume=resume, report=quiet,
                    save_every=save_every, curve=curve, keep_memory=keep_memory,
                )  # fmt: skip
        check_folder(config, Path(out), seed, resume)  # again, now that it has one owner
        clean(Path(out))
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
    check_folder(config, Path(out), seed, resume)


def check_folder(config: Config, out: Path, seed: int, resume: bool) -> None:
    """Raises UnusableInput where the folder holds another run, or none to be resumed."""
    if resume:
        check_resumable(out, config, seed)
        check_resumed(out, config)
    else:
        runs.check_free(out)


def check_resumed(run: Path, config: Config) -> None:
    """Raises UnusableInput where the environment is no longer that of the run."""
    with closing(config.world.build(1)) as world:
        check_same_spaces(runs.spec_of(run, config), world.spec, config.world)


def lesson_seed(seed: int, name: str) -> int:
    """Where a lesson's chance starts. World i of a lesson lives the life of this number + i, so the
    lessons of one run, and of runs with other seeds, lie far apart; and another lesson in the list
    changes none."""
    return zlib.crc32(f"{seed} {name}".encode()) % 2**30


class Training:
    """One run on its way through its stages."""

    def __init__(
        self, config: Config, run: Path, seed: int, device: torch.device | str,
        report: Reporter, save_every: float, resume: bool, curve: int, keep_memory: bool,
    ) -> None:  # fmt: skip
        self.config, self.folder, self.seed, self.report = config, run, seed, report
        self.save_every, self.curve, self.keep_memory = save_every, curve, keep_memory
        self.saved = self.noted = time.monotonic()
        self.seconds: dict[str, float] = {}
        self.chunks = Chunks(run / "replay")
        self.start: dict[str, Tensor] = {}  # of the replay buffer, when the stage began
        self.needed: list[dict[str, Tensor]] = []  # by the checkpoints that are kept
        world = config.world.build(1)
        for line in world.obs_summary():
            report.say(line)
        self.limit = world.limit(config.world)
        report.say(buffer_in_words(config, world.spec))
        self.agent = build(
            config, world.spec, seed=seed, device=device,
            worlds=config.life.worlds, capacity=capacity(config),
        )  # fmt: skip
        world.close()
        with fitting(self.folder / "checkpoints"):
            self.reached = self._restore() if resume else Reached()
        self.recent = [dict(row) for row in self.reached.recent]
        self.looked = dict(self.reached.looked)
        self.examine = examiner(config.evaluation, seed)

    def run(self) -> Agent:
        """Takes every stage that is left; raises Interrupted saying what was saved."""
        self._say_limit()
        try:
            for index, (name, lesson) in enumerate(lessons(self.config).items()):
                if index >= self.reached.lesson:
                    self._stage(index, name, lesson)
            self._end()
        except Interrupted as stop:
            raise Interrupted(f"{stop.said}; {self._kept()}") from None
        return self.agent.eval()

    def _stage(self, index: int, name: str, lesson: Lesson) -> None:
        self.noted = time.monotonic()
        taken_up = self.reached.pupil
        if not taken_up:
            self.start = head(self.agent.memory.state_dict())
        discount = self.agent.cost.body.foresight.discount
        pupil = lesson.begin(self.agent, self.config.world, lesson_seed(self.seed, name))
        if not discount and (found := self.agent.cost.body.foresight.discount):
            steps = longest_episode(self.agent.memory)
            self.report.say(f"discount {found:.3g}, for episodes of {steps} steps as collected")
        if taken_up:
            with fitting(self.folder / "checkpoints"):
                pupil.load_state_dict(taken_up)
        self._learn(index, name, pupil)
        judged = bool(self.curve and not lesson.lives and pupil.total)
        if judged:
            self._save_stage(pupil)  # an evaluation takes its time, and may be interrupted
        with deferred():
            pupil.finish()
            self._note(name)
            if lesson.lives and "reward" in self.config.drives:
                self._say_constant_reward()
        if judged:
            self._judge(name)
        with deferred():
            self.recent, self.looked = [], {}
            self.reached = Reached(self.reached.updates, index + 1)
            if lesson.lives:
                self._keep_memory()
            self.start = head(self.agent.memory.state_dict())
            self._save({})

    def _learn(self, index: int, name: str, pupil: Pupil) -> None:
        self.reached = Reached(self.reached.updates, index)
        self.shown: dict[str, Tensor] = {}  # of the episode that was done last
        try:
            if pupil.step % LOG_EVERY == 0:
                self._log(name, pupil.step)  # what could not be written when it was due
            with self.report.progress(name, pupil.total, pupil.step) as bar:
                while pupil.step < pupil.total:
                    self._look(name, pupil)
                    with deferred():
                        self._update(name, pupil)
                        bar.advance(1, **self.shown)
            self._look(name, pupil)
        except (Failed, NotWritten):
            self._save_stage(pupil)
            raise
        except Interrupted as stop:
            if not stop.abrupt:
                self._save_stage(pupil)
            raise

    def _look(self, name: str, pupil: Pupil) -> None:
        """What is evaluated at this step of a stage, once."""
        step = pupil.step
        if name in EXAMINED and (step % EXAMINE_EVERY == 0 or step == pupil.total):
            self._once("examine", step, lambda: self._examine(name, step))
        mode = pupil.milestone if self.curve and step else ""
        if mode:
            self._note(name)
            self._once("judge", step, lambda: self._judge(name, mode, pupil))
            self.noted = time.monotonic()

    def _once(self, what: str, step: int, do: Callable[[], None]) -> None:
        """A checkpoint may be taken up between an evaluation and the update after it."""
        if self.looked.get(what) != step:
            do()
            self.looked[what] = step

    def _update(self, name: str, pupil: Pupil) -> None:
        self.recent.append(pupil.update())
        self.shown |= {n: v for n, v in self.recent[-1].items() if n in EPISODE_METRICS}
        self.reached = Reached(self.reached.updates + 1, self.reached.lesson)
        if pupil.step % LOG_EVERY == 0 or pupil.step == pupil.total:
            self._log(name, pupil.step)
        if time.monotonic() - self.saved > self.save_every:
            self._note(name)
            self._save_stage(pupil)

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

    def _log(self, name: str, step: int) -> None:
        if self.recent:
            values = average(self.recent)
            check_finite(name, step, values)
            if values:
                self.report.scalars(name, step, values)
            self.recent.clear()

    def _save_stage(self, pupil: Pupil) -> None:
        """A checkpoint within a stage, of those that can be taken up; what is not finite is never
        saved."""
        check_finite(list(lessons(self.config))[self.reached.lesson], pupil.step,
                     average(self.recent))  # fmt: skip
        state = pupil.state_dict()
        if state:
            self._save(state)
        self.saved = time.monotonic()

    def _examine(self, name: str, step: int) -> None:
        marks = self.examine(self.agent)
        with deferred():
            self.report.scalars("state", step, marks)
            self.report.say(f"{name} {step}: {verdict(marks) if step else 'nothing learnt yet'}")
            self.looked["examine"] = step

    def _judge(self, name: str, mode: str = "plan", pupil: Pupil | None = None) -> None:
        seconds, steps = sum(self.seconds.values()), self.agent.memory.lived
        found = {
            task: curve_metrics(self.agent, self.config, task, mode, self.curve, pupil)
            for task in self.config.tasks
        }
        with deferred():  # all of it is logged, or nothing
            for task, marks in found.items():
                lived = {"seconds": seconds, "lived": float(steps)}
                self.report.scalars(f"curve/{task}", self.reached.updates, {**lived, **marks})
                said = ", ".join(f"{n} {value:.3g}" for n, value in marks.items())
                self.report.say(
                    f"after {name}, {seconds:.0f} s, {steps} steps of life, {task}, {mode}: {said} "
                    f"(mean of {self.curve})"
                )

    def _note(self, name: str) -> None:
        """What the stage took since it was last noted; what is lost in a kill is not counted."""
        now = time.monotonic()
        seconds, self.noted = now - self.noted, now
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 1)

    def _keep_memory(self) -> None:
        """What is new in the replay buffer; the checkpoint that follows says that it counts."""
        self.chunks.save(self.agent.memory.state_dict())

    def _save(self, pupil: Mapping[str, Tensor]) -> None:
        """The replay buffer's new steps first, then all else; the manifest tells the same."""
        self._keep_memory()
        memory = head(self.agent.memory.state_dict())
        own = {name: part for name, part in pupil.items() if not name.startswith("memory.")}
        tensors = {
            **runs.weights(self.agent),
            **joined({"pupil": own, "buffer": memory, "start": self.start if pupil else {}}),
            **joined({"recent": stacked(self.recent)}),
        }  # fmt: skip
        facts = {
            "updates": self.reached.updates, "lesson": self.reached.lesson,
            "lessons": list(lessons(self.config)), "seconds": self.seconds,
            "log": dict(self.report.position()), "looked": self.looked,
        }  # fmt: skip
        checkpoint.save(checkpoint.place(self.folder, self.reached.updates), tensors, facts)
        checkpoint.prune(self.folder)
        self.needed = [*self.needed, memory, self.start][-4:]  # two checkpoints are kept
        self.chunks.prune(self.needed)
        self._tell_seconds()
        self.saved = time.monotonic()

    def _tell_seconds(self) -> None:
        known = {**runs.manifest_of(self.folder), "seconds": self.seconds}
        runs.write_json(self.folder / "manifest.json", known)

    def _end(self) -> None:
        """Of the replay buffer stays what is to be kept."""
        if self.keep_memory and self.chunks.folder.exists():
            facts = {"lesson": self.reached.lesson}
            checkpoint.save(self.folder / "memory", self.agent.memory.state_dict(), facts)
        elif not self.keep_memory:
            shutil.rmtree(self.folder / "memory", ignore_errors=True)
        shutil.rmtree(self.chunks.folder, ignore_errors=True)

    def _kept(self) -> str:
        """Where a run that was interrupted will go on."""
        found = checkpoint.checkpoints(self.folder)
        if not found:
            return f"{self.folder} had no checkpoint yet"
        return f"{self.folder} is saved up to update {int(found[-1].name[5:])}, --resume goes on"

    def _restore(self) -> Reached:
        """From the newest checkpoint, if there is one yet; the log is cut back to it."""
        if not checkpoint.checkpoints(self.folder):
            self.report.rewind({})
            self.chunks.cut(0)
            self._tell_seconds()
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
        try:
            return self._restored(tensors, facts)
        except UnusableInput:
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UnusableInput(
                f"{newest} does not say where it was: it can't be resumed ({one_line(error)})"
            ) from error

    def _restored(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Reached:
        pupil = {**part_of(tensors, "pupil"), **self._restore_memory(facts["lesson"], tensors)}
        if "log" in facts:  # older versions did not know
            self.report.rewind(facts["log"])
            self.seconds = {name: float(took) for name, took in facts["seconds"].items()}
            self._tell_seconds()
        else:
            self.seconds = dict(runs.manifest_of(self.folder)["seconds"])
        recent, looked = unstacked(part_of(tensors, "recent")), dict(facts.get("looked", {}))
        return Reached(facts["updates"], facts["lesson"], pupil, recent, looked)

    def _restore_memory(self, lesson: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The buffer becomes what it was when the stage began; returned is what it was since, for
        the stage to take up."""
        now, start = ({n: t.cpu() for n, t in part_of(tensors, p).items()} for p in PARTS)
        steps = int(now["steps"][0]) if now else 0
        self.start, memory = start, self.agent.memory
        most = capacity(self.config) + self.config.world.stack
        if lesson >= len(lessons(self.config)) and not self.chunks.folder.exists():
            return {}  # it is all over
        self.chunks.cut(steps)
        if not now and lesson and (self.folder / "memory").is_dir():  # of an older version
            memory.load_state_dict(checkpoint.load(self.folder / "memory", "cpu")[0])
            self.chunks.saved = 0
            self.start = head(memory.state_dict())
            return {}
        middle = any(name.startswith("pupil.") for name in tensors)
        if begun := start if middle else now:
            memory.load_state_dict(self.chunks.load(begun, most))
        return joined({"memory": self.chunks.load(now, most)}) if middle and steps else {}


PARTS = ("buffer", "start")
"""Of a checkpoint: the replay buffer at that moment, and when the stage began."""
