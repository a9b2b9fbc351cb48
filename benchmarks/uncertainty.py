"""What it is worth to know what can't be known: windy rooms with a latent variable and without one,
and with plans that fear the mean of what may come, its worst part, or the worst alone.

    python benchmarks/uncertainty.py --seeds 3 --episodes 100
    python benchmarks/uncertainty.py --only winds

Every seed has a pit of its own. Success is to come to the goal at any step: gusts carry off whoever
is there. Agents are trained into runs/uncertainty where they are not there yet, and figures found
once are kept beside them: a command that was stopped goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from study import Study, Table, report, told

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.components import (
    CategoricalLatentConfig,
    Flat,
    GaussianLatentConfig,
    HierarchicalJEPAConfig,
    JEPALevelConfig,
    NoLatentConfig,
    NoPolicyProposalConfig,
    SparseLatentConfig,
)
from ami_agent.config import override
from ami_agent.evaluation.evaluate import EpisodeResults, run_many
from ami_agent.evaluation.policies import (
    PolicyFactory,
    agent_policy_factory,
    make_expert_policy,
    make_random_policy,
)
from ami_agent.training import TrainHierarchy

LATENTS = {
    "none": (NoLatentConfig(), 0.0),
    "gaussian": (GaussianLatentConfig(), 0.01),
    "sparse": (SparseLatentConfig(size=4), 0.001),
    "discrete": (CategoricalLatentConfig(), 0.0),
}
"""And the weight of what they tell."""

TAILS = {"mean": 1.0, "worst": 0.0}
WINDS = (0.2, 0.4)
"""Chances of a gust in a step."""

GAMBLE = "0.1 0.06 ledge"
"""Where plans differ by what they fear: the same, a pit that one gets out of in seven steps, and a
short way past it on a ledge, from which a fall is likely enough to be feared and too rare to cost
as much as the detour. Where a fall is the end, nobody takes it."""

ABOVE = {
    "above": HierarchicalJEPAConfig(steps_per_level=(4,)),
    "unsure": HierarchicalJEPAConfig(
        steps_per_level=(4,), level=JEPALevelConfig(latent=SparseLatentConfig(size=4))
    ),
}
"""Learnt levels above, one that strides where it expects to and one that knows it can't tell."""


class Winds(Study):
    """Agents of names like "sparse 0.2": a latent variable, and the chance of a gust; then how fast
    one wades in the pit, what passes there are, and a learnt level above in the place of
    landmarks."""

    def of_seed(self, name: str, seed: int) -> ami.Config:
        latent, wind, *more = name.split()
        config = self.config("windy-rooms")
        options = {**config.env.options, "layout_seed": seed, "gust_prob": float(wind)}
        for part in more:
            if part in ABOVE:
                config = override(
                    config,
                    {
                        "actor.subgoals": ABOVE[part],
                        "stages.select_landmarks": None,
                        "stages.train_hierarchy": TrainHierarchy(),
                    },
                )
            elif part == "ledge":
                options["pit_layout"] = part
                config = _finer(config)
            else:
                options["pit_mobility"] = float(part)
        env = replace(config.env, options=options)
        box, information = LATENTS[latent]
        weights = replace(config.stages["train_jepa"].weights, kl=information)
        return override(config, {"env": env, "eval_env": env, "stages.distill_policy": None, "actor.policy_proposal": NoPolicyProposalConfig(), "world_model.latent": box, "stages.train_jepa.weights": weights})  # fmt: skip

    def lived(
        self, name: str, label: str, begin: Callable[[ami.Agent], PolicyFactory], **changes: Any
    ) -> Any:
        """Of every seed: percent that came to the goal, that fell, steps, and milliseconds."""

        def find(agent: ami.Agent, env: EnvConfig, start: int) -> Any:
            start_time = time.perf_counter()
            results = run_many(begin(agent), env, self.episodes, start, agent.device)
            return figures(results, time.perf_counter() - start_time, env)

        return self.of_agents(name, label, find, **changes)

    def planned(self, name: str, tail: float, *, flat: bool = False, **changes: Any) -> list[Any]:
        """Of Mode-2 that fears this share of the worst futures."""

        def begin(agent: ami.Agent) -> PolicyFactory:
            if flat:
                agent.subgoals = Flat()
            return agent_policy_factory(
                agent, "plan", replace(agent.task_spec("reach"), cvar_alpha=tail)
            )

        label = f"plan {tail} flat" if flat else f"plan {tail}"
        return self.lived(name, label, begin, **changes)


def _finer(config: ami.Config) -> ami.Config:
    """A world model that can tell where on a ledge it is, an eighth as wide as pits are high."""
    model, optim = config.world_model, config.stages["train_jepa"].optim
    sharp = replace(model.dynamics, num_frequencies=64, frequency_scale=4.0)
    longer = replace(optim, steps=2 * optim.steps)
    return override(
        config,
        {"world_model": replace(model, dynamics=sharp), "stages.train_jepa.optim": longer},
    )


def figures(results: EpisodeResults, seconds: float, env: EnvConfig) -> dict[str, float]:
    inner = env.build(1)
    actions = len(results.success) * inner.unwrapped.max_episode_steps
    inner.close()
    return {
        "success": 100 * float(results.success.float().mean()),
        "fell": 100 * float((results.signal_sums[:, -1] > 0).float().mean()),
        "steps": float(results.steps.nanmean()),
        "ms": 1000 * seconds / actions,
    }


def row(*names: str, found: Any) -> list[str]:
    keys = {"success": 0, "fell": 0, "steps": 1, "ms": 2}
    return [*names, *(told([f[key] for f in found], digits) for key, digits in keys.items())]


COLUMNS = ["success %", "fell %", "steps to the goal", "ms a step, world and all"]


def by_wind(study: Winds) -> Table:
    """The recipe's latent variable and none, and who knows the world, the windier the worse."""
    rows = []
    for wind in WINDS:
        for latent in ("none", "sparse"):
            found = study.planned(f"{latent} {wind}", 1.0)
            rows.append(row(str(wind), latent, found=found))
        known = study.lived(f"none {wind}", "oracle", lambda _: make_expert_policy)
        rows.append(row(str(wind), "oracle", found=known))
    return ["chance of a gust", "latent variable", *COLUMNS], rows


def by_latent(study: Winds) -> Table:
    """Every kind of latent variable, beside random motion."""
    rows = [row(latent, found=study.planned(f"{latent} {WINDS[0]}", 1.0)) for latent in LATENTS]
    rows.append(
        row("random", found=study.lived(f"none {WINDS[0]}", "random", lambda _: make_random_policy))
    )
    return ["latent variable", *COLUMNS], rows


def by_fear(study: Winds) -> Table:
    """The mean of what may come, and the worst of it, where gusts are rare and falls cost time."""
    rows = [row("none", "mean", found=study.planned(f"none {GAMBLE}", 1.0))]
    for label, tail in TAILS.items():
        rows.append(row("sparse", label, found=study.planned(f"sparse {GAMBLE}", tail)))
    known = study.lived(f"none {GAMBLE}", "oracle", lambda _: make_expert_policy)
    rows.append(row("oracle", "", found=known))
    return ["latent variable", "of what may come counts", *COLUMNS], rows


def by_level(study: Winds) -> Table:
    """What is above one and the same lowest level: nothing, landmarks, and learnt levels without
    and with a latent variable of their own."""
    sparse = f"sparse {WINDS[1]}"
    runs: dict[str, tuple[str, bool]] = {
        "none": (sparse, True),
        "landmarks": (sparse, False),
        "learnt": (f"{sparse} above", False),
        "learnt, with a latent variable": (f"{sparse} unsure", False),
    }
    rows = [
        row(label, found=study.planned(name, 1.0, flat=flat))
        for label, (name, flat) in runs.items()
    ]
    return ["level above", *COLUMNS], rows


CLAIMS: Mapping[str, Callable[[Winds], Table]] = {
    "winds": by_wind,
    "fear": by_fear,
    "latents": by_latent,
    "levels": by_level,
}


if __name__ == "__main__":
    report(__doc__, Winds, Path("runs/uncertainty"), CLAIMS)
