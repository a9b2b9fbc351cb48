"""What each part is worth: variants of a recipe, the same seeds and budget for all, and statistics.

`variants.py` makes them, `jobs.py` carries one out, `course.py` all of them, `study.py` holds what
came of it, `verdict.py` says what follows, `page.py` shows it.
"""

from __future__ import annotations

from ami_agent.ablate.course import show, study
from ami_agent.ablate.jobs import Alone, Cluster, Crew, Processes
from ami_agent.ablate.study import Study, rows
from ami_agent.ablate.variants import named, question, swap, variants, without

__all__ = [
    "Alone", "Cluster", "Crew", "Processes", "Study", "named", "question", "rows", "show",
    "study", "swap", "variants", "without",
]  # fmt: skip
