"""What masked pretraining alone teaches an encoder: probes of the true factors, before any world
model is trained. `python benchmarks/masked_pretraining.py two-rooms-distracted`"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console

from ami_agent import recipes
from ami_agent.components import (
    ImageEncoderConfig,
    OnlineTargetConfig,
    PatchTransformerEncoderConfig,
    SpatialEncoderConfig,
    StopGradientTargetConfig,
)
from ami_agent.config import Config, build, override
from ami_agent.logger import print_table
from ami_agent.probing import data, metrics
from ami_agent.probing.probe import fit_probe, spectrum, states_of
from ami_agent.probing.scorecard import flatten_obs
from ami_agent.train import stage_seed
from ami_agent.training import CollectBehaviour, PretrainMasked
from ami_agent.training.jepa import adapt_units
from ami_agent.training.optim import OptimConfig
from ami_agent.training.pretrain import MaskedLossWeights

IMAGES = {"env.options.obs_type": "image", "eval_env.options.obs_type": "image"}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "two-rooms-distracted": {},
    "reach": {**IMAGES, "perception": ImageEncoderConfig(patch=4)},
}
"""Recipes with images, and their changes."""
PREDICTION = MaskedLossWeights()
STAGES: Mapping[str, Mapping[str, Any]] = {
    "I-JEPA": {"weights": PREDICTION},
    "tubes of 4 frames": {"num_frames": 4, "weights": PREDICTION},
    "VICReg, no EMA": {"target_encoder": OnlineTargetConfig()},
    "EMA and VICReg": {},
    "stopped gradient": {"target_encoder": StopGradientTargetConfig(), "weights": PREDICTION},
    "EMA and flow": {"num_frames": 2, "weights": MaskedLossWeights(flow=1.0)},
}


@dataclass(frozen=True)
class Flags:
    recipe: tyro.conf.Positional[str] = "two-rooms-distracted"
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 400
    batch_size: int = 64
    """Images of an update."""
    encoder: str = ""
    """PatchTransformer or Spatial instead of the recipe's."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(name="only")] = ()
    """Variants; all if not given."""


def main(flags: Flags) -> None:
    console = Console(width=160)
    variants = {name: STAGES[name] for name in flags.only or STAGES}
    scores: dict[str, list[dict[str, float]]] = {}
    for seed in flags.seeds:
        config = config_of(flags)
        spec = config.env.build(1).spec
        agent = build(config, spec, seed=seed, num_envs=300, buffer_size=33)
        collect = config.collect.start(agent, config.env, stage_seed(seed, "collect"))
        while collect.step < collect.total:
            collect.update()
        collect.finish()
        sets = [data.collect_trajectories(config.eval_env, 1000 * seed + i) for i in (0, 500)]
        observations = [flatten_obs(part.obs, seed) for part in sets]
        scores.setdefault("pixels, projected", []).append(score(sets, observations))
        for name, changes in {"untrained": None, **variants}.items():
            begun = time.monotonic()
            learner = build(config, spec, seed=seed)
            learner.replay_buffer = agent.replay_buffer
            if changes is not None:
                batch_size = flags.batch_size // changes.get("num_frames", 1)
                optim = OptimConfig(steps=flags.steps, batch_size=batch_size)
                stage = PretrainMasked(optim=optim, **changes)
                run = stage.start(learner, config.env, stage_seed(seed, "pretrain"))
                while run.step < run.total:
                    run.update()
            else:
                adapt_units(learner, learner.replay_buffer)
            learner.eval()
            found = score(sets, [states_of(learner, part.obs) for part in sets])
            scores.setdefault(name, []).append(found)
            seconds = time.monotonic() - begun
            console.print(f"{name}, seed {seed}: {found}, {seconds:.0f} s")
    columns = ["", "linear probe", "by seed", "nearest neighbours", "by seed", "mean std", "rank"]
    rows = []
    for name, found in scores.items():
        table = {key: torch.tensor([each[key] for each in found]) for key in found[0]}
        by_seed = {k: " ".join(f"{v:.2f}" for v in t.tolist()) for k, t in table.items()}
        mean = {key: float(values.mean()) for key, values in table.items()}
        rows.append([
            name, mean["linear"], by_seed["linear"], mean["neighbours"], by_seed["neighbours"],
            mean["std"], mean["rank"],
        ])  # fmt: skip
    title = f"{flags.recipe} {flags.encoder}, {flags.steps} updates of {flags.batch_size} images"
    print_table(console, title, columns, rows)


def config_of(flags: Flags) -> Config:
    """The recipe with 300 episodes of 32 steps."""
    config = override(recipes.recipe(flags.recipe), RECIPES[flags.recipe])
    options = {**config.collect.options, "max_episode_steps": 32}
    collect = CollectBehaviour(num_envs=300, steps=32, options=options)
    config = override(config, {"stages": {"collect": collect}})
    side = next(iter(config.env.build(1).spec.shapes.values()))[1]
    patch = 5 if side % 4 else 4
    if flags.encoder == "PatchTransformer":
        config = override(config, {"perception": PatchTransformerEncoderConfig(patch=patch)})
    if flags.encoder == "Spatial":
        config = override(config, {"perception": SpatialEncoderConfig(patch=patch)})
    return config


def score(sets: list[data.ProbeTrajectories], states: list[torch.Tensor]) -> dict[str, float]:
    """Variance of the varying factors that probes explain, fitted on one set and read on the
    other, and what tells a collapse."""
    factors = [part.factors.flatten(0, 1) for part in sets]
    varies = factors[0].amax(0) - factors[0].amin(0) > 1e-6
    known, true = (part[:, varies] for part in factors)
    scale = states[0].std(0).mean().clamp_min(1e-12)
    known_states, test_states = (part / scale for part in states)
    found = spectrum(states[1])
    return {
        "linear": metrics.explained_variance(
            fit_probe(known_states, known).read(test_states), true
        ),
        "neighbours": metrics.explained_variance(
            metrics.knn_read(known_states, known, test_states), true
        ),
        "std": found["std_mean"],
        "rank": found["effective_rank"],
    }


if __name__ == "__main__":
    main(tyro.cli(Flags, args=sys.argv[1:]))
