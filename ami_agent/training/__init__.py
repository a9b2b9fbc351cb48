"""The stages of training: what each learns, its loss and its own checks.

A stage is a dataclass of settings whose `start` makes a `StageRun`. The run takes one small step
per `update`, and can be saved and resumed between any two of them (`state_dict`).
"""

from ami_agent.training.actor_critic import OfflineActorCritic, OnlineActorCritic
from ami_agent.training.base import Stage, StageRun
from ami_agent.training.collect import CollectBehaviour, CollectWithPlanner, LoadDataset
from ami_agent.training.critics import TrainQuasimetric, TrainValue
from ami_agent.training.hierarchy import SelectLandmarks, TrainHierarchy
from ami_agent.training.jepa import FinetuneDynamics, TrainJEPA
from ami_agent.training.path_distillation import DistillLandmarkPaths, DistillShortestPaths
from ami_agent.training.policy import AmortizePlanning, DistillPlanner, GoalConditionedBC
from ami_agent.training.pretrain import PretrainMasked

__all__ = [
    "AmortizePlanning",
    "CollectBehaviour",
    "CollectWithPlanner",
    "DistillLandmarkPaths",
    "DistillPlanner",
    "DistillShortestPaths",
    "FinetuneDynamics",
    "GoalConditionedBC",
    "LoadDataset",
    "OfflineActorCritic",
    "OnlineActorCritic",
    "PretrainMasked",
    "SelectLandmarks",
    "Stage",
    "StageRun",
    "TrainHierarchy",
    "TrainJEPA",
    "TrainQuasimetric",
    "TrainValue",
]
