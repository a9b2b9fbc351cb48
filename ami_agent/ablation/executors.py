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

from ami_agent.config import Config
from ami_agent.evaluation.evaluate import FIRST_EVAL_SEED, evaluate_modes
from ami_agent.interrupt import SHUTDOWN_TIMEOUT, handled, isolate_worker, terminate
from ami_agent.logger import RunLogger
from ami_agent.storage import run_dir
from ami_agent.storage.atomic import NotWritten
from ami_agent.storage.guarded_reader import is_number
from ami_agent.train import train
from modules.types import ConfigError

ESTIMATES = ("success", "final_success", "score", "return", "steps", "length")
"""Figures with an interval; None where an environment doesn't report them."""
LOG = "log.txt"
"""What a run said, where it had no terminal to itself."""


class Job(NamedTuple):
    """One variant with one seed."""

    variant: str
    config: Config
    out: Path
    seed: int
    episodes: int
    device: str


class JobResult(NamedTuple):
    """What became of a job: figures by mode, as `evaluate` gives them, or why there are none."""

    variant: str
    seed: int
    metrics: Mapping[str, Any] | None
    failure: str = ""
    seconds: float = 0.0
    """That it took now; none where it was known before."""


def finished_metrics(job: Job) -> Mapping[str, Any] | None:
    """What was found before, for as many episodes; ConfigError where the run is another."""
    if not (job.out / "eval.json").exists():
        return None
    run_dir.check_same(job.out, job.config, job.seed)
    run_dir.seconds_of(job.out)  # which the study tells of every run that finished
    metrics = read_results(job.out / "eval.json")
    return metrics if metrics["plan"]["episodes"] == job.episodes else None


def read_results(path: Path) -> Mapping[str, Any]:
    """The figures of an evaluation by mode, as `evaluate` writes them; ConfigError where the file
    holds anything else."""
    by_mode = run_dir.read_json(path)
    for mode in ("plan", "react"):
        metrics = by_mode.get(mode) if isinstance(by_mode, dict) else None
        if not isinstance(metrics, dict) or not _are_results(metrics):
            raise ConfigError(
                f"{path} holds no figures of mode {mode}: remove it, and the run is evaluated again"
            )
    return by_mode  # type: ignore[no-any-return]


def _are_results(metrics: Mapping[str, Any]) -> bool:
    values = [metrics.get(format_number) for format_number in ESTIMATES]
    estimates = [value for value in values if value is not None]
    return (
        is_number(metrics.get("episodes"))
        and is_number(metrics.get("ms_per_action_batched"))
        and metrics.get("return") is not None
        and set(ESTIMATES) <= metrics.keys()
        and all(isinstance(value, dict) and is_number(value.get("mean")) for value in estimates)
    )


def run_job(job: Job, console: Console) -> JobResult:
    """Trains, or goes on, and evaluates both modes. What goes wrong is told, not raised: the rest
    of the study doesn't depend on it."""
    started = time.monotonic()
    metrics, failure = None, ""
    try:
        metrics = finished_metrics(job)
        if metrics is None:
            resume = (job.out / "config.json").exists()
            with closing(RunLogger(job.out, console)) as logger:
                logger.info(f"== {job.out}")
                agent = train(
                    job.config, out=job.out, seed=job.seed, device=job.device, resume=resume,
                    logger=logger,
                )  # fmt: skip
            first_seed = FIRST_EVAL_SEED + 10_000 * job.seed
            by_mode = evaluate_modes(
                agent, job.config.eval_env, episodes=job.episodes, seed=first_seed
            )
            metrics = {mode: {"recipe": job.config.recipe, **row} for mode, row in by_mode.items()}
            run_dir.write_json(job.out / "eval.json", metrics)
    except NotWritten as error:  # what was found by then counts
        failure = str(error)
    except Exception as error:  # a variant may fail in any way
        message = " ".join(str(error).split()) or type(error).__name__
        prefix = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        metrics, failure = None, prefix + message
    finally:
        # an agent and its lessons know each other, and hold gigabytes: who counts objects alone
        # would let them lie until the next run has as many of its own
        gc.collect()
    return JobResult(job.variant, job.seed, metrics, failure, time.monotonic() - started)


JobResults: TypeAlias = Generator[JobResult, None, None]
"""What comes of jobs, as it comes; closing it ends the jobs that are under way."""


class Executor(Protocol):
    """Whoever carries out jobs, in whatever order."""

    def run(self, jobs: Sequence[Job]) -> JobResults: ...


@dataclass(frozen=True)
class Serial:
    """One after another, in this process."""

    console: Console

    def run(self, jobs: Sequence[Job]) -> JobResults:
        for job in jobs:
            yield run_job(job, self.console)


@dataclass(frozen=True)
class ProcessPool:
    """Several at once, each in a process with its share of the cores."""

    num_workers: int

    def run(self, jobs: Sequence[Job]) -> JobResults:
        for job in (
            yield from self._run_parallel(jobs, self.num_workers)
        ):  # one took all others with it
            for failed in (yield from self._run_parallel([job], 1)):
                yield JobResult(failed.variant, failed.seed, None, "its process died")

    def _run_parallel(
        self, jobs: Sequence[Job], num_parallel: int
    ) -> Generator[JobResult, None, list[Job]]:
        """Returns those that were lost with their process."""
        num_threads, lost_jobs = max(1, (os.cpu_count() or 1) // self.num_workers), []
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_parallel, spawn, _init_worker, (num_threads,)) as pool:
            futures = {pool.submit(_run_interruptible, job): job for job in jobs}
            try:
                for future in as_completed(futures):
                    try:
                        yield future.result()
                    except BrokenProcessPool:
                        lost_jobs.append(futures[future])
            except (KeyboardInterrupt, GeneratorExit):
                pool.shutdown(wait=False, cancel_futures=True)
                terminate(
                    [child for child in multiprocessing.active_children() if not child.daemon]
                )
                raise
        return lost_jobs


def run_job_logged(job: Job) -> JobResult:
    """Carries out a job; what it says goes into a file beside its checkpoints."""
    job.out.mkdir(parents=True, exist_ok=True)
    with (job.out / LOG).open("a", errors="backslashreplace") as log:
        return run_job(job, Console(file=log, width=160))


def _run_interruptible(job: Job) -> JobResult:
    """In a process of a study: a signal saves a checkpoint and ends the process."""
    try:
        with handled():
            return run_job_logged(job)
    except KeyboardInterrupt:
        os._exit(1)


def _init_worker(num_threads: int) -> None:
    """A process keeps to its share of the cores, and does not outlive the study."""
    isolate_worker()
    torch.set_num_threads(num_threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, args=(parent.sentinel,), daemon=True).start()


@dataclass(frozen=True)
class Ray:
    """As tasks of Ray: on a cluster whose nodes share the study's folder, or on this machine
    ("local"), where Ray is started for it."""

    address: str
    connect_timeout: float = 10.0
    """Seconds until an address that doesn't answer is given up."""

    def run(self, jobs: Sequence[Job]) -> JobResults:
        ray, pending = self._connect(), {}
        try:
            gpus = int(any(job.device != "cpu" for job in jobs))
            if gpus and not ray.cluster_resources().get("GPU"):
                raise ConfigError(f"--ray {self.address}: no GPU there; ask for --device cpu")
            remote_job = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=1)(run_job_logged)
            pending = {remote_job.remote(job._replace(out=job.out.absolute())): job for job in jobs}
            while pending:
                (finished, *_), _ = ray.wait(list(pending))
                job = pending.pop(finished)
                try:
                    yield ray.get(finished)
                except Exception as error:  # a node may be gone
                    yield JobResult(job.variant, job.seed, None, f"Ray lost it: {error}")
        except (KeyboardInterrupt, GeneratorExit):
            for task in pending:
                ray.cancel(task)  # raises KeyboardInterrupt where it runs
            ray.wait(list(pending), num_returns=len(pending), timeout=SHUTDOWN_TIMEOUT)
            raise
        finally:
            ray.shutdown()

    def _connect(self) -> Any:
        """ConfigError where there is no Ray, or nobody at the address."""
        try:
            import ray  # an extra
        except ImportError:
            raise ConfigError("--ray needs Ray: pip install 'ami-agent[ray]'") from None
        init_args: dict[str, Any] = (
            {} if self.address == "local" else {"address": self._reachable_address()}
        )
        sigterm_handler = signal.getsignal(signal.SIGTERM)
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **init_args)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, sigterm_handler)  # Ray puts its own there
        return ray

    def _reachable_address(self) -> str:
        """The address, if somebody listens there: Ray itself would wait for minutes."""
        host, _, port = self.address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), self.connect_timeout).close()
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"--ray {self.address}: no Ray cluster answers there ({error}); it must be "
                "HOST:PORT, or local, which starts one on this machine"
            ) from None
        return self.address
