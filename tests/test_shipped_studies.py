"""The shipped studies of the objective are what they are called, and can be carried out."""

from __future__ import annotations

from pathlib import Path

import pytest

import ami_agent as ami
from ami_agent.ablation.variants import load_configs, study_question
from ami_agent.cli.command_flags import setting_help
from ami_agent.config import override
from ami_agent.config_io import differences, to_json
from ami_agent.train import check
from ami_agent.training import TrainJEPA
from tests.conftest import error_line

FILE = Path(__file__).parent.parent / "benchmarks" / "objectives.py"


@pytest.mark.parametrize(
    "study", ["collapse", "published", "terms", "fixed", "stand_ins", "vicreg_paper"]
)
def test_every_variant_can_be_trained_and_differs_in_the_objective_alone(study, tmp_path):
    found = load_configs(f"{FILE}:{study}")
    base = next(iter(found.values()))
    for name, config in found.items():
        check(config, tmp_path / name, 0, False)
        assert override(config, {"stages.train_jepa": base.find(TrainJEPA)}) == base, name


@pytest.mark.parametrize("study", ["published", "terms", "fixed"])
def test_the_published_ablation_removes_one_term_at_a_time(study):
    whole, *others = load_configs(f"{FILE}:{study}").values()
    taken = [
        [
            n
            for n, w in vars(whole.stages["train_jepa"].weights).items()
            if w != vars(o.stages["train_jepa"].weights)[n]
        ]
        for o in others
    ]
    assert taken == [["variance"], ["covariance"], ["temporal_similarity"], ["inverse_dynamics"]]
    assert all(
        vars(o.stages["train_jepa"].weights)[n] == 0 for o, (n,) in zip(others, taken, strict=True)
    )


@pytest.mark.parametrize("study", ["collapse", "stand_ins", "published"])
def test_the_study_question_and_the_meaning_of_each_setting_are_reported(study):
    assert len(study_question(f"{FILE}:{study}")) > 50
    base, *others = load_configs(f"{FILE}:{study}").values()
    for other in others:
        changes = differences(to_json(other), to_json(base))
        assert changes
        for change in changes:
            assert setting_help(other, change.partition(" is ")[0]), change


def test_the_description_of_a_setting_is_its_meaning():
    config = ami.recipes.two_rooms()
    assert "action predicted" in setting_help(config, "stages.train_jepa.weights.inverse_dynamics")
    assert setting_help(config, "actor.planner._type").startswith(
        "Adam on the actions of several candidates"
    )
    assert setting_help(config, "env.options.max_episode_steps").startswith(
        "Further keyword arguments"
    )
    assert setting_help(config, "nothing.of.that") == ""


def test_studies_are_named_by_file_and_function(capsys):
    assert "no function 'nothing'" in error_line(capsys, "ablate", f"{FILE}:nothing")


def test_the_variants_of_pretraining_differ_in_that_stage_alone(tmp_path):
    found = load_configs(f"{FILE}:pretraining")
    base = found.pop("no pretraining")
    for name, config in found.items():
        check(config, tmp_path / name, 0, False)
        assert override(config, {"stages.pretrain": None}) == base


def test_the_study_of_vicregs_paper_has_its_target_encoders_and_terms():
    def kind(stage: TrainJEPA) -> tuple[str, float, float, float]:
        target, weights = type(stage.target_encoder).__name__, stage.weights
        name = target.removesuffix("TargetConfig")
        return name, weights.variance, weights.covariance, weights.byol

    found = load_configs(f"{FILE}:vicreg_paper")
    assert {name: kind(config.find(TrainJEPA)) for name, config in found.items()} == {
        "VICReg": ("Online", 16, 8, 0),
        "VICReg, no variance": ("Online", 0, 8, 0),
        "VICReg, no covariance": ("Online", 16, 0, 0),
        "VICReg, neither": ("Online", 0, 0, 0),
        "BYOL": ("EMA", 0, 0, 1),
        "BYOL and variance": ("EMA", 16, 0, 1),
        "SimSiam": ("StopGradient", 0, 0, 1),
        "SimSiam and variance": ("StopGradient", 16, 0, 1),
    }
