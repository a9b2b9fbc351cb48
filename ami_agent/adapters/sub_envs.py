"""How single environments are made and stepped one by one, in this process or in workers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import _async_worker
from gymnasium.vector.utils import iterate

from ami_agent import interrupt
from ami_agent.adapters.autoreset import NextStepAutoreset, autoreset_mode, batch_rows, info_of_env
from ami_agent.adapters.failures import EnvWorkerError, describe_error, is_interrupt


class SingleEnv(gymnasium.Env):
    """One environment out of a batch of one, for what exists as a batch only."""

    def __init__(self, name: str, batch: VectorEnv) -> None:
        self.batch = NextStepAutoreset(name, batch, autoreset_mode(name, batch), _no_singles)
        self.observation_space = batch.single_observation_space
        self.action_space = batch.single_action_space
        self.metadata = {k: v for k, v in batch.metadata.items() if k != "autoreset_mode"}
        self.render_mode = batch.render_mode
        self.spec = batch.spec
        self.done = False
        self.action: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if self.done and seed is None and not options:  # the batch resets by itself
            obs, _, _, _, info = self.batch.step(self.action)
        else:
            obs, info = self.batch.reset(seed=seed, options=options)
        self.done = False
        return self._row(obs), info_of_env(info, 0, 1)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.action = batch_rows(self.action_space, [action])
        obs, reward, terminated, truncated, info = self.batch.step(self.action)
        self.done = bool(terminated[0] or truncated[0])
        return (
            self._row(obs), float(reward[0]), bool(terminated[0]), bool(truncated[0]),
            info_of_env(info, 0, 1),
        )  # fmt: skip

    def render(self) -> Any:
        pictures = self.batch.render()
        return None if pictures is None else pictures[0]

    def close(self) -> None:
        self.batch.close()

    def _row(self, obs: Any) -> Any:
        return next(iter(iterate(self.batch.observation_space, obs)))


def _no_singles() -> VectorEnv:
    raise AssertionError("a batch of one is never stepped in part")


class SyncEnvs(SyncVectorEnv):
    """Where one can't be made, those made before it are closed."""

    def __init__(self, factories: Sequence[Callable[[], gymnasium.Env]]) -> None:
        envs: list[gymnasium.Env] = []

        def make_and_record(factory: Callable[[], gymnasium.Env]) -> gymnasium.Env:
            envs.append(factory())
            return envs[-1]

        try:
            super().__init__([partial(make_and_record, factory) for factory in factories])
        except BaseException:
            for env in envs:
                with contextlib.suppress(Exception, SystemExit):
                    env.close()
            raise


class AsyncEnvs(AsyncVectorEnv):
    """Where one can't be made, the processes of the others end. What the environments' code raises
    comes with its place, and ends no process without a word."""

    def __init__(self, factories: Sequence[Callable[[], gymnasium.Env]]) -> None:
        try:
            super().__init__(factories, worker=_worker)
        except BaseException:
            terminate_workers(self)
            raise


def terminate_workers(envs: AsyncVectorEnv) -> None:
    """Ends the processes of environments that can't be asked to end."""
    processes = getattr(envs, "processes", ())  # its constructor may have failed before any
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    for pipe in getattr(envs, "parent_pipes", ()):
        if pipe is not None:  # Gymnasium puts None where it closed one
            pipe.close()
    envs.closed = True


class _LocatedErrors(gymnasium.Wrapper):
    """What the environment's code raises comes with file and line: only type and text of an
    exception get from one process to another, and only where both know the type."""

    def reset(self, **kwargs: Any) -> Any:
        return _with_location(partial(self.env.reset, **kwargs))

    def step(self, action: Any) -> Any:
        return _with_location(partial(self.env.step, action))

    def render(self) -> Any:
        return _with_location(self.env.render)


def _with_location(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException as error:
        if is_interrupt(error):
            raise
        raise EnvWorkerError(describe_error(error)) from None


def _worker(
    index: int, factory: Callable[[], gymnasium.Env], pipe: Any, parent_pipe: Any,
    shared_memory: Any, errors: Any, *others: Any,
) -> None:  # fmt: skip
    """Gymnasium's, but an environment that can't be made says why, and Ctrl-C is for the parent,
    which ends it."""
    interrupt.isolate_worker()
    try:
        env = _with_location(factory)
    except EnvWorkerError as error:
        parent_pipe.close()
        pipe.recv()  # the first question
        errors.put((index, EnvWorkerError, str(error), ""))
        pipe.send((None, False))
        return
    _async_worker(
        index, lambda: _LocatedErrors(env), pipe, parent_pipe, shared_memory, errors, *others
    )
