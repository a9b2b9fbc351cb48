"""Training: the stages of a Config one after the other, logged, checkpointed, resumable."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ami_agent import config_io
from ami_agent.adapters.env import check_same_spaces
from ami_agent.adapters.fault_tolerance import EnvError
from ami_agent.agent import Agent
from ami_agent.argument_checks import check_count, check_device, check_is, check_path
from ami_agent.config import STAGES, Config, buffer_steps, build
from ami_agent.evaluation.evaluate import evaluation_metrics
from ami_agent.interrupt import Interrupted, deferred, keyboard_interrupts
from ami_agent.logger import Logger, RunLogger
from ami_agent.memory_estimate import describe_buffer, is_in_file
from ami_agent.probing.probe import describe_collapse, make_probe
from ami_agent.storage import checkpoint, run_dir
from ami_agent.storage.files import NotWritten, clean, locked, one_line_errors, remove_folder
from ami_agent.storage.memory_map import MappedStorage
from ami_agent.storage.replay_files import Chunks, buffer_head, num_recorded
from ami_agent.storage.run_dir import apply_new_settings, check_resumable
from ami_agent.training import Stage, StageRun, distributed
from ami_agent.training.base import with_prefixes, without_prefix
from ami_agent.training.collect import EPISODE_METRICS, describe_constant_reward
from ami_agent.training.critics import longest_episode
from ami_agent.training.optim import tune_malloc
from ami_agent.training.precision import Precision, check_available, check_precision, losses_in
from ami_agent.validate import check_config
from modules.memory.replay_buffer import ReplayBuffer
from modules.types import ConfigError, DivergenceError, validate_ranges

CONTINUE = "continue with --resume"
LOG_EVERY = 50
PROBE_EVERY = 300
PROBED = {"pretrain", "train_jepa"}
"""Stages that train perception, and are probed as they run."""
BUFFER_PARTS = ("buffer", "start")
"""Prefixes in a checkpoint: the replay buffer's head at that moment, and when the stage began."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of `train`: the precision of its losses, and what a run logs, saves and keeps,
    which does not change what is learnt."""

    logger: Logger | None = None
    save_every: float = 60.0
    eval_episodes: int = 0
    keep_replay_buffer: bool = False
    precision: Precision | None = None

    def __post_init__(self) -> None:
        if self.precision is not None:
            check_precision("precision", self.precision)
        check_count("eval_episodes", self.eval_episodes, 0)
        validate_ranges(self, save_every=(0.0, inf))


def train(
    config: Config, *, out: Path | str, seed: int = 0, device: torch.device | str = "cpu",
    resume: bool = False, **options: Any,
) -> Agent:  # fmt: skip
    """Trains an agent in the run folder `out` and returns it.

    The seed decides everything: on a CPU, a run that was killed and resumed ends with the same
    weights and the same log as one that was not.

    Options, by keyword (`RunOptions`): `logger`, by default one that writes into the run folder and
    prints nothing. `save_every`: seconds between checkpoints within a stage, by default 60.
    `eval_episodes`: if not 0, Mode-2 is evaluated in so many episodes after every stage, whose time
    is not counted. `keep_replay_buffer`: if True, the replay buffer stays in the run folder.
    `precision`: "float32", or "bf16" for networks of losses that compute in bfloat16; by default
    float32, or that of the run that is resumed.

    Only one process at a time can train in a folder; ConfigError names the one that does. Ctrl-C
    saves a checkpoint and raises Interrupted, a KeyboardInterrupt. Processes that torchrun has
    started train one agent together; process 0 writes and logs.
    """
    run_options = RunOptions(**options)
    check(config, out, seed, resume)
    check_device(device)
    precision = run_precision(run_options.precision, Path(out), resume)
    check_available(precision, device)
    device = distributed.own_device(device)
    tune_malloc()
    run, logger = Path(out), run_options.logger
    with ExitStack() as stack:
        settings = f"{config_io.to_json(config)} {seed} {resume} {precision}"
        stack.enter_context(distributed.joined(device, settings))
        stack.enter_context(losses_in(precision))
        if distributed.world().rank:
            if resume:
                stack.enter_context(run_dir.threads_of(run))
            with distributed.main_first():
                replica = Replica(config, run, seed, device, Logger(), resume, RunOptions())
            return replica.run()
        stack.enter_context(locked(run))
        stack.enter_context(keyboard_interrupts())
        if logger is None:
            logger = stack.enter_context(closing(RunLogger(run, Console(quiet=True))))
        check_run_folder(config, run, seed, resume)  # again, now that this process has the lock
        clean(run)
        if resume:
            before = torch.get_num_threads()
            stack.enter_context(run_dir.threads_of(run))
            if (threads := torch.get_num_threads()) != before:
                logger.info(f"threads: {threads}, with which the run began, rather than {before}")
        with distributed.main_first():
            trainer = Trainer(config, run, seed, device, logger, resume, run_options)
        if resume:
            for line in apply_new_settings(run, config):
                logger.info(f"changed for a stage that has not begun: {line}")
        else:
            run_dir.create(run, config, seed, str(device), trainer.agent.spec, precision)
        return trainer.run()


def check(config: Config, out: Path | str, seed: int, resume: bool) -> None:
    """Raises ConfigError if this run can't be started, or resumed, in this folder."""
    check_is("config", config, Config)
    check_path("out", out)
    check_count("seed", seed, 0)
    check_config(config)
    if distributed.launched().size > 1:
        for name, stage in reversed(config.stages.items()):  # what a recipe is for comes last
            stage.check_processes(config, name)
    check_run_folder(config, Path(out), seed, resume)


def run_precision(precision: Precision | None, run: Path, resume: bool) -> Precision:
    """The precision of a run, where None stands for that of the run that is resumed, or float32.
    ConfigError where a run is to be resumed in another."""
    if not resume:
        return precision or "float32"
    before = run_dir.precision_of(run)
    if precision not in (None, before):
        raise ConfigError(
            f"{run} can't be resumed with other settings: --precision is {before}, not {precision}"
        )
    return before


def check_run_folder(config: Config, out: Path, seed: int, resume: bool) -> None:
    """Raises ConfigError if the folder holds another run, or none that can be resumed."""
    if resume:
        check_resumable(out, config, seed)
        with closing(config.env.build(1)) as env:
            try:
                check_same_spaces(run_dir.spec_of(out, config), env.spec, config.env)
            except ConfigError as error:
                raise ConfigError(f"{out} can't be resumed: {error}") from None
    else:
        run_dir.ensure_unused(out, config.env.id)


def stage_seed(seed: int, name: str) -> int:
    """The seed of a stage's random stream. Environment i of a stage gets this seed + i; the seeds
    of different stages and runs are far apart. A stage that is added to a recipe doesn't change the
    others."""
    return zlib.crc32(f"{seed} {STAGES.get(name, name)}".encode()) % 2**30


def describe_discount(discount: float, max_episode_steps: float, source: str) -> str:
    """A line for the log: how long an episode lasts, and the discount; either may be 0, unknown.
    `source`: what states the length."""
    limit_text = "nothing states how long an episode lasts"
    if max_episode_steps:
        limit_text = f"an episode lasts at most {max_episode_steps:g} steps ({source})"
    if discount:
        return f"{limit_text}; discount {discount:.3g}"
    return f"{limit_text}; the discount follows from the episodes that are collected first"


def _stack(values: Sequence[Tensor]) -> Tensor:
    """The values of a metric, `[N]`; those of a checkpoint may be on another device."""
    return torch.stack([value.to(values[-1].device) for value in values])


class Trainer:
    """Trains the stages of a run in order, and saves and restores it."""

    def __init__(
        self, config: Config, run: Path, seed: int, device: torch.device | str, logger: Logger,
        resume: bool, options: RunOptions,
    ) -> None:  # fmt: skip
        self.config, self.folder, self.seed, self.logger = config, run, seed, logger
        self.options = options
        self.last_saved = self.last_timed = time.monotonic()
        self.seconds: dict[str, float] = {}
        self.updates = self.stage_index = 0  # updates of all stages; the current stage
        self.recent: dict[str, list[Tensor]] = {}  # metrics that are not logged yet, by name
        self.last_evaluated: dict[str, int] = {}  # the step of this stage's last probe, evaluation
        self.chunks = Chunks(run / "replay")
        self.head_at_stage_start: dict[str, Tensor] = {}  # of the replay buffer
        self.needed_heads: list[dict[str, Tensor]] = []  # of the checkpoints that are kept
        env = config.env.build(1)
        for line in env.obs_summary():
            logger.info(line)
        self.max_episode_steps = env.max_episode_steps()
        logger.info(describe_buffer(config, env.spec))
        in_file = is_in_file(config, env.spec)
        if in_file and options.keep_replay_buffer:
            raise ConfigError(
                "--keep-replay-buffer would write recorded data again that do not fit into memory: "
                "other runs can learn from the same data (--data PATH)"
            )
        num_envs = config.collect.num_envs
        self.agent = build(
            config, env.spec, seed=seed, device=device,
            num_envs=num_envs, buffer_size=1 if in_file else buffer_steps(config),
        )  # fmt: skip
        if in_file:
            self.agent.replay_buffer = ReplayBuffer(
                buffer_steps(config), env.spec.empty_transition(num_envs),
                stack=config.env.frame_stack, storage=MappedStorage(run),
            )  # fmt: skip
        env.close()
        self.stage_state: dict[str, Tensor] = {}  # of the stage in which the run was interrupted
        if resume:
            with one_line_errors(self.folder / "checkpoints"):
                self._restore()
        self.probe = make_probe(config.eval_env, seed)

    def run(self) -> Agent:
        """Runs the remaining stages. Raises Interrupted, or EnvError where an environment fails,
        whose message says what was saved."""
        if (critics := self.agent.cost.interoceptive_cost.value_critics) is not None:
            self.logger.info(describe_discount(critics.discount, *self.max_episode_steps))
        try:
            for index, (name, stage) in enumerate(self.config.stages.items()):
                if index >= self.stage_index:
                    self._stage(index, name, stage)
            self._end()
        except Interrupted as interrupt:
            raise Interrupted(f"{interrupt.message}; {self._saved_message()}") from None
        except EnvError as error:
            raise EnvError(f"{error}; {self._saved_message()}") from error
        return self.agent.eval()

    def _stage(self, index: int, name: str, stage: Stage) -> None:
        self.last_timed = time.monotonic()
        saved_state, self.stage_state = self.stage_state, {}
        if not saved_state:
            self.head_at_stage_start = buffer_head(self.agent.replay_buffer)
        value_critics = self.agent.cost.interoceptive_cost.value_critics
        had_discount = value_critics is None or bool(value_critics.discount)
        stage_run = stage.start(self.agent, self.config.env, stage_seed(self.seed, name))
        if value_critics is not None and value_critics.discount and not had_discount:
            steps = longest_episode(self.agent.replay_buffer)
            self.logger.info(
                f"discount {value_critics.discount:.3g}, for episodes of {steps} steps as collected"
            )
        if saved_state:
            with one_line_errors(self.folder / "checkpoints"):
                stage_run.load_state_dict(saved_state)
        else:
            self._draw(stage_run)
        num_envs = self.agent.replay_buffer.num_envs
        if stage.env_steps and num_envs > 1:
            self.logger.info(
                f"{name}: {stage.env_steps:,} steps in each of {num_envs:,} environments, "
                f"{num_envs * stage.env_steps:,} steps in all"
            )
        self._run_updates(index, name, stage_run)
        evaluates = bool(self.options.eval_episodes and not stage.env_steps and stage_run.total)
        if evaluates:
            self._save_stage(stage_run)  # the evaluation may be interrupted
        with deferred():
            stage_run.finish()
            self._record_time(name)
            learns_reward = stage.env_steps and "reward" in self.config.cost.drives
            if learns_reward and (text := describe_constant_reward(self.agent.replay_buffer)):
                self.logger.info(text)
        if evaluates:
            self._evaluate(name)
        with deferred():
            self.recent, self.last_evaluated, self.stage_index = {}, {}, index + 1
            if stage.env_steps:
                self._save_buffer()
            self.head_at_stage_start = buffer_head(self.agent.replay_buffer)
            self._save({})

    def _draw(self, stage_run: StageRun) -> None:
        """Writes the pictures of a stage that begins."""
        if not stage_run.pictures:
            return
        from ami_agent.viewer.drawing import write_png  # imports matplotlib, which takes a second

        for name, picture in stage_run.pictures.items():
            write_png(self.folder / f"{name}.png", picture)
            self.logger.log_image(name, picture, 0)

    def _run_updates(self, index: int, name: str, stage_run: StageRun) -> None:
        self.stage_index = index
        self.episode_metrics: dict[str, Tensor] = {}  # of the episode that ended last
        try:
            if stage_run.step % LOG_EVERY == 0:  # metrics whose writing failed before a resume
                self._log(name, stage_run.step)
            with self.logger.progress(name, stage_run.total, stage_run.step) as progress_bar:
                while stage_run.step < stage_run.total:
                    self._evaluate_if_due(name, stage_run)
                    with deferred():
                        self._update(name, stage_run)
                        progress_bar.advance(1, **self.episode_metrics)
            self._evaluate_if_due(name, stage_run)
        except (EnvError, NotWritten, distributed.ProcessLost):
            with deferred():  # torchrun sends a signal where a process was lost
                self._save_stage(stage_run)
            raise
        except Interrupted as interrupt:
            if not interrupt.abrupt:
                self._save_stage(stage_run)
            raise

    def _evaluate_if_due(self, name: str, stage_run: StageRun) -> None:
        """Probes or evaluates the agent if either is due at this step, unless that was done before
        the run was resumed."""
        step, done = stage_run.step, self.last_evaluated
        probe_due = name in PROBED and (step % PROBE_EVERY == 0 or step == stage_run.total)
        if probe_due and done.get("probe") != step:
            self._probe(name, step)
        mode = stage_run.eval_mode_due if self.options.eval_episodes and step else ""
        if mode:
            self._record_time(name)
            if done.get("evaluate") != step:
                self._evaluate(name, mode, stage_run)
                done["evaluate"] = step
            self.last_timed = time.monotonic()

    def _update(self, name: str, stage_run: StageRun) -> None:
        metrics = stage_run.update()
        for metric, value in metrics.items():
            self.recent.setdefault(metric, []).append(value)
        self.episode_metrics |= {n: v for n, v in metrics.items() if n in EPISODE_METRICS}
        self.updates += 1
        if stage_run.step % LOG_EVERY == 0 or stage_run.step == stage_run.total:
            self._log(name, stage_run.step)
        if time.monotonic() - self.last_saved > self.options.save_every:
            self._record_time(name)
            self._save_stage(stage_run)

    def _log(self, name: str, step: int) -> None:
        if values := self._average_metrics(name, step):
            self.logger.log_scalars(name, step, values)
        self.recent.clear()

    def _average_metrics(self, stage: str, step: int) -> dict[str, float]:
        """The mean of each metric that is not logged yet; DivergenceError where one is not finite.
        Reading them makes the host wait for the device."""
        means = {name: float(_stack(values).mean()) for name, values in self.recent.items()}
        for name, value in means.items():
            if not isfinite(value):
                raise DivergenceError(
                    f"{stage}: {name} became {value} by step {step}; a smaller learning rate may "
                    "help"
                )
        return means

    def _save_stage(self, stage_run: StageRun) -> None:
        """Saves a checkpoint within a stage that can be resumed; raises DivergenceError where its
        metrics are not finite."""
        self._average_metrics(list(self.config.stages)[self.stage_index], stage_run.step)
        state = stage_run.state_dict()
        if state:
            self._save(state, [stage_run.step, stage_run.total])
        self.last_saved = time.monotonic()

    def _probe(self, name: str, step: int) -> None:
        metrics = self.probe(self.agent)
        with deferred():
            self.logger.log_scalars("state", step, metrics)
            text = describe_collapse(metrics) if step else "nothing learnt yet"
            self.logger.info(f"{name} {step}: {text}")
            self.last_evaluated["probe"] = step

    def _evaluate(self, name: str, mode: str = "plan", stage_run: StageRun | None = None) -> None:
        seconds, env_steps = sum(self.seconds.values()), self.agent.replay_buffer.num_added
        metrics_by_task = {
            task: evaluation_metrics(
                self.agent, self.config, task, mode, self.options.eval_episodes, stage_run
            )
            for task in self.config.tasks
        }
        with deferred():  # logs all tasks or none
            for task, metrics in metrics_by_task.items():
                common = {"seconds": seconds, "env_steps": float(env_steps)}
                values = {**common, **metrics}
                self.logger.log_scalars(f"eval/{task}", self.updates, values)
                text = ", ".join(f"{n} {value:.3g}" for n, value in metrics.items())
                self.logger.info(
                    f"after {name}, {seconds:.0f} s, {env_steps} environment steps, {task}, {mode}:"
                    f" {text} (mean of {self.options.eval_episodes})"
                )

    def _record_time(self, name: str) -> None:
        """Adds the seconds since the last call. Time that a killed process lost is not counted."""
        now = time.monotonic()
        seconds, self.last_timed = now - self.last_timed, now
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 1)

    def _save_buffer(self) -> None:
        """Saves the replay buffer's new steps; they count once a checkpoint is saved after them."""
        self.chunks.save(self.agent.replay_buffer)

    def _save(self, stage_state: Mapping[str, Tensor], step: Sequence[int] = ()) -> None:
        """Saves the replay buffer's new steps, a checkpoint and the seconds in the manifest.
        `step`: within a stage, its step and how many it has."""
        self._save_buffer()
        head = buffer_head(self.agent.replay_buffer)
        state = {name: part for name, part in stage_state.items() if not name.startswith("memory.")}
        tensors = {
            **run_dir.weights(self.agent),
            **with_prefixes({
                "stage_run": state, "buffer": head,
                "start": self.head_at_stage_start if stage_state else {},
                "recent": {
                    name: _stack(values)
                    for name, values in self.recent.items()
                },
            }),
        }  # fmt: skip
        metadata = {
            "updates": self.updates, "stage_index": self.stage_index,
            "stages": list(self.config.stages), "step": list(step), "seconds": self.seconds,
            "log": dict(self.logger.position()), "last_evaluated": self.last_evaluated,
        }  # fmt: skip
        folder = checkpoint.checkpoint_dir(self.folder, self.updates)
        checkpoint.save(folder, tensors, metadata)
        checkpoint.prune(self.folder)
        # two checkpoints are kept, each with two heads
        self.needed_heads = [*self.needed_heads, head, self.head_at_stage_start][-4:]
        self.chunks.prune(self.needed_heads)
        self._write_seconds()
        self.last_saved = time.monotonic()

    def _write_seconds(self) -> None:
        manifest = {**run_dir.manifest_of(self.folder), "seconds": self.seconds}
        run_dir.write_json(self.folder / "manifest.json", manifest)

    def _end(self) -> None:
        """Saves or removes the replay buffer, as `keep_replay_buffer` says."""
        if self.options.keep_replay_buffer and self.agent.replay_buffer.num_added:
            metadata = {"stage_index": self.stage_index}
            checkpoint.save(self.folder / "memory", self.agent.replay_buffer.state_dict(), metadata)
        elif not self.options.keep_replay_buffer:
            remove_folder(self.folder / "memory")
        self.chunks.remove()

    def _saved_message(self) -> str:
        """What a run that is interrupted has saved."""
        if not checkpoint.checkpoints(self.folder):
            return f"{self.folder} had no checkpoint yet"
        return f"{self.folder} is saved{run_dir.describe_progress(self.folder)}; {CONTINUE}"

    def _restore(self) -> None:
        """Restores the newest checkpoint, if there is one, and truncates the log to it."""
        if not checkpoint.checkpoints(self.folder):
            self.logger.rewind({})
            self.chunks.truncate(0)
            self._write_seconds()
            return
        newest = checkpoint.latest(self.folder)
        tensors, metadata = checkpoint.load(newest, self.agent.device)
        if metadata.get("stages") != list(self.config.stages):
            raise ConfigError(
                f"{newest} is of a version with other stages: it can be loaded, but not resumed"
            )
        if not all(isinstance(metadata.get(key), int) for key in ("updates", "stage_index")):
            raise ConfigError(f"{newest} does not say at which update it was: it can't be resumed")
        run_dir.load_weights(self.agent, tensors, newest)
        with one_line_errors(newest, "is not complete: it can't be resumed"):
            self._restore_progress(tensors, metadata)

    def _restore_progress(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        self.updates, self.stage_index = metadata["updates"], metadata["stage_index"]
        self.stage_state = {**without_prefix(tensors, "stage_run"), **self._restore_buffer(tensors)}
        recent = without_prefix(tensors, "recent")
        self.recent = {name: list(values) for name, values in recent.items()}
        self.last_evaluated = dict(metadata.get("last_evaluated", {}))
        if "log" in metadata:  # not in checkpoints of older versions
            self.logger.rewind(metadata["log"])
            self.seconds = {name: float(seconds) for name, seconds in metadata["seconds"].items()}
            self._write_seconds()
        else:
            self.seconds = dict(run_dir.manifest_of(self.folder)["seconds"])

    def _restore_buffer(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gives the replay buffer the steps that it had when the stage began. Returns its state at
        the checkpoint, which the stage run loads."""
        current_head, start_head = (
            {n: t.cpu() for n, t in without_prefix(tensors, p).items()} for p in BUFFER_PARTS
        )
        steps = int(current_head["steps"][0]) if current_head else 0
        self.head_at_stage_start = start_head
        max_rows = buffer_steps(self.config) + self.config.env.frame_stack
        is_complete = self.stage_index >= len(self.config.stages)
        is_recorded = steps > 0 and num_recorded(current_head) == steps
        is_there = self.chunks.folder.exists() or is_recorded
        if is_complete and not (self.options.keep_replay_buffer and is_there):
            return {}
        self.chunks.truncate(steps)
        in_stage = any(name.startswith("stage_run.") for name in tensors)
        if saved_head := start_head if in_stage else current_head:
            self._restore_head(saved_head, max_rows)
        if is_recorded or not (in_stage and steps):
            return {}
        return with_prefixes({"memory": self.chunks.load(current_head, max_rows)})

    def _restore_head(self, head: Mapping[str, Tensor], max_rows: int) -> None:
        """Gives the replay buffer the steps of a head: those that were recorded elsewhere are read
        again from there, all others from the run folder."""
        buffer = self.agent.replay_buffer
        if recorded := num_recorded(head):
            self.logger.info(f"the run reads {recorded:,} recorded steps again")
            loader = self.config.collect.start(self.agent, self.config.env, 0)
            here = {"step": torch.tensor(loader.total), "recorded": head["recorded"]}
            loader.load_state_dict(with_prefixes({"here": here}))
            loader.close_envs()
        if recorded < int(head["steps"][0]):
            buffer.load_state_dict(self.chunks.load(head, max_rows))


class Replica(Trainer):
    """Trains beside process 0, which alone evaluates the agent and writes to the run folder."""

    def _save_buffer(self) -> None: ...
    def _save(self, stage_state: Mapping[str, Tensor], step: Sequence[int] = ()) -> None: ...
    def _write_seconds(self) -> None: ...
    def _end(self) -> None: ...
    def _evaluate_if_due(self, name: str, stage_run: StageRun) -> None: ...
    def _draw(self, stage_run: StageRun) -> None: ...
