"""The jobs of a study, and what executes them: this process, several ones, or a Ray cluster."""

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
from io import TextIOWrapper
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from rich.console import Console

from ami_agent.config import Config
from ami_agent.evaluation.evaluate import FIRST_EVAL_SEED, evaluate_modes
from ami_agent.evaluation.progress import PolicyProgress
from ami_agent.hardware import num_cores
from ami_agent.interrupt import SHUTDOWN_TIMEOUT, handled, isolate_worker, terminate
from ami_agent.logger import RunLogger
from ami_agent.storage import run_dir
from ami_agent.storage.files import NotWritten, is_number, open_regular
from ami_agent.train import train
from modules.types import ConfigError

ESTIMATES = ("success", "final_success", "score", "return", "steps", "length")
"""Metrics with an interval; None where an environment doesn't report them."""
LOG = "log.txt"  # the output of a run that does not print to the terminal


class Job(NamedTuple):
    """The run of one variant with one seed."""

    variant: str
    config: Config
    out: Path
    seed: int
    episodes: int
    device: str


class JobResult(NamedTuple):
    """The metrics of a job by mode, as `evaluate_modes` returns them, or why it failed."""

    variant: str
    seed: int
    metrics: Mapping[str, Any] | None
    failure: str = ""
    seconds: float = 0.0
    """Seconds of work in this command; 0 where the run was finished before."""


def finished_metrics(job: Job) -> Mapping[str, Any] | None:
    """The metrics of a finished run with as many evaluation episodes, else None. Raises ConfigError
    where the folder holds a run of other settings."""
    if not os.path.lexists(job.out / "eval.json"):
        return None
    run_dir.check_same(job.out, job.config, job.seed)
    run_dir.seconds_of(job.out)  # the study reports the seconds of every finished run
    metrics = read_results(job.out / "eval.json")
    return metrics if metrics["plan"]["episodes"] == job.episodes else None


def read_results(path: Path) -> Mapping[str, Any]:
    """The metrics of an evaluation by mode. Raises ConfigError for any other file."""
    by_mode = run_dir.read_json(path)
    for mode in ("plan", "react"):
        metrics = by_mode.get(mode) if isinstance(by_mode, dict) else None
        found = metrics if isinstance(metrics, dict) else {}
        estimates = [found[name] for name in ESTIMATES if found.get(name) is not None]
        if (
            not set(ESTIMATES) <= found.keys()
            or found["return"] is None
            or not all(isinstance(one, dict) and is_number(one.get("mean")) for one in estimates)
            or not all(is_number(found.get(n)) for n in ("episodes", "ms_per_action_batched"))
        ):
            raise ConfigError(
                f"{path} holds no metrics of mode {mode}: remove it, and the run is evaluated again"
            )
    return by_mode  # type: ignore[no-any-return]


def run_job(job: Job, console: Console) -> JobResult:
    """Trains, or resumes, and evaluates both modes, unless that is done. An error is returned as
    the failure, so that the other runs of the study continue."""
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
            first = FIRST_EVAL_SEED + 10_000 * job.seed
            env, episodes = job.config.eval_env, job.episodes
            with run_dir.threads_of(job.out):
                found = evaluate_modes(
                    agent, env, episodes=episodes, seed=first, progress=PolicyProgress(logger)
                )
            metrics = {mode: {"recipe": job.config.recipe, **row} for mode, row in found.items()}
            run_dir.write_json(job.out / "eval.json", metrics)
    except NotWritten as error:  # the metrics are known all the same
        failure = str(error)
    except Exception as error:  # a variant may fail in any way
        message = " ".join(str(error).split()) or type(error).__name__
        prefix = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        metrics, failure = None, prefix + message
    finally:
        # an agent and its stage runs form cycles that hold gigabytes; the collector counts objects,
        # not bytes, so it would free them much later
        gc.collect()
    return JobResult(job.variant, job.seed, metrics, failure, time.monotonic() - started)


JobResults: TypeAlias = Generator[JobResult, None, None]
"""Results in the order in which jobs finish; closing the generator ends the running jobs."""


class Executor(Protocol):
    """Runs jobs, in any order."""

    def run(self, jobs: Sequence[Job]) -> JobResults: ...


@dataclass(frozen=True)
class Serial:
    """Runs one job after the other, in this process."""

    console: Console

    def run(self, jobs: Sequence[Job]) -> JobResults:
        for job in jobs:
            yield run_job(job, self.console)


@dataclass(frozen=True)
class ProcessPool:
    """Runs several jobs at once, each in a process with the threads of this one, or with an equal
    number of cores where these are fewer."""

    num_workers: int

    def run(self, jobs: Sequence[Job]) -> JobResults:
        lost_jobs = yield from self._run_parallel(jobs, self.num_workers)
        for job in lost_jobs:  # the death of one process breaks the whole pool
            if (yield from self._run_parallel([job], 1)):
                yield JobResult(job.variant, job.seed, None, "its process died")

    def _run_parallel(
        self, jobs: Sequence[Job], num_parallel: int
    ) -> Generator[JobResult, None, list[Job]]:
        """Returns the jobs that were lost with the pool."""
        num_threads = min(torch.get_num_threads(), max(1, num_cores() // self.num_workers))
        lost_jobs = []
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_parallel, spawn, _init_worker) as pool:
            futures = {pool.submit(_run_interruptible, job, num_threads): job for job in jobs}
            try:
                for future in as_completed(futures):
                    try:
                        yield future.result()
                    except BrokenProcessPool:
                        lost_jobs.append(futures[future])
            except (KeyboardInterrupt, GeneratorExit):
                pool.shutdown(wait=False, cancel_futures=True)
                terminate([c for c in multiprocessing.active_children() if not c.daemon])
                raise
        return lost_jobs


def run_job_logged(job: Job, num_threads: int) -> JobResult:
    """Runs a job in a process of its own; its output goes into a file of the run folder."""
    torch.set_num_threads(num_threads)
    job.out.mkdir(parents=True, exist_ok=True)
    log_file = open_regular(job.out / LOG, append=True)
    with TextIOWrapper(log_file, "utf-8", "backslashreplace") as log:
        return run_job(job, Console(file=log, width=160))


def _run_interruptible(job: Job, num_threads: int) -> JobResult:
    """Runs a job in a worker process: a signal saves a checkpoint and ends the process."""
    try:
        with handled():
            return run_job_logged(job, num_threads)
    except KeyboardInterrupt:
        os._exit(1)


def _init_worker() -> None:
    """Ends a worker process when the study ends."""
    isolate_worker()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, args=(parent.sentinel,), daemon=True).start()


@dataclass(frozen=True)
class Ray:
    """Runs jobs as Ray tasks: on a cluster with shared folders, or ("local") on this machine."""

    address: str
    connect_timeout: float = 10.0
    """Seconds to wait for an answer of the address."""

    def run(self, jobs: Sequence[Job]) -> JobResults:
        ray, pending = self._connect(), {}
        try:
            gpus = int(any(job.device != "cpu" for job in jobs))
            if gpus and not ray.cluster_resources().get("GPU"):
                raise ConfigError(f"--ray {self.address}: the cluster has no GPU; use --device cpu")
            threads = torch.get_num_threads()
            remote_job = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=1)(run_job_logged)
            pending = {
                remote_job.remote(job._replace(out=job.out.absolute()), threads): job
                for job in jobs
            }
            while pending:
                (finished, *_), _ = ray.wait(list(pending))
                job = pending.pop(finished)
                try:
                    yield ray.get(finished)
                except Exception as error:  # a node may be gone
                    yield JobResult(job.variant, job.seed, None, f"Ray lost the task: {error}")
        except (KeyboardInterrupt, GeneratorExit):
            for task in pending:
                ray.cancel(task)  # raises KeyboardInterrupt where it runs
            ray.wait(list(pending), num_returns=len(pending), timeout=SHUTDOWN_TIMEOUT)
            raise
        finally:
            ray.shutdown()

    def _connect(self) -> Any:
        """Raises ConfigError where Ray is not installed or no cluster answers at the address."""
        try:
            import ray  # an extra
        except ImportError:
            raise ConfigError("--ray needs Ray: pip install 'ami-agent[ray]'") from None
        address = None if self.address == "local" else self._reachable_address()
        sigterm_handler = signal.getsignal(signal.SIGTERM)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, sigterm_handler)  # Ray has set its own
        return ray

    def _reachable_address(self) -> str:
        """The address, checked by a connection: Ray itself would wait for minutes."""
        host, _, port = self.address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), self.connect_timeout).close()
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"--ray {self.address}: no Ray cluster answers there ({error}); it must be "
                "HOST:PORT, or local, which starts one on this machine"
            ) from None
        return self.address
