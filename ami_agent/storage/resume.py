"""Which settings may differ when a run is resumed: those of stages that have not begun."""

from __future__ import annotations

from pathlib import Path

from ami_agent import config_io
from ami_agent.config import Config, buffer_steps
from ami_agent.storage import checkpoint, run_dir
from modules.types import ConfigError


def check_resumable(run: Path, config: Config, seed: int) -> None:
    """Raises ConfigError for a setting, or seed, other than the run was started with, unless it is
    a setting of a stage that has not begun."""
    before = run_dir.config_of(run)
    started, refused = _started_stages(run), []
    for difference in changed_settings(before, config):
        setting, _, values = difference.partition(" ")
        stage = setting.removeprefix("stages.").partition(".")[0]
        if stage not in config.stages:
            refused.append(f"{config_io.flag_of(setting)} {values}")
        elif stage in started:
            refused.append(
                f"{config_io.flag_of(setting)} {values}, but the stage {stage} has begun"
            )
    seeds = {"seed": run_dir.manifest_of(run)["seed"]}
    refused += [f"--{line}" for line in config_io.differences(seeds, {"seed": seed})]
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
    changed = changed_settings(run_dir.config_of(run), config)
    if changed:
        manifest = run_dir.manifest_of(run)
        manifest["changed on resume"] = [*manifest.get("changed on resume", []), *changed]
        run_dir.write_json(run / "manifest.json", manifest)
        run_dir.write_json(run / "config.json", config_io.to_json(config))
    return changed


def changed_settings(before: Config, now: Config) -> list[str]:
    """The differences, one phrase for each setting."""
    return config_io.differences(config_io.to_json(before), config_io.to_json(now))


def _started_stages(run: Path) -> set[str]:
    """The stages that have begun."""
    if not checkpoint.checkpoints(run):
        return set()
    metadata, tensors = checkpoint.contents(checkpoint.latest(run))
    num_started = metadata.get("stage_index")
    if not isinstance(num_started, int):
        raise ConfigError(f"{run} does not say in which stage it was: it can't be resumed")
    if any(name.startswith("stage_run.") for name in tensors):
        num_started += 1
    if (run / "memory").is_dir():  # saved just before the process was killed, perhaps
        buffer_metadata, _ = checkpoint.contents(run / "memory")
        num_started = max(num_started, int(buffer_metadata.get("stage_index", 0)))
    return set(list(run_dir.config_of(run).stages)[:num_started])
