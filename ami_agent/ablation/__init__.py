"""Ablation studies: variants of a recipe, trained with the same seeds and budget, and compared.

`variants.py` makes the variants, `executors.py` trains and evaluates one, `run_study.py` all of
them; `study.py` holds the results, `stats.py` computes their statistics, `page.py` shows them.
"""

from __future__ import annotations

from ami_agent.ablation.executors import Executor, ProcessPool, Ray, Serial, parse_resources
from ami_agent.ablation.run_study import StudyPlan, print_study, run_study
from ami_agent.ablation.study import Study
from ami_agent.ablation.variants import (
    STUDY_CONFIGS,
    load_configs,
    removable,
    study_question,
    swap,
    variants,
    without,
)

__all__ = [
    "STUDY_CONFIGS",
    "Executor",
    "ProcessPool",
    "Ray",
    "Serial",
    "Study",
    "StudyPlan",
    "load_configs",
    "parse_resources",
    "print_study",
    "removable",
    "run_study",
    "study_question",
    "swap",
    "variants",
    "without",
]
