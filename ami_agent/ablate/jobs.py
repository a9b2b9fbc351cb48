"""The runs of a study, and who carries them out: this process, several, or a Ray cluster."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from rich.console import Console

from ami_agent import runs
from ami_agent.atomic import NotWritten
from ami_agent.build import Config
from ami_agent.evaluate import EPISODES_FROM, judge
from ami_agent.files import is_number
from ami_agent.interrupt import LAST, alone, end, handled
from ami_agent.report import Report
from ami_agent.train import train
from modules.types import UnusableInput

ESTIMATES = ("success", "final_success", "score", "return", "steps", "length")
"""Figures with an interval; None where an environment doesn't report them."""
LOG = "log.txt"
"""What a run said, where it had no terminal to itself."""


class Job(NamedTuple):
    """One variant with one seed."""

    variant: str
    config: Config
    run: Path
    seed: int
    episodes: int
    device: str


class Outcome(NamedTuple):
    """What became of a job: figures by mode, as `evaluate` gives them, or why there are none."""

    variant: str
    seed: int
    marks: Mapping[str, Any] | None
    failure: str = ""
    seconds: float = 0.0
    """That it took now; none where it was known before."""


def known(job: Job) -> Mapping[str, Any] | None:
    """What was found before, for as many episodes; UnusableInput where the run is another."""
    if not (job.run / "eval.json").exists():
        return None
    runs.check_same(job.run, job.config, job.seed)
    runs.seconds_of(job.run)  # which the study tells of every run that finished
    marks = results(job.run / "eval.json")
    return marks if marks["plan"]["episodes"] == job.episodes else None


def results(path: Path) -> Mapping[str, Any]:
    """The figures of an evaluation by mode, as `evaluate` writes them; UnusableInput where the file
    holds anything else."""
    found = runs.read_json(path)
    for mode in ("plan", "react"):
        marks = found.get(mode) if isinstance(found, dict) else None
        if not isinstance(marks, dict) or not _are_results(marks):
            raise UnusableInput(
                f"{path} holds no figures of mode {mode}: remove it, and the run is evaluated again"
            )
    return found  # type: ignore[no-any-return]


def _are_results(marks: Mapping[str, Any]) -> bool:
    known = [marks.get(figure) for figure in ESTIMATES]
    estimates = [one for one in known if one is not None]
    return (
        is_number(marks.get("episodes"))
        and is_number(marks.get("ms_per_action_batched"))
        and marks.get("return") is not None
        and set(ESTIMATES) <= marks.keys()
        and all(isinstance(one, dict) and is_number(one.get("mean")) for one in estimates)
    )


def carry_out(job: Job, console: Console) -> Outcome:
    """Trains, or goes on, and evaluates both modes. What goes wrong is told, not raised: the rest
    of the study doesn't depend on it."""
    began = time.monotonic()
    marks, failure = None, ""
    try:
        marks = known(job)
        if marks is None:
            begun = (job.run / "config.json").exists()
            with closing(Report(job.run, console)) as report:
                report.say(f"== {job.run}")
                agent = train(
                    job.config, out=job.run, seed=job.seed, device=job.device, resume=begun,
                    report=report,
                )  # fmt: skip
            first = EPISODES_FROM + 10_000 * job.seed
            found = judge(agent, job.config.evaluation, episodes=job.episodes, seed=first)
            marks = {mode: {"recipe": job.config.recipe, **row} for mode, row in found.items()}
            runs.write_json(job.run / "eval.json", marks)
    except NotWritten as error:  # what was found by then counts
        failure = str(error)
    except Exception as error:  # a variant may fail in any way
        told = " ".join(str(error).split()) or type(error).__name__
        kind = "" if isinstance(error, UnusableInput) else f"{type(error).__name__}: "
        marks, failure = None, kind + told
    finally:
        # an agent and its lessons know each other, and hold gigabytes: who counts objects alone
        # would let them lie until the next run has as many of its own
        gc.collect()
    return Outcome(job.variant, job.seed, marks, failure, time.monotonic() - began)


Work: TypeAlias = Generator[Outcome, None, None]
"""What comes of jobs, as it comes; closing it ends the jobs that are under way."""


class Crew(Protocol):
    """Whoever carries out jobs, in whatever order."""

    def work(self, jobs: Sequence[Job]) -> Work: ...


@dataclass(frozen=True)
class Alone:
    """One after another, in this process."""

    console: Console

    def work(self, jobs: Sequence[Job]) -> Work:
        for job in jobs:
            yield carry_out(job, self.console)


@dataclass(frozen=True)
class Processes:
    """Several at once, each in a process with its share of the cores."""

    count: int

    def work(self, jobs: Sequence[Job]) -> Work:
        for job in (yield from self._together(jobs, self.count)):  # one took all others with it
            for dead in (yield from self._together([job], 1)):
                yield Outcome(dead.variant, dead.seed, None, "its process died")

    def _together(self, jobs: Sequence[Job], count: int) -> Generator[Outcome, None, list[Job]]:
        """Returns those that were lost with their process."""
        threads, lost = max(1, (os.cpu_count() or 1) // self.count), []
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, spawn, _at_work, (threads,)) as pool:
            futures = {pool.submit(_interruptible, job): job for job in jobs}
            try:
                for future in as_completed(futures):
                    try:
                        yield future.result()
                    except BrokenProcessPool:
                        lost.append(futures[future])
            except (KeyboardInterrupt, GeneratorExit):
                pool.shutdown(wait=False, cancel_futures=True)
                end([child for child in multiprocessing.active_children() if not child.daemon])
                raise
        return lost


def quietly(job: Job) -> Outcome:
    """Carries out a job; what it says goes into a file beside its checkpoints."""
    job.run.mkdir(parents=True, exist_ok=True)
    with (job.run / LOG).open("a", errors="backslashreplace") as log:
        return carry_out(job, Console(file=log, width=160))


def _interruptible(job: Job) -> Outcome:
    """In a process of a study: a signal saves a checkpoint and ends the process."""
    try:
        with handled():
            return quietly(job)
    except KeyboardInterrupt:
        os._exit(1)


def _at_work(threads: int) -> None:
    """A process keeps to its share of the cores, and does not outlive the study."""
    alone()
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=leave, args=(parent.sentinel,), daemon=True).start()


@dataclass(frozen=True)
class Cluster:
    """As tasks of Ray: on a cluster whose nodes share the study's folder, or on this machine
    ("local"), where Ray is started for it."""

    address: str
    patience: float = 10.0
    """Seconds until an address that doesn't answer is given up."""

    def work(self, jobs: Sequence[Job]) -> Work:
        ray, waiting = self._joined(), {}
        try:
            gpus = int(any(job.device != "cpu" for job in jobs))
            if gpus and not ray.cluster_resources().get("GPU"):
                raise UnusableInput(f"--ray {self.address}: no GPU there; ask for --device cpu")
            run = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=1)(quietly)
            waiting = {run.remote(job._replace(run=job.run.absolute())): job for job in jobs}
            while waiting:
                (done, *_), _ = ray.wait(list(waiting))
                job = waiting.pop(done)
                try:
                    yield ray.get(done)
                except Exception as error:  # a node may be gone
                    yield Outcome(job.variant, job.seed, None, f"Ray lost it: {error}")
        except (KeyboardInterrupt, GeneratorExit):
            for task in waiting:
                ray.cancel(task)  # raises KeyboardInterrupt where it runs
            ray.wait(list(waiting), num_returns=len(waiting), timeout=LAST)
            raise
        finally:
            ray.shutdown()

    def _joined(self) -> Any:
        """UnusableInput where there is no Ray, or nobody at the address."""
        try:
            import ray  # an extra
        except ImportError:
            raise UnusableInput("--ray needs Ray: pip install 'ami-agent[ray]'") from None
        where: dict[str, Any] = {} if self.address == "local" else {"address": self._answering()}
        before = signal.getsignal(signal.SIGTERM)
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts its own there
        return ray

    def _answering(self) -> str:
        """The address, if somebody listens there: Ray itself would wait for minutes."""
        host, _, port = self.address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), self.patience).close()
        except (OSError, ValueError, OverflowError) as error:
            raise UnusableInput(
                f"--ray {self.address}: no Ray cluster answers there ({error}); it must be "
                "HOST:PORT, or local, which starts one on this machine"
            ) from None
        return self.address
