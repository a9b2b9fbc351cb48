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
from collections.abc import Collection, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from io import TextIOWrapper
from math import inf, nan
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from rich.console import Console

from ami_agent.config import Config
from ami_agent.evaluation.evaluate import FIRST_EVAL_SEED, evaluate_modes
from ami_agent.evaluation.progress import PolicyProgress
from ami_agent.hardware import num_cores
from ami_agent.interrupt import SHUTDOWN_TIMEOUT, deferred, handled, isolate_worker, terminate
from ami_agent.logger import RunLogger
from ami_agent.storage import run_dir
from ami_agent.storage.files import NotWritten, is_number, locked, open_regular
from ami_agent.train import train
from modules.types import ConfigError, shorten

ESTIMATES = ("success", "final_success", "score", "return", "steps", "length")
"""Metrics with an interval; None where an environment doesn't report them."""
LOST_PROCESS_TIMEOUT = 60.0
"""Seconds in which a process ends whose node is gone."""
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


def parse_resources(words: Sequence[str]) -> dict[str, float]:
    """Resources `NAME=AMOUNT` by name; ConfigError for anything else."""
    resources: dict[str, float] = {}
    for word in words:
        name, _, amount = word.partition("=")
        try:
            resources[name] = float(amount)
        except ValueError:
            resources[name] = nan
        if not name or not 0 <= resources[name] < inf:
            raise ConfigError(
                f"--resources {shorten(word)}: it must be NAME=AMOUNT, as CPU=2 or GPU=0.25"
            )
    return resources


def run_job_on_node(job: Job, num_threads: int) -> JobResult:
    """Runs a job that may have begun in another process, on a node that is gone. That process ends
    when it misses its node; until then it may hold the lock on the run folder."""
    until = time.monotonic() + LOST_PROCESS_TIMEOUT
    while time.monotonic() < until:
        try:
            with locked(job.out):
                break
        except ConfigError:
            time.sleep(0.5)
    return run_job_logged(job, num_threads)


@dataclass(frozen=True)
class Ray:
    """Runs jobs as Ray tasks: on a cluster with shared folders, or ("local") on this machine. A run
    whose node dies continues on another one from its last checkpoint; without one it starts
    again."""

    address: str
    connect_timeout: float = 10.0
    """Seconds to wait for an answer of the address."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """What each run takes of its node, by Ray's names; GPU may be a fraction. CPU is by default the
    number of threads, and GPU is 1 where the device is no CPU."""
    max_retries: int = 3
    """How often a run starts again whose node, or process, died."""

    def run(self, jobs: Sequence[Job]) -> JobResults:
        ray, pending = self._connect(), {}
        try:
            threads = torch.get_num_threads()
            default = {"CPU": threads, "GPU": int(any(job.device != "cpu" for job in jobs))}
            resources = {**default, **self.resources}
            self._check_resources(ray, resources, {job.device for job in jobs})
            custom = {name: amount for name, amount in resources.items() if name not in default}
            try:
                remote_job = ray.remote(
                    num_cpus=resources["CPU"], num_gpus=resources["GPU"], resources=custom,
                    max_retries=self.max_retries, scheduling_strategy="SPREAD",
                )(run_job_on_node)  # fmt: skip
            except ValueError as error:
                raise ConfigError(f"--resources: {error}") from None
            pending = {
                remote_job.remote(job._replace(out=job.out.absolute()), threads): job
                for job in jobs
            }
            while pending:
                with deferred():  # Ray would replace the error of a signal by one of its own
                    finished, _ = ray.wait(list(pending), timeout=1.0)
                for task in finished:
                    job = pending.pop(task)
                    try:
                        result = ray.get(task)
                    except Exception as error:  # a node may be gone
                        reason = "Ray lost the task: " + str(error).partition("\n")[0]
                        result = JobResult(job.variant, job.seed, None, reason)
                    yield result
        except (KeyboardInterrupt, GeneratorExit):
            for task in pending:
                ray.cancel(task)  # raises KeyboardInterrupt where it runs
            ray.wait(list(pending), num_returns=len(pending), timeout=SHUTDOWN_TIMEOUT)
            raise
        finally:
            ray.shutdown()

    def _check_resources(
        self, ray: Any, resources: Mapping[str, float], devices: Collection[str]
    ) -> None:
        """Raises ConfigError where no node of the cluster has what a run takes, for which Ray would
        wait for ever, and for a device that a run would not find."""
        for device in devices:
            if device.startswith("cuda:"):
                raise ConfigError(f"--device {device}: Ray chooses the GPU of a run; use cuda")
            if device == "cuda" and not resources["GPU"]:
                raise ConfigError("--resources GPU=0: runs on cuda need a GPU, or a fraction of it")
        if (gpus := resources["GPU"]) > 1 and gpus % 1:
            raise ConfigError(f"--resources GPU={gpus:g}: above 1 it must be a whole number")
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(n.get(name, 0) >= x for name, x in resources.items()) for n in nodes):
            needed = ", ".join(f"{name} {amount:g}" for name, amount in resources.items() if amount)
            found = "; ".join(
                ", ".join(f"{name} {node.get(name, 0):g}" for name in resources) for node in nodes
            )
            raise ConfigError(
                f"--ray {self.address}: a run takes {needed}, and no node of the cluster has that "
                f"(there are {found}); set --resources, --threads or --device"
            )

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
