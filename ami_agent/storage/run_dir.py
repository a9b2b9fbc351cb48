"""Run folders: what a run writes, and how an agent is loaded from one.

config.json     the complete settings
spaces.json     the spaces of the environment in which the agent was trained
manifest.json   seed, device, precision, versions, commit, seconds per stage
metrics.jsonl   every logged metric; TensorBoard's events beside it
checkpoints/    weights (safetensors and JSON, checksummed)
replay/         the collected steps of the replay buffer in chunks, during training
memory/         the replay buffer, with --keep-replay-buffer
.lock           the process that trains here, if one does
eval.json       the last evaluation
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ami_agent import config_io
from ami_agent.adapters import env_spec
from ami_agent.adapters.env import EnvConfig, EnvironmentSpec
from ami_agent.adapters.imports import absolute_import, check_trusted
from ami_agent.agent import Agent
from ami_agent.argument_checks import check_device, check_path
from ami_agent.config import Config, buffer_steps, build
from ami_agent.memory_estimate import check_planning
from ami_agent.storage import checkpoint, files
from ami_agent.training.precision import Precision, check_precision
from ami_agent.user_components import allow_components
from modules.types import ConfigError

SPACES = "spaces.json"
PACKAGES = ("torch", "numpy", "gymnasium")
PREFIX = "agent."  # of the names of an agent's weights in a checkpoint
MEMORY_MARGIN = 256 * files.MIB  # bytes that building an agent may take besides its weights
MAX_THREADS = 1024
MODES = ("plan", "react", "auto")
MAX_STEPS = 1_000_000_000  # of an episode
CHANGEABLE = ("env.step_timeout ", "eval_env.step_timeout ")
"""Settings that may differ on a resume: they don't change the result."""


def write_json(path: Path, data: Mapping[str, Any], follow_links: bool = False) -> None:
    """Writes a JSON file, whole or not at all. Raises NotWritten. `follow_links`: as in
    `files.replacing`."""
    files.write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n", follow_links)


def read_json(path: Path) -> Any:
    """A JSON file of a run folder; ConfigError if there is none, or it is not JSON."""
    if not os.path.lexists(path):
        raise files.not_a_run(path.parent, path.name)
    return files.read_json(path)


def check_folder(folder: Path) -> None:
    """Raises ConfigError if the folder can't be created, as a file is in the way or no folder can
    have this name."""
    try:
        str(folder.absolute()).encode()  # TensorBoard writes no other names
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.stat()
        existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except (OSError, UnicodeError) as error:  # a loop of links, a name too long
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise ConfigError(f"--out {folder}: {reason}") from None
    if not existing.is_dir():
        raise ConfigError(f"--out {folder}: {existing} is not a folder")


def ensure_unused(run: Path, env_id: str) -> None:
    """Raises ConfigError if the folder holds a run already, or a file is in its place. `env_id`:
    the environment of the run that is to be started."""
    check_folder(run)
    if not ((run / "config.json").exists() or checkpoint.checkpoints(run)):
        return
    other = _env_id(run)
    if other and other != env_id:
        raise ConfigError(
            f"{run} holds a run already, in the environment {other}, and this one is in {env_id}: "
            "choose another --out"
        )
    where = f", in the environment {other}" if other else ""
    raise ConfigError(f"{run} holds a run already{where}: --resume it, or choose another --out")


def _env_id(run: Path) -> str:
    """The environment of a run; empty where its settings don't say."""
    with suppress(ConfigError, LookupError, TypeError):
        return str(read_json(run / "config.json")["env"]["id"])
    return ""


def create(
    run: Path, config: Config, seed: int, device: str, spec: EnvironmentSpec | None = None,
    precision: Precision = "float32",
) -> None:  # fmt: skip
    """Creates a run folder; `spec`: of the environment in which the agent is trained."""
    run.mkdir(parents=True, exist_ok=True)
    if spec is not None and (written := env_spec.to_json(spec)):
        write_json(run / SPACES, written)
    write_json(run / "manifest.json", manifest(seed, device, precision))
    write_json(run / "config.json", config_io.to_json(config))  # last: it makes the folder a run


def check_same(run: Path, config: Config, seed: int) -> None:
    """Raises ConfigError unless the run was started with the same settings and seed."""
    if changed := _result_changes(run, settings_of(run), config, seed):
        raise ConfigError(f"{run} can't be resumed with other settings: {changed[0]}")


def _result_changes(run: Path, before: Config, now: Config, seed: int) -> list[str]:
    """The differences, of settings and seed, that change the result, one phrase each."""
    changed = [line for line in changed_settings(before, now) if not line.startswith(CHANGEABLE)]
    return changed + config_io.differences({"seed": manifest_of(run)["seed"]}, {"seed": seed})


def settings_of(run: Path) -> Config:
    """The settings of a run, to be compared; to import the code that they name, `config_of`."""
    return config_io.from_json(read_json(run / "config.json"), str(run / "config.json"))


def config_of(
    run: Path, imports: Sequence[str] = (), trust: bool | None = False, flag: str = "--import"
) -> Config:
    """The settings of a run. ConfigError where they name code that the user did not name
    (`imports`: files x.py or modules) or trust; `trust`, `flag`: see `check_trusted`."""
    allow_components(imports)
    return check_trusted(settings_of(run), run, imports, trust, flag)


def resumed_config(run: Path, recipe: str, imports: Sequence[str]) -> Config:
    """The settings with which a run of this recipe continues. ConfigError where it is of another
    recipe, or its settings name code that the user did not name (`imports`)."""
    config = config_of(run, imports, trust=None)
    if config.recipe != recipe:
        raise ConfigError(
            f"{run} can't be resumed with other settings: recipe is {config.recipe!r}, not "
            f"{recipe!r}"
        )
    # imports that the environment does not need, but a component, are no settings of it
    saved, named = settings_of(run), {*map(absolute_import, imports)}
    is_named = {*saved.env.imports, *saved.eval_env.imports} <= named
    return saved if is_named else config


def spec_of(run: Path, config: Config) -> EnvironmentSpec:
    """The spec of the environment in which the run was trained, from its spaces.json; in runs of
    older versions, which have none, from the environment itself."""
    if os.path.lexists(run / SPACES):
        return env_spec.from_json(read_json(run / SPACES), config.env.interface, str(run / SPACES))
    with closing(config.env.build(1)) as env:
        return env.spec


CHANGED = "changed on resume"
"""The name in the manifest of the settings that were changed when a run was resumed."""


def manifest_of(run: Path) -> dict[str, Any]:
    """The manifest of a run; ConfigError if its seed or seconds are missing."""
    manifest, source = read_json(run / "manifest.json"), run / "manifest.json"
    seed = manifest.get("seed") if isinstance(manifest, dict) else None
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise ConfigError(f"{source} has no seed: it must be a number from 0 to {2**31 - 1}")
    threads = manifest.get("threads", 1)
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= MAX_THREADS:
        raise ConfigError(f"{source}: threads must be a number from 1 to {MAX_THREADS}")
    check_precision(f"{source}: precision", manifest.get("precision", "float32"))
    seconds = manifest.get("seconds")
    if not isinstance(seconds, dict) or not all(map(files.is_number, seconds.values())):
        raise ConfigError(f"{source} has no seconds of its stages: they must be numbers")
    if not isinstance(manifest.get(CHANGED, []), list):
        raise ConfigError(f"{source}: {CHANGED!r} must be a list of changes")
    return manifest  # type: ignore[no-any-return]


def seconds_of(run: Path) -> float:
    """The seconds that all stages of a run took; ConfigError if its manifest has none."""
    return float(sum(manifest_of(run)["seconds"].values()))


@contextmanager
def threads_of(run: Path) -> Iterator[None]:
    """Within it, PyTorch has the number of threads with which the run began: its results depend on
    it in the last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(manifest_of(run).get("threads", before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def precision_of(run: Path) -> Precision:
    """The precision with which the run began."""
    return manifest_of(run).get("precision", "float32")  # type: ignore[no-any-return]


def last_metrics(run: Path, stage: str) -> dict[str, Any]:
    """The last logged metrics of that stage; empty where there are none."""
    with suppress(ConfigError):
        rows = files.read_metrics(run / "metrics.jsonl", stage)
        return next((row for row in reversed(rows) if row["stage"] == stage), {})
    return {}


def recorded_steps(run: Path, config: Config, env: EnvConfig, task: str = "") -> dict[str, float]:
    """Steps of an episode in this environment, the mean by mode: as evaluated last in the task (the
    first one if empty), or else as collected last. Modes of which nothing is known are left out."""
    found: dict[str, object] = {}
    # a stage may have an environment of its own
    stages = {name for name, stage in config.stages.items() if not stage.env_options}
    with suppress(ConfigError):
        for row in files.read_metrics(run / "metrics.jsonl", "") if config.env == env else ():
            if row["stage"] in stages and "episode_length" in row:
                found = dict.fromkeys(MODES, row["episode_length"])
    expected = {"env": env.id, "variant": env.variant, "task": task or next(iter(config.tasks))}
    with suppress(ConfigError):
        evaluated = read_json(run / "eval.json")
        for mode in MODES:
            results = evaluated.get(mode) if isinstance(evaluated, dict) else None
            if isinstance(results, dict) and expected.items() <= results.items():
                length = results.get("length")
                found[mode] = length.get("mean") if isinstance(length, dict) else None
    return {m: float(n) for m, n in found.items() if files.is_number(n) and 0 < n < MAX_STEPS}  # type: ignore[operator,arg-type]


def manifest(seed: int, device: str, precision: Precision = "float32") -> dict[str, Any]:
    """Everything needed to reproduce a run's results, besides its settings."""
    return {
        "seed": seed,
        "device": device,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "commit": source_commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "seconds": {},
    }


def source_commit() -> str | None:
    """The commit of the source, if it is a git checkout."""
    folder = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def check_resumable(run: Path, config: Config, seed: int) -> None:
    """Raises ConfigError for a setting, or seed, other than the run was started with, unless it is
    a setting of a stage that has not begun, or does not change the result."""
    before = config_of(run)
    started, refused = _started_stages(run, before), []
    for difference in _result_changes(run, before, config, seed):
        setting, _, values = difference.partition(" ")
        stage = setting.removeprefix("stages.").partition(".")[0]
        if stage not in config.stages:
            refused.append(f"{config_io.flag_of(setting)} {values}")
        elif stage in started:
            refused.append(
                f"{config_io.flag_of(setting)} {values}, but the stage {stage} has begun"
            )
    if refused:
        raise ConfigError(f"{run} can't be resumed with other settings: {refused[0]}")
    if started and buffer_steps(before) != buffer_steps(config):
        raise ConfigError(
            f"{run} can't be resumed with other settings: its replay buffer holds "
            f"{buffer_steps(before)} steps of each environment, and now "
            f"{buffer_steps(config)} would be needed (--collect.steps, --planner-rollouts.steps "
            "and --actor-critic.steps decide it)"
        )


def apply_new_settings(run: Path, config: Config) -> list[str]:
    """Writes changed settings to config.json, and the changes to manifest.json; returns them."""
    changed = changed_settings(config_of(run), config)
    if changed:
        manifest = manifest_of(run)
        manifest[CHANGED] = [*manifest.get(CHANGED, []), *changed]
        write_json(run / "manifest.json", manifest)
        write_json(run / "config.json", config_io.to_json(config))
    return changed


def changed_settings(before: Config, now: Config) -> list[str]:
    """The differences, one phrase for each setting."""
    return config_io.differences(config_io.to_json(before), config_io.to_json(now))


def _started_stages(run: Path, config: Config) -> set[str]:
    if not checkpoint.checkpoints(run):
        return set()
    metadata, tensors = checkpoint.contents(checkpoint.latest(run))
    num_started = _stage_index(run, metadata)
    if any(name.startswith("stage_run.") for name in tensors):
        num_started += 1
    if (run / "memory").is_dir():  # saved just before the process was killed, perhaps
        buffer_metadata, _ = checkpoint.contents(run / "memory")
        num_started = max(num_started, _stage_index(run, {"stage_index": 0, **buffer_metadata}))
    return set(list(config.stages)[:num_started])


def _stage_index(run: Path, metadata: Mapping[str, Any]) -> int:
    index = metadata.get("stage_index")
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise ConfigError(f"{run} does not say in which stage it was: it can't be resumed")
    return index


def describe_progress(run: Path) -> str:
    """How far training is in the newest checkpoint, ` in train_jepa at step 35/300`; empty where it
    is finished, or the checkpoint does not say."""
    metadata, _ = checkpoint.contents(checkpoint.latest(run))
    names, index = metadata.get("stages"), metadata.get("stage_index")
    if not (isinstance(names, list) and isinstance(index, int) and 0 <= index < len(names)):
        return ""
    match metadata.get("step"):
        case [int(step), int(total)]:
            return f" in {names[index]} at step {step}/{total}"
    return f" in {names[index]}"


def weights(agent: Agent) -> dict[str, Tensor]:
    """The agent's weights, by their names in a checkpoint."""
    return {PREFIX + name: value for name, value in agent.state_dict().items()}


def load_weights(agent: Agent, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Loads what `weights` returned. ConfigError for other names, shapes or types, and for NaN."""
    expected = weights(agent)
    saved = {name: value for name, value in tensors.items() if name.startswith(PREFIX)}

    def describe(tensors: Mapping[str, Tensor], name: str, absent: str) -> str:
        return f"{tensors[name].dtype} {[*tensors[name].shape]}" if name in tensors else absent

    for name in [*expected, *saved]:
        needed, found = describe(expected, name, "left out"), describe(saved, name, "missing")
        if needed != found:
            raise ConfigError(
                f"{source} does not fit the settings of its run: {name} is {found}, and must be "
                f"{needed}"
            )
    parameter_names = {PREFIX + name for name, _ in agent.named_parameters()}
    for name, value in saved.items():
        # buffers may hold infinity, as the length of a path that does not exist; parameters may not
        finite_part = value if name in parameter_names else value[~value.isinf()]
        files.check_finite(source, name, finite_part)
    agent.load_state_dict({name.removeprefix(PREFIX): value for name, value in saved.items()})


def load(
    run: Path | str, device: torch.device | str = "cpu", config: Config | None = None, *,
    imports: Sequence[str] = (), trust: bool = False, compile: bool = False,
) -> Agent:  # fmt: skip
    """The agent of a run, ready to act. Its weights take no gradient, which makes planning faster;
    `agent.requires_grad_()` makes them learn. `config`: settings other than those of its training.
    Code that the folder names is imported only if it is among `imports` (files x.py or modules), or
    with `trust`. `compile`: plans are made by functions that are compiled when they are first
    called, once for each number of environments, candidates and steps."""
    check_path("run", run)
    check_device(device)
    run = Path(run)
    config = config or config_of(run, imports, trust)
    newest = checkpoint.latest(run)
    _, shapes = checkpoint.contents(newest)
    failed = "holds settings from which no agent can be built"
    with files.one_line_errors(run / "config.json", failed):
        spec, weight_bytes = spec_of(run, config), 8 * sum(map(prod, shapes.values()))
        # it may take no more memory than its checkpoint suggests
        with AllocationLimit(MEMORY_MARGIN + 2 * weight_bytes):
            agent = build(config, spec)
            check_planning(config, spec, agent)
    tensors, _ = checkpoint.load(newest, prefix=PREFIX)
    load_weights(agent, tensors, newest)
    if compile:
        agent.start_compilation()
    return agent.to(device).eval().requires_grad_(False)


class AllocationLimit(TorchFunctionMode):
    """Within it, ConfigError where new tensors (weights, buffers) take more than `max_bytes`
    together: a model is refused before its memory is filled."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self.max_bytes, self.allocated = max_bytes, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not any(isinstance(arg, Tensor) for arg in args):
            self.allocated += result.nbytes
            if self.allocated > self.max_bytes:
                raise ConfigError(
                    f"the agent would take more than {self.max_bytes // files.MIB} MiB, and its "
                    "checkpoint holds less: the sizes in the settings must be those of the weights"
                )
        return result
