"""A study: all variants are trained alike, no figure is lost, no more is claimed than follows."""

from __future__ import annotations

import csv
import gc
import io
import json
import multiprocessing
import os
import re
import signal
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from rich.console import Console
from scipy import stats

import ami_agent.cli.main as cli
from ami_agent import recipes
from ami_agent.ablation import (
    ProcessPool,
    Ray,
    Serial,
    Study,
    StudyPlan,
    executors,
    page,
    removable,
    run_study,
    variants,
    without,
)
from ami_agent.ablation.executors import Job, JobResult, run_job
from ami_agent.ablation.stats import (
    Difference,
    Measure,
    effect_sentence,
    interquartile_mean,
    minimal_detectable_effect,
    paired_difference,
    probability_of_improvement,
    seeds_needed,
)
from ami_agent.adapters.env import EnvConfig
from ami_agent.agent import Agent
from ami_agent.cli.command_flags import setting_help
from ami_agent.config import override
from ami_agent.storage.run_dir import last_metrics
from ami_agent.training import OfflineActorCritic
from ami_agent.user_components import class_name
from ami_agent.validate import check_stages
from modules.types import ConfigError
from tests.conftest import error_line, tiny_gym

ROOT = Path(__file__).parents[1]
RETURN = Measure("return", "return", 1.0, "the sum of rewards")


class Brittle(gymnasium.Env):
    """A position on a line; the environment may raise, or end its process."""

    observation_space = Box(-2, 2, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, fault="") -> None:
        self.fault = fault

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform(-1, 1))
        return np.array([self.place], np.float32), {}

    def step(self, action):
        if self.fault == "breaks":
            raise RuntimeError("the line broke")
        if self.fault == "kills":
            os.kill(os.getpid(), signal.SIGKILL)
        self.place = float(np.clip(self.place + 0.1 * action[0], -1, 1))
        return np.array([self.place], np.float32), 1 - abs(self.place), False, False, {}


gymnasium.register("ami-test/Brittle-v0", entry_point=Brittle, max_episode_steps=10)


def config_of(fault=""):
    env = EnvConfig(id="ami-test/Brittle-v0", options={"fault": fault} if fault else {})
    return tiny_gym(replace(env, imports=("tests.test_ablate",)))


def run(configs, out, executor=None, seeds=2):
    quiet = Console(quiet=True)
    plan = StudyPlan(name="lines", configs=configs, seeds=seeds, episodes=2)
    return run_study(plan, out=out, executor=executor or Serial(quiet), console=quiet)


def test_interquartile_mean_by_hand():
    found = interquartile_mean([0, 10, 20, 30, 40, 50, 60, 1000])
    assert found["mean"] == pytest.approx((20 + 30 + 40 + 50) / 4)
    low, high = found["ci95"]
    assert 0 <= low < found["mean"] < high
    assert interquartile_mean([3.0]) == {"mean": 3.0, "ci95": None}
    assert interquartile_mean([2.0, 2.0])["ci95"] == [2.0, 2.0]


def test_probability_of_improvement_by_hand():
    assert probability_of_improvement([1, 3], [2, 3])["mean"] == pytest.approx(
        (0 + 0 + 1 + 0.5) / 4
    )
    assert probability_of_improvement([5, 6, 7], [1, 2, 3]) == {"mean": 1.0, "ci95": [1.0, 1.0]}
    assert probability_of_improvement([5], [1])["ci95"] is None


def test_differences_are_paired_by_seed():
    base, variant = {0: 10.0, 1: 50.0, 2: 90.0, 7: 0.0}, {0: 8.0, 1: 47.0, 2: 86.0}
    gap = paired_difference(base, variant)
    assert (gap.seeds, gap.mean) == (3, pytest.approx(-3.0))
    assert gap.ci95 == pytest.approx((-3 - 4.3027 / 3**0.5, -3 + 4.3027 / 3**0.5), rel=1e-4)
    assert gap.significant
    assert not paired_difference(base, {0: 8.0, 1: 57.0, 2: 86.0}).significant
    within = paired_difference(base, variant, 5.0).ci95
    assert within == pytest.approx((-5.0, -3 + 4.3027 / 3**0.5), rel=1e-4)
    assert paired_difference({0: 1.0}, {0: 5.0}) == Difference(1, 4.0, None, None)


def test_predicted_numbers_of_seeds_find_a_difference_four_times_in_five():
    for effect in (1.0, 2.0):
        seeds = seeds_needed(effect)
        assert minimal_detectable_effect(seeds) <= effect < minimal_detectable_effect(seeds - 1)
        sampled = effect + np.random.default_rng(0).standard_normal((4000, seeds))
        found = (stats.ttest_1samp(sampled, 0, axis=1).pvalue < 0.05).mean()
        assert 0.75 < found < 0.95
    assert minimal_detectable_effect(1) == float("inf")


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        (
            Difference(3, -3.0, (-5.0, -1.0), 4),
            "3 return less than it [-5, -1] over 3 seeds, signi",
        ),
        (
            Difference(3, 3.0, (-5.0, 9.0), 40),
            "not significant; about 40 seeds would detect this difference",
        ),
        (Difference(1, 3.0, None, None), "with one seed, which gives no interval"),
        (Difference(0, None, None, None), "no seed of both finished"),
        (Difference(3, 0.0, (0.0, 0.0), None), "no different from it in any seed"),
        (
            Difference(3, 0.0, (-2.0, 2.0), None),
            "it on average [-2, 2] over 3 seeds, not significant",
        ),
    ],
)
def test_the_report_claims_no_more_than_the_figures_support(gap, said):
    assert said in effect_sentence("without", gap, RETURN, "it")


def test_the_verdict_of_a_comparison_is_one_word():
    differences = [
        (None, None),
        (3.0, None),
        (0.0, (0.0, 0.0)),
        (0.0, (-2.0, 2.0)),
        (2.0, (1.0, 3.0)),
    ]
    labels = [Difference(3, mean, ci95, None).label for mean, ci95 in differences]
    assert labels == ["unknown", "unknown", "no difference", "not significant", "significant"]


def test_a_mode_without_differences_takes_one_sentence(tmp_path):
    """Where no policy is trained, Mode-1 is as bad in every variant."""

    def figures(plan: float, react: float):
        return {
            mode: {
                "score": None,
                "final_success": {"mean": fraction},
                "episodes": 10,
                "baselines": {},
            }
            for mode, fraction in (("plan", plan), ("react", react))
        }

    reached = {"whole": (1.0, 0.0), "less": (0.5, 0.0), "least": (0.0, 0.0)}
    results = {
        name: [JobResult(name, seed, figures(*fractions)) for seed in range(2)]
        for name, fractions in reached.items()
    }
    done = Study(
        "some", dict.fromkeys(reached, config_of()), 2, results, dict.fromkeys(reached, ())
    )
    first, second, same = done.sentences()
    assert first.startswith("less, Mode-2: 50 points of success less than whole [-50, -50]")
    assert first.endswith("over 2 seeds, significant")
    assert second.startswith("least, Mode-2: 100 points")
    assert same == "Mode-1: no variant is different from whole in any seed"
    written = page.write(tmp_path / "index.html", done).read_text()
    assert f"{same}." in written
    assert '<b class="significant">significant</b> Mode-2: 50 points of success less' in written
    pairs = written.partition("Pairwise differences")[2].partition("Results")[0]
    assert pairs.count("<table>") == 1  # of the mode with differences
    assert '<tr><th>least</th><td><b class="significant">-100</b> [-100, -100]</td>' in pairs
    assert '<td><b class="significant">-50</b> [-50, -50]</td><td></td></tr>' in pairs
    assert "No stage of this study" not in written  # `actor_critic` does
    untrained = override(config_of(), {"stages.actor_critic": None, "stages.distill_policy": None})
    bare = replace(
        done, configs=dict.fromkeys(reached, untrained), question="What for?\n\nFor <this>."
    )
    written = page.write(tmp_path / "index.html", bare).read_text()
    assert f"{same}. No stage of this study trains the policy" in written
    assert 'What for?</p><p class="statement">For &lt;this&gt;.</p>' in written
    results["least"][1] = JobResult("least", 1, figures(0.0, 0.1))
    assert sum("Mode-1" in sentence for sentence in done.sentences()) == 2


def test_a_study_of_rewards_is_written_as_text_and_as_json(tmp_path):
    configs = variants(config_of(), ("train_jepa.interoception",), ())
    done = run(configs, tmp_path)
    output = json.loads((tmp_path / "study.json").read_text())
    assert output["measure"] == "return"
    assert list(output["variants"]) == ["gym", "without train_jepa.interoception"]
    for variant in output["variants"].values():
        assert [r["seed"] for r in variant["runs"]] == [0, 1]
        by_seed = [r["plan"]["return"]["mean"] for r in variant["runs"]]
        assert variant["plan"]["by_seed"] == by_seed
        assert variant["plan"]["interquartile_mean"]["mean"] == pytest.approx(sum(by_seed) / 2)
    gone = output["variants"]["without train_jepa.interoception"]["changes"]
    assert gone == [
        "stages.train_jepa.weights.interoception is 0.0, not 1",
        "stages.actor_critic.train_jepa.weights.interoception is 0.0, not 1",
    ]
    with (tmp_path / "study.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2
    one = next(r for r in rows if (r["variant"], r["seed"], r["mode"]) == ("gym", "1", "react"))
    expected = output["variants"]["gym"]["runs"][1]["react"]["return"]["mean"]
    assert float(one["return"]) == pytest.approx(expected)

    class Text(HTMLParser):
        texts: list[str]

        def handle_data(self, data):
            self.texts.append(data)

    parser = Text()
    parser.texts = []
    parser.feed(page.write(tmp_path / "index.html", done).read_text())
    text = " ".join(parser.texts)
    for sentence in done.sentences():
        assert sentence.removeprefix("without train_jepa.interoception, ") in text
    assert setting_help(configs["gym"], "stages.train_jepa.weights.interoception") in text
    assert "it has no description" in text  # the environment
    by_chance = done.results["gym"][0].metrics["plan"]["baselines"]["random"]["return"]["mean"]
    assert f"Baselines in the same episodes: random actions: {by_chance:.3g}." in text
    assert "stages.actor_critic.train_jepa.weights.interoception is 0.0, not 1" in text
    assert (tmp_path / "study.png").stat().st_size > 5000
    spread = last_metrics(tmp_path / "gym" / "1", "state")["std_mean"]
    assert done.run_infos["gym"][1].state["std_mean"] == spread > 0
    both = (run.state["std_mean"] for run in done.run_infos["gym"])
    assert f"spread of states {sum(both) / 2:.2f}; effective rank" in text
    assert last_metrics(tmp_path / "gym" / "1", "nothing") == last_metrics(tmp_path, "state") == {}
    steps = configs["gym"].stages["train_jepa"].optim.steps
    assert f", {steps} updates:  {setting_help(configs['gym'], 'stages.train_jepa')}" in text
    again = run(configs, tmp_path)
    assert again.to_dict() == done.to_dict()


def test_a_variant_that_fails_is_reported_and_the_others_are_trained_once(tmp_path):
    source = Path(__file__).read_text().splitlines()
    line = 1 + next(n for n, text in enumerate(source) if "the line broke" in text)
    configs = {"base": config_of(), "broken <b>": config_of("breaks")}
    done = run(configs, tmp_path)
    assert done.failures() == [
        f"broken <b>, seed {seed} failed: environment 'ami-test/Brittle-v0' failed in step: "
        f"RuntimeError: the line broke (test_ablate.py:{line})"
        for seed in range(2)
    ]
    assert len(done.values_by_seed("base", "plan")) == 2
    assert "broken <b>, Mode-2: no seed of both finished" in (done.sentences())
    written = page.write(tmp_path / "index.html", done).read_text()
    assert "broken &lt;b&gt;" in written
    assert "broken <b>" not in written
    stamp = (tmp_path / "base" / "0" / "manifest.json").stat().st_mtime_ns
    run(configs, tmp_path)
    assert (tmp_path / "base" / "0" / "manifest.json").stat().st_mtime_ns == stamp
    nothing = run({"broken": config_of("breaks"), "too": config_of("breaks")}, tmp_path / "other")
    assert nothing.sentences()[0] == "no run finished"
    with pytest.raises(ConfigError, match=r"no run finished; .*study\.json holds the errors"):
        nothing.check(tmp_path / "other")
    done.check(tmp_path)
    page.write(tmp_path / "other" / "index.html", nothing)


class Interrupted:
    """A user who interrupts after the first run."""

    def run(self, jobs):
        yield run_job(jobs[0], Console(quiet=True))
        raise KeyboardInterrupt


def test_an_interrupted_study_continues_where_it_stopped(tmp_path):
    configs = {"base": config_of(), "longer": override(config_of(), {"actor.receding_horizon": 2})}
    with pytest.raises(KeyboardInterrupt):
        run(configs, tmp_path, Interrupted(), seeds=1)
    first = tmp_path / "base" / "0" / "eval.json"
    stamp, marks = first.stat().st_mtime_ns, json.loads(first.read_text())
    assert not (tmp_path / "study.json").exists()
    done = run(configs, tmp_path, seeds=1)
    assert first.stat().st_mtime_ns == stamp
    output = json.loads((tmp_path / "study.json").read_text())
    assert output["variants"]["base"]["runs"] == [{"seed": 0, **marks}]
    assert not done.failures()


@pytest.mark.slow
def test_the_duration_of_a_study_is_reported_before_and_after(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def said(out, seeds=2):
        messages = Console(record=True, file=io.StringIO(), width=200)
        plan = StudyPlan(name="lines", configs={"all": config_of()}, seeds=seeds, episodes=2)
        run_study(plan, out=out, executor=Serial(messages), console=messages)
        return messages.export_text()

    first = said(tmp_path / "first")
    assert "the training time is unknown until the first run of gym finishes" in first
    worked, taken, at_once = re.search(
        r"(\d+) s of work in (\d+) s: (\d\.\d+) runs at a time", first
    ).groups()  # fmt: skip
    assert int(worked) <= int(taken)
    assert 0.5 < float(at_once) <= 1
    for number, seconds in enumerate([[10.0, 0.5], [20.0, 0.5], "forged"]):
        elsewhere = tmp_path / "runs" / "gym" / str(number)
        elsewhere.mkdir(parents=True)
        stages = dict(zip("ab", seconds, strict=True)) if number < 2 else seconds
        (elsewhere / "manifest.json").write_text(json.dumps({"seed": 0, "seconds": stages}))
        (elsewhere / "eval.json").write_text("{}")
    assert "about 31 s of training, as runs/gym/0 and 1 more took 16 s" in said(tmp_path / "other")
    again = said(tmp_path / "first", seeds=3)
    assert re.search(r"of training, as \S+first/all/0 and 1 more took", again)
    assert "of work" not in said(tmp_path / "first", seeds=3)


@pytest.fixture
def imported_once(monkeypatch):
    """The processes of a study come from one that has imported everything, rather than import it
    each; test_signals.py has a study whose processes begin as they do otherwise."""
    multiprocessing.set_forkserver_preload([__name__, "torch._dynamo"])
    server = multiprocessing.get_context("forkserver")
    names = {**vars(multiprocessing), "get_context": lambda method: server}
    monkeypatch.setattr(executors, "multiprocessing", SimpleNamespace(**names))


def test_a_process_that_dies_stops_no_other_process(imported_once, tmp_path):
    configs = {"base": config_of(), "deadly": config_of("kills")}
    done = run(configs, tmp_path / "two", ProcessPool(2), seeds=1)
    assert done.failures() == ["deadly, seed 0 failed: its process died"]
    single = run_job(
        Job("base", configs["base"], tmp_path / "one", 0, 2, "cpu"), Console(quiet=True)
    )
    assert single.metrics is not None
    assert done.values_by_seed("base", "plan") == {0: RETURN.value(single.metrics["plan"])}
    assert "collect" in (tmp_path / "two" / "base" / "0" / "log.txt").read_text()


def test_no_file_of_a_finished_run_is_kept(tiny, tmp_path):
    """Agents and stages refer to each other; with images, each run of a study holds gigabytes."""
    gc.disable()  # stands for the collector, which has too few objects here to run by itself
    try:
        done = run_job(Job("all", tiny, tmp_path, 0, 2, "cpu"), Console(quiet=True))
        assert not done.failure
        left = [kept for kept in gc.get_objects() if type(kept) is Agent]
        assert not any(
            kept.replay_buffer.num_envs == tiny.stages["collect"].num_envs for kept in left
        )
    finally:
        gc.enable()


def test_a_study_of_the_users_own_is_a_function_in_a_file(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import replace\n"
        "import ami_agent as ami\n"
        "def same():\n"
        "    return {'one': ami.recipes.two_rooms(), 'two': ami.recipes.two_rooms()}\n"
        "def single():\n"
        "    return {'one': ami.recipes.two_rooms()}\n"
        "def text():\n"
        "    return 'two rooms'\n"
    )
    for name, said in (
        ("same", "'two' is no different from 'one'"),
        ("single", "returns 1 Configs; a study compares at least 2"),
        ("text", "must return Configs by name, not str"),
        ("none", "has no function 'none' that returns the Configs of a study"),
    ):
        assert cli.main(["ablate", f"{file}:{name}"]) == 2
        assert said in capsys.readouterr().err
    assert cli.main(["ablate", f"{tmp_path / 'nowhere.py'}:same"]) == 2
    assert "to import" in capsys.readouterr().err


def test_a_study_of_a_recipe_for_any_environment_names_the_environment(monkeypatch):
    plans = {}

    def note(plan, out, **kwargs):
        plans[str(out)] = plan
        raise ConfigError("noted")

    monkeypatch.setattr(cli.ablation, "run_study", note)
    for name in ("gym", "two-rooms"):
        assert cli.main(["ablate", name, "--without", "policy_proposal"]) == 2
    assert [plan.name for plan in plans.values()] == ["gym in Pendulum-v1", "two-rooms"]
    assert plans["runs/ablate-gym"].question.endswith("of the recipe gym in Pendulum-v1?")


def test_a_hierarchy_is_swapped_with_the_stages_that_it_needs():
    maze, levels = recipes.recipe("maze"), recipes.recipe("maze-levels")
    for base, name in (
        (maze, "HierarchicalJEPA"),
        (levels, "LandmarkGraph"),
        (levels, "ImaginedLandmarkGraph"),
        (maze, "None"),
    ):
        swapped = variants(base, (), (f"subgoals={name}",))[f"subgoals={name}"]
        assert class_name(swapped.actor.subgoals) == name
        check_stages(swapped)
    assert variants(maze, (), ("subgoals=none",))["subgoals=none"] == without(maze, "hierarchy")


def test_a_component_that_is_absent_can_not_be_removed():
    with pytest.raises(ConfigError, match="--without goal_critic changes nothing in gym; it has"):
        without(recipes.gym(EnvConfig(id="CartPole-v1")), "goal_critic")


@pytest.mark.parametrize("name", ["two-rooms", "forage", "gym", "windy-rooms"])
def test_only_parts_that_a_recipe_has_are_offered(name):
    config = recipes.recipe(name)
    offered = removable(config)
    assert all(without(config, part) != config for part in offered)
    has_latent = config.world_model.latent is not None
    assert {part in offered for part in ("latent", "train_jepa.kl")} == {has_latent}
    assert ("drives" in offered) == bool(config.cost.drives)
    with pytest.raises(ConfigError, match="no such part") as refused:
        without(config, "?")
    assert str(refused.value).endswith(f"it has {', '.join(offered)}")


def test_components_that_do_not_fit_are_refused_before_training(tmp_path):
    base = recipes.gym(EnvConfig(id="CartPole-v1"))
    with pytest.raises(ConfigError, match="actions are choices"):
        run(variants(base, (), ("action_space=BoxActions",)), tmp_path / "study")
    assert not (tmp_path / "study" / "gym").exists()


def test_loss_terms_are_removed_from_the_online_objective_too():
    config = without(config_of(), "train_jepa.scaled_prediction")
    assert (
        config.stages["train_jepa"].weights.scaled_prediction
        == config.stages["actor_critic"].train_jepa.weights.scaled_prediction
        == 0
    )


def test_an_address_without_a_server_is_reported_at_once(tmp_path):
    pytest.importorskip("ray", reason="Ray is an extra")
    with pytest.raises(ConfigError, match="no Ray cluster answers there"):
        run({"one": config_of()}, tmp_path, Ray("127.0.0.1:9"), seeds=1)
    with pytest.raises(ConfigError, match="it must be HOST:PORT, or local"):
        run({"one": config_of()}, tmp_path, Ray("somewhere"), seeds=1)


def test_loss_terms_are_removed_from_the_offline_objective_too():
    config = recipes.recipe("gym")
    offline = override(
        config,
        {
            "stages.actor_critic": OfflineActorCritic(
                train_jepa=config.stages["actor_critic"].train_jepa
            )
        },
    )
    changed = without(offline, "train_jepa.scaled_prediction")
    assert changed.stages["actor_critic"].train_jepa.weights.scaled_prediction == 0


def test_a_folder_that_can_not_be_created_is_reported_before_training(tmp_path, capsys):
    (tmp_path / "file").touch()
    said = error_line(
        capsys, "ablate", "two-rooms", "--without", "goal_critic", "--out", tmp_path / "file" / "x"
    )
    assert f"{tmp_path / 'file'} is not a folder" in said
