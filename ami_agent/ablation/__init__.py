"""What each part is worth: variants of a recipe, the same seeds and budget for all, and statistics.

`variants.py` makes them, `jobs.py` carries one out, `course.py` all of them, `study.py` holds what
came of it, `verdict.py` says what follows, `page.py` shows it.
"""

from __future__ import annotations

from ami_agent.ablation.executors import Executor, ProcessPool, Ray, Serial
from ami_agent.ablation.run_study import print_study, run_study
from ami_agent.ablation.study import Study, table_rows
from ami_agent.ablation.variants import load_configs, study_question, swap, variants, without

__all__ = [
    "Executor",
    "ProcessPool",
    "Ray",
    "Serial",
    "Study",
    "load_configs",
    "print_study",
    "run_study",
    "study_question",
    "swap",
    "table_rows",
    "variants",
    "without",
]  # fmt: skip
