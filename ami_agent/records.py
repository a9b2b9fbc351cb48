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

from ami_agent import checkpoint, minari_files, runs, spaces
from ami_agent.build import blank_step
from ami_agent.files import check_finite, fitting
from ami_agent.life import World
from ami_agent.senses import Stray, limits
from modules.memory import BY_ENV, Memory
from modules.types import ALIVE, Trajectory, UnusableInput, each


class Record(NamedTuple):
    """Episodes that others lived."""

    number: int
    steps: int  # of all, and one between each two
    episodes: Callable[[int], Iterator[Trajectory]]  # from that one on; obs [1, T + 1, *O]


def of_minari(name: str, world: World) -> Record:
    """The dataset of that id; UnusableInput if it isn't on this machine, is empty, or of another
    world. It is read as Minari stores it, without running code of its own."""
    if find_spec("minari") is None:
        raise UnusableInput("minari is not installed: pip install 'ami-agent[minari]'")
    import minari  # an extra

    home = Path(_read(name, lambda: minari.storage.get_dataset_path(name))) / "data"
    if home.is_dir():
        _check_files(name, home)
    known = _read(name, minari.list_local_datasets)
    if name not in known:
        raise UnusableInput(f"no Minari dataset {name!r} on this machine; {_told(known)}")
    if not {"observation_space", "action_space"} <= set(known[name]):
        raise UnusableInput(f"dataset {name} doesn't say which spaces it is of")
    found = _read(name, lambda: minari.load_dataset(name))
    _check_spaces(name, found, world)
    if not found.total_steps:
        raise UnusableInput(f"dataset {name} is empty")
    count = int(found.total_episodes)
    episodes = partial(_episodes, name, found, world)
    return Record(count, int(found.total_steps) + count - 1, episodes)


def _check_files(name: str, home: Path) -> None:
    try:
        minari_files.check(home)
    except UnusableInput as error:
        raise UnusableInput(f"dataset {name} can't be read: {error}") from None


def _told(known: Iterable[str]) -> str:
    told = ", ".join(known)
    return f"there are {told}" if told else "there are none (MINARI_DATASETS_PATH says where)"


def _read(name: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # a stranger's files may raise anything
        raise UnusableInput(
            f"dataset {name} can't be read: {type(error).__name__}: {error}"
        ) from error


def _check_spaces(name: str, found: Any, world: World) -> None:
    envs = world.envs
    for what, there, here in (
        ("observations", found.observation_space, envs.single_observation_space),
        ("actions", found.action_space, envs.single_action_space),
    ):
        if there != here:
            raise UnusableInput(f"{what} of dataset {name} are {there}, but the world's are {here}")
    strange = [felt for felt in world.spec.interoception[1:] if felt != ALIVE]
    if strange:
        raise UnusableInput(
            f"a body in this world feels {', '.join(strange)}, which no Minari dataset records"
        )


def _episodes(name: str, found: Any, world: World, first: int) -> Iterator[Trajectory]:
    """Each as the mind would have sensed it; UnusableInput naming the first that can't be."""
    for number in range(first, found.total_episodes):
        episode = _read(name, partial(found.__getitem__, number))
        try:
            yield _trajectory(episode, world)
        except UnusableInput as error:
            raise UnusableInput(f"episode {number} of dataset {name}: {error}") from None


def _trajectory(episode: Any, world: World) -> Trajectory:
    steps = len(episode)
    try:
        obs = {n: torch.as_tensor(read(episode.observations)) for n, read in world.senses.items()}
    except Stray as stray:
        raise UnusableInput(f"an observation holds {stray}, outside its space") from None
    except (TypeError, ValueError, LookupError) as error:
        raise UnusableInput(f"observations are not of their space: {error}") from None
    over = torch.as_tensor(np.asarray(episode.terminations, dtype=bool))
    felt = [torch.as_tensor(np.asarray(episode.rewards, dtype=np.float64))]
    if world.mortal:
        felt.append((~over).double())
    told = Trajectory(
        obs=obs.get("obs", obs), actions=_actions(episode.actions, world),
        interoception=torch.stack(felt, -1), terminated=over, episode=torch.zeros(()),
    )  # fmt: skip
    seen, done = {len(part) for part in obs.values()}, {len(told.actions), len(over)}
    if not steps or seen != {steps + 1} or done != {steps}:
        raise UnusableInput(f"{steps} rewards, {done} actions and ends, {seen} observations")
    for what, part in (*obs.items(), ("actions", told.actions), ("rewards", felt[0])):
        if part.is_floating_point() and not part.isfinite().all():
            raise UnusableInput(f"{what} holds NaN or infinity")
    whole = {name: getattr(told, name)[None] for name in Trajectory._fields[1:5]}
    return told._replace(obs=each(lambda part: part[None], told.obs), **whole)


def _actions(told: Any, world: World) -> torch.Tensor:
    """`[T, A]` in [-1, 1]; what was asked for beyond the bounds could not be done."""
    low_high = limits(world.envs.single_action_space)
    if world.deeds.choices and low_high:
        strange = (told < low_high[0]) | (told > low_high[1])
        if np.any(strange):
            raise UnusableInput(f"an action is {np.asarray(told)[strange][0]}, outside its space")
    return world.from_world(told).clamp(-1, 1)


def _check_kept(source: Path, kept: Mapping[str, torch.Tensor]) -> None:
    """Raises UnusableInput unless these are the parts of one replay buffer, of finite numbers."""
    age, ended, steps = (kept.get(name, torch.empty(0)) for name in ("age", "ended", "steps"))
    sizes = (len(ended), age.shape[-1])
    rows = {name: part for name, part in kept.items() if name not in ("ended", "steps")}
    fits = age.ndim == 2 and steps.shape == (3,) and not steps.is_floating_point()
    for name, part in rows.items():
        first_two = tuple(part.shape[:2])
        fits &= (first_two if name in BY_ENV else first_two[::-1]) == sizes
        check_finite(source, name, part)
    if not fits or int(steps.min()) < 0:
        raise UnusableInput(f"{source} holds no replay buffer: its parts are of different sizes")


def of_run(folder: str, world: World) -> Record:
    """What a run remembers; UnusableInput if it kept no memory, or of another kind of body."""
    run = Path(folder)
    config = runs.config_of(run, world.imports, flag="--env.import")
    there, here = runs.spec_of(run, config), world.spec
    if found := next(spaces.differences(there, here), None):
        raise UnusableInput(
            f"run {folder} was trained with {found.one}, but the environment here has {found.two}"
        )
    if not (run / "memory").is_dir():
        raise UnusableInput(f"run {folder} has kept no memory: it needs --keep-memory")
    kept, _ = checkpoint.load(run / "memory")
    _check_kept(run / "memory", kept)
    steps, capacity, begun = kept["steps"].tolist()
    stack = config.world.stack
    # of rows that were never filled none is made
    capacity = max(stack, min(capacity, kept["age"].shape[1]))
    kept["steps"] = torch.tensor([steps, capacity, begun])
    with fitting(run / "memory"):
        example = blank_step(there, len(kept["ended"]))
        memory = Memory(capacity + 1 - stack, example, "cpu", stack)
        memory.load_state_dict(kept)
        numbers = memory.episodes()
    if not len(numbers):
        raise UnusableInput(f"run {folder} remembers no step")
    # of an episode whose beginning is overwritten, older frames are kept in rows of their own
    steps = len(memory) + len(numbers) - 1 + (stack - 1) * memory.worlds
    return Record(len(numbers), steps, lambda first: map(memory.recall, numbers[first:]))
