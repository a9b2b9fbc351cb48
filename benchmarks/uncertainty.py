"""The value of a model of uncertainty: windy rooms with and without a latent variable, and planning
by the mean or by the worst of sampled futures.

    python benchmarks/uncertainty.py --seeds 3 --episodes 100
    python benchmarks/uncertainty.py --only winds

Every seed has a pit of its own. Success is to reach the goal at any step, because gusts move the
agent away from it. Missing agents are trained into runs/uncertainty, where results are kept, too: a
command that was stopped continues with what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from study import Study, Table, main, mean_and_seeds

import ami_agent as ami
from ami_agent import components
from ami_agent.adapters.env import EnvConfig
from ami_agent.config import override
from ami_agent.evaluation.evaluate import EpisodeResults, run_many
from ami_agent.evaluation.policies import (
    PolicyFactory,
    agent_policy_factory,
    make_expert_policy,
    make_random_policy,
)
from ami_agent.training import TrainHierarchy

SPARSE = components.SparseLatentConfig(size=4)
LATENTS = {
    "none": (None, 0.0),
    "gaussian": (components.GaussianLatentConfig(), 0.01),
    "sparse": (SPARSE, 0.001),
    "discrete": (components.CategoricalLatentConfig(), 0.0),
    "quantized": (components.QuantizedLatentConfig(), 0.0),
}
"""Latent variables, and the weights of their KL terms."""

GUST_PROBS = (0.2, 0.4)
"""Probabilities of a gust in a step."""

LEDGE = "0.1 0.06 ledge"
"""An environment in which risk-averse plans differ: the probability of a gust, the mobility in the
pit, which the agent leaves in seven steps, and a short ledge beside it. Falls are too rare to cost
as much as the detour on average, but not in the worst case."""

ABOVE = {
    "above": components.HierarchicalJEPAConfig(steps_per_level=(4,)),
    "unsure": components.HierarchicalJEPAConfig(
        steps_per_level=(4,), level=components.JEPALevelConfig(latent=SPARSE)
    ),
}
"""Learned levels above, without and with a latent variable of their own."""


class Winds(Study):
    """Agents with names like "sparse 0.2": a latent variable, and the probability of a gust; then,
    optionally, the mobility in the pit, the layout of the passes, and a learned level above in
    place of landmarks."""

    def of_seed(self, name: str, seed: int) -> ami.Config:
        latent, wind, *more = name.split()
        config = self.config("windy-rooms")
        options: dict[str, Any] = {"layout_seed": seed, "gust_prob": float(wind)}
        latent_config, kl_weight = LATENTS[latent]
        changes = {
            "stages.distill_policy": None,
            "actor.policy_proposal": None,
            "world_model.latent": latent_config,
            "stages.train_jepa.weights.kl": kl_weight,
        }
        for part in more:
            if part in ABOVE:
                changes["actor.subgoals"] = ABOVE[part]
                changes["stages.select_landmarks"] = None
                changes["stages.train_hierarchy"] = TrainHierarchy()
            elif part == "ledge":  # it is an eighth as wide as the pit is high: a finer world model
                options["pit_layout"] = part
                changes["world_model.dynamics.num_frequencies"] = 64
                changes["world_model.dynamics.frequency_scale"] = 4.0
                steps = config.stages["train_jepa"].optim.steps
                changes["stages.train_jepa.optim.steps"] = 2 * steps
            else:
                options["pit_mobility"] = float(part)
        for option, value in options.items():
            changes |= {f"{env}.options.{option}": value for env in ("env", "eval_env")}
        return override(config, changes)

    def run_policy(
        self, name: str, key: str, make_policy: Callable[[ami.Agent], PolicyFactory]
    ) -> list[Any]:
        """The summary of a policy's episodes, for every seed."""

        def evaluate(agent: ami.Agent, env: EnvConfig, first_seed: int) -> Any:
            started = time.perf_counter()
            results = run_many(make_policy(agent), env, self.episodes, first_seed, agent.device)
            return summary(results, time.perf_counter() - started, env)

        return self.of_agents(name, key, evaluate)

    def plan(self, name: str, alpha: float, *, flat: bool = False) -> list[Any]:
        """The summary of Mode-2 that plans by the CVaR at level `alpha`."""

        def make_policy(agent: ami.Agent) -> PolicyFactory:
            if flat:
                agent.subgoals = None
            task_spec = replace(agent.task_spec("reach"), cvar_alpha=alpha)
            return agent_policy_factory(agent, "plan", task_spec)

        key = f"plan {alpha} flat" if flat else f"plan {alpha}"
        return self.run_policy(name, key, make_policy)

    def oracle(self, name: str) -> list[Any]:
        return self.run_policy(name, "oracle", lambda _: make_expert_policy)


def summary(results: EpisodeResults, seconds: float, env: EnvConfig) -> dict[str, float]:
    """Percent of episodes with success and with a fall, mean steps to the goal, milliseconds."""
    with closing(env.build(1)) as single:
        actions = len(results.success) * single.unwrapped.max_episode_steps
    return {
        "success": 100 * float(results.success.float().mean()),
        "fell": 100 * float((results.signal_sums[:, -1] > 0).float().mean()),
        "steps": float(results.steps.nanmean()),
        "ms": 1000 * seconds / actions,
    }


COLUMNS = {
    "success %": 0,
    "fell %": 0,
    "steps to the goal": 1,
    "ms a step, with the environment": 2,
}
"""Of a summary, and their digits."""


def row(*labels: str, found: list[Any]) -> list[str]:
    by_key = zip(*(summary.values() for summary in found), strict=True)
    return [*labels, *map(mean_and_seeds, by_key, COLUMNS.values())]


def by_wind(study: Winds) -> Table:
    """The recipe's latent variable, none, and the oracle, by the probability of a gust."""
    rows = []
    for prob in GUST_PROBS:
        for latent in ("none", "sparse"):
            rows.append(row(str(prob), latent, found=study.plan(f"{latent} {prob}", 1.0)))
        rows.append(row(str(prob), "oracle", found=study.oracle(f"none {prob}")))
    return ["probability of a gust", "latent variable", *COLUMNS], rows


def by_latent(study: Winds) -> Table:
    """Every kind of latent variable, beside random actions."""
    prob = GUST_PROBS[0]
    rows = [row(latent, found=study.plan(f"{latent} {prob}", 1.0)) for latent in LATENTS]
    random = study.run_policy(f"none {prob}", "random", lambda _: make_random_policy)
    return ["latent variable", *COLUMNS], [*rows, row("random", found=random)]


def by_risk(study: Winds) -> Table:
    """Planning by the mean and by the worst future, where gusts are rare and falls cost time."""
    rows = [
        row("none", "mean", found=study.plan(f"none {LEDGE}", 1.0)),
        row("sparse", "mean", found=study.plan(f"sparse {LEDGE}", 1.0)),
        row("sparse", "worst", found=study.plan(f"sparse {LEDGE}", 0.0)),
        row("oracle", "", found=study.oracle(f"none {LEDGE}")),
    ]
    return ["latent variable", "future planned by", *COLUMNS], rows


def by_level(study: Winds) -> Table:
    """The same lowest level below no other level, landmarks, and learned levels without and with a
    latent variable of their own."""
    sparse = f"sparse {GUST_PROBS[1]}"
    rows = [
        row("none", found=study.plan(sparse, 1.0, flat=True)),
        row("landmarks", found=study.plan(sparse, 1.0)),
        row("learned", found=study.plan(f"{sparse} above", 1.0)),
        row("learned, with a latent variable", found=study.plan(f"{sparse} unsure", 1.0)),
    ]
    return ["level above", *COLUMNS], rows


TABLES: Mapping[str, Callable[[Winds], Table]] = {
    "winds": by_wind,
    "risk": by_risk,
    "latents": by_latent,
    "levels": by_level,
}


if __name__ == "__main__":
    main(__doc__, Winds, Path("runs/uncertainty"), TABLES)
