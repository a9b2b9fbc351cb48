"""Life that was recorded: a Minari dataset, or the memory that a run has kept, as the mind would
have sensed it in a world."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ami_agent.adapters import minari_files, spaces
from ami_agent.adapters.env import EnvAdapter
from ami_agent.adapters.observations import OutOfBoundsError, limits
from ami_agent.config import empty_transition
from ami_agent.storage import checkpoint, run_dir
from ami_agent.storage.guarded_reader import check_finite, one_line_errors
from modules.memory.replay_buffer import BY_ENV, ReplayBuffer
from modules.types import CONTINUE, ConfigError, Trajectory, tree_map


class EpisodeDataset(NamedTuple):
    """Episodes that others lived."""

    num_episodes: int
    steps: int  # of all, and one between each two
    episodes: Callable[[int], Iterator[Trajectory]]  # from that one on; obs [1, T + 1, *O]


def from_minari(name: str, env: EnvAdapter) -> EpisodeDataset:
    """The dataset of that id; ConfigError if it isn't on this machine, is empty, or of another
    world. It is read as Minari stores it, without running code of its own."""
    if find_spec("minari") is None:
        raise ConfigError("minari is not installed: pip install 'ami-agent[minari]'")
    import minari  # an extra

    home = Path(_read(name, lambda: minari.storage.get_dataset_path(name))) / "data"
    if home.is_dir():
        _check_files(name, home)
    known = _read(name, minari.list_local_datasets)
    if name not in known:
        raise ConfigError(f"no Minari dataset {name!r} on this machine; {_list_names(known)}")
    if not {"observation_space", "action_space"} <= set(known[name]):
        raise ConfigError(f"dataset {name} doesn't say which spaces it is of")
    found = _read(name, lambda: minari.load_dataset(name))
    _check_spaces(name, found, env)
    if not found.total_steps:
        raise ConfigError(f"dataset {name} is empty")
    count = int(found.total_episodes)
    episodes = partial(_iter_episodes, name, found, env)
    return EpisodeDataset(count, int(found.total_steps) + count - 1, episodes)


def _check_files(name: str, home: Path) -> None:
    try:
        minari_files.check(home)
    except ConfigError as error:
        raise ConfigError(f"dataset {name} can't be read: {error}") from None


def _list_names(known: Iterable[str]) -> str:
    names_text = ", ".join(known)
    return (
        f"there are {names_text}"
        if names_text
        else "there are none (MINARI_DATASETS_PATH says where)"
    )


def _read(name: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # a stranger's files may raise anything
        raise ConfigError(
            f"dataset {name} can't be read: {type(error).__name__}: {error}"
        ) from error


def _check_spaces(name: str, found: Any, env: EnvAdapter) -> None:
    vector_env = env.vector_env
    for what, there, here in (
        ("observations", found.observation_space, vector_env.single_observation_space),
        ("actions", found.action_space, vector_env.single_action_space),
    ):
        if there != here:
            raise ConfigError(f"{what} of dataset {name} are {there}, but the world's are {here}")
    unknown = [signal for signal in env.spec.interoception[1:] if signal != CONTINUE]
    if unknown:
        raise ConfigError(
            f"a body in this world feels {', '.join(unknown)}, which no Minari dataset records"
        )


def _iter_episodes(name: str, found: Any, env: EnvAdapter, first: int) -> Iterator[Trajectory]:
    """Each as the mind would have sensed it; ConfigError naming the first that can't be."""
    for index in range(first, found.total_episodes):
        episode = _read(name, partial(found.__getitem__, index))
        try:
            yield _trajectory(episode, env)
        except ConfigError as error:
            raise ConfigError(f"episode {index} of dataset {name}: {error}") from None


def _trajectory(episode: Any, env: EnvAdapter) -> Trajectory:
    steps = len(episode)
    try:
        obs = {n: torch.as_tensor(read(episode.observations)) for n, read in env.obs_fields.items()}
    except OutOfBoundsError as stray:
        raise ConfigError(f"an observation holds {stray}, outside its space") from None
    except (TypeError, ValueError, LookupError) as error:
        raise ConfigError(f"observations are not of their space: {error}") from None
    terminated = torch.as_tensor(np.asarray(episode.terminations, dtype=bool))
    signals = [torch.as_tensor(np.asarray(episode.rewards, dtype=np.float64))]
    if env.terminal_channel:
        signals.append((~terminated).double())
    trajectory = Trajectory(
        obs=obs.get("obs", obs), actions=_actions(episode.actions, env),
        interoception=torch.stack(signals, -1), terminated=terminated, episode_id=torch.zeros(()),
    )  # fmt: skip
    obs_lengths, lengths = (
        {len(part) for part in obs.values()},
        {len(trajectory.actions), len(terminated)},
    )
    if not steps or obs_lengths != {steps + 1} or lengths != {steps}:
        raise ConfigError(
            f"{steps} rewards, {lengths} actions and ends, {obs_lengths} observations"
        )
    for what, part in (*obs.items(), ("actions", trajectory.actions), ("rewards", signals[0])):
        if part.is_floating_point() and not part.isfinite().all():
            raise ConfigError(f"{what} holds NaN or infinity")
    batched = {name: getattr(trajectory, name)[None] for name in Trajectory._fields[1:5]}
    return trajectory._replace(obs=tree_map(lambda part: part[None], trajectory.obs), **batched)


def _actions(actions: Any, env: EnvAdapter) -> torch.Tensor:
    """`[T, A]` in [-1, 1]; what was asked for beyond the bounds could not be done."""
    bounds = limits(env.vector_env.single_action_space)
    if env.action_adapter.choices and bounds:
        is_outside = (actions < bounds[0]) | (actions > bounds[1])
        if np.any(is_outside):
            raise ConfigError(
                f"an action is {np.asarray(actions)[is_outside][0]}, outside its space"
            )
    return env.from_env(actions).clamp(-1, 1)


def _check_buffer(source: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Raises ConfigError unless these are the parts of one replay buffer, of finite numbers."""
    age, episode_ends, steps = (
        state.get(name, torch.empty(0)) for name in ("age", "ended", "steps")
    )
    sizes = (len(episode_ends), age.shape[-1])
    rows = {name: part for name, part in state.items() if name not in ("ended", "steps")}
    is_valid = age.ndim == 2 and steps.shape == (3,) and not steps.is_floating_point()
    for name, part in rows.items():
        first_two = tuple(part.shape[:2])
        is_valid &= (first_two if name in BY_ENV else first_two[::-1]) == sizes
        check_finite(source, name, part)
    if not is_valid or int(steps.min()) < 0:
        raise ConfigError(f"{source} holds no replay buffer: its parts are of different sizes")


def from_run(folder: str, env: EnvAdapter) -> EpisodeDataset:
    """What a run remembers; ConfigError if it kept no memory, or of another kind of body."""
    run = Path(folder)
    config = run_dir.config_of(run, env.imports, flag="--env.import")
    run_spec, env_spec = run_dir.spec_of(run, config), env.spec
    if difference := next(spaces.differences(run_spec, env_spec), None):
        raise ConfigError(
            f"run {folder} was trained with {difference.one}, but the environment here has {difference.two}"
        )
    if not (run / "memory").is_dir():
        raise ConfigError(f"run {folder} has kept no memory: it needs --keep-replay-buffer")
    state, _ = checkpoint.load(run / "memory")
    _check_buffer(run / "memory", state)
    steps, capacity, begun = state["steps"].tolist()
    stack = config.env.frame_stack
    # of rows that were never filled none is made
    capacity = max(stack, min(capacity, state["age"].shape[1]))
    state["steps"] = torch.tensor([steps, capacity, begun])
    with one_line_errors(run / "memory"):
        example = empty_transition(run_spec, len(state["ended"]))
        buffer = ReplayBuffer(capacity + 1 - stack, example, "cpu", stack)
        buffer.load_state_dict(state)
        numbers = buffer.episode_ids()
    if not len(numbers):
        raise ConfigError(f"run {folder} remembers no step")
    # of an episode whose beginning is overwritten, older frames are kept in rows of their own
    steps = len(buffer) + len(numbers) - 1 + (stack - 1) * buffer.num_envs
    return EpisodeDataset(
        len(numbers), steps, lambda first: map(buffer.get_episode, numbers[first:])
    )
