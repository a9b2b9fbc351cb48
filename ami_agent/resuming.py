"""With which settings a run may be resumed: those of stages that have not begun may be changed."""

from __future__ import annotations

from pathlib import Path

from ami_agent import checkpoint, runs, settings
from ami_agent.build import Config, capacity, lessons
from modules.types import UnusableInput


def check_resumable(run: Path, config: Config, seed: int) -> None:
    """Raises UnusableInput for a difference from what the run was started with, unless it is a
    setting of a stage that has not begun."""
    before = runs.config_of(run)
    begun, refused = _begun(run), []
    for difference in changes(before, config):
        stage = difference.partition(".")[0].partition(" ")[0]
        if stage not in lessons(config):
            refused.append(difference)
        elif stage in begun:
            refused.append(f"{difference}, but the stage {stage} has begun")
    seeds = {"seed": runs.manifest_of(run)["seed"]}
    refused += settings.differences(seeds, {"seed": seed})
    if refused:
        raise UnusableInput(f"{run} can't be resumed with other settings: --{refused[0]}")
    if begun and capacity(before) != capacity(config):
        raise UnusableInput(
            f"{run} can't be resumed with other settings: its replay buffer holds "
            f"{capacity(before)} steps of each environment, and now {capacity(config)} would be "
            "needed (life.steps, practice.steps and interact.steps decide it)"
        )


def adopt(run: Path, config: Config) -> list[str]:
    """Writes down settings that were changed, in config.json and, as a note, in manifest.json;
    returns the changes."""
    changed = changes(runs.config_of(run), config)
    if changed:
        known = runs.manifest_of(run)
        known["changed on resume"] = [*known.get("changed on resume", []), *changed]
        runs.write_json(run / "manifest.json", known)
        runs.write_json(run / "config.json", settings.to_json(config))
    return changed


def changes(before: Config, now: Config) -> list[str]:
    """What is different now, one phrase for each setting."""
    return settings.differences(settings.to_json(before), settings.to_json(now))


def _begun(run: Path) -> set[str]:
    """The stages that were begun, and can't be begun again."""
    if not checkpoint.checkpoints(run):
        return set()
    facts, tensors = checkpoint.contents(checkpoint.latest(run))
    reached = facts.get("lesson")
    if not isinstance(reached, int):
        raise UnusableInput(f"{run} does not say how far it came: it can't be resumed")
    if any(name.startswith("pupil.") for name in tensors):
        reached += 1
    if (run / "memory").is_dir():  # it may have been kept just before the process was killed
        kept, _ = checkpoint.contents(run / "memory")
        reached = max(reached, int(kept.get("lesson", 0)))
    return set(list(lessons(runs.config_of(run)))[:reached])
