"""Lessons: what each box learns from, in the order in which they are taken.

A lesson is a setting; `begin` makes the pupil that does it. A pupil takes one small step per
`update` and can be put away and taken up again in the middle (`state_dict`).
"""

from ami_agent.lessons.base import Idle, Lesson, NoLesson, Pupil
from ami_agent.lessons.critic import Bootstrap, Separate, ShortestPaths
from ami_agent.lessons.foresight import Foresee
from ami_agent.lessons.hierarchy import Ascend, Survey
from ami_agent.lessons.interact import Interact
from ami_agent.lessons.life import Live, Practise
from ami_agent.lessons.policy import Amortise, Distil, Retrace
from ami_agent.lessons.recorded import Recorded
from ami_agent.lessons.rehearse import Rehearse
from ami_agent.lessons.world_model import Predict, Refine

__all__ = [
    "Amortise",
    "Ascend",
    "Bootstrap",
    "Distil",
    "Foresee",
    "Idle",
    "Interact",
    "Lesson",
    "Live",
    "NoLesson",
    "Practise",
    "Predict",
    "Pupil",
    "Recorded",
    "Refine",
    "Rehearse",
    "Retrace",
    "Separate",
    "ShortestPaths",
    "Survey",
]
