"""Memory: short-term memory within an episode, and the replay buffer (LeCun 2022, 3.6)."""

from modules.memory.replay_buffer import ALL_PARTS, BY_ENV, OBS_ONLY, Parts, ReplayBuffer
from modules.memory.short_term import (
    MAX_STATES,
    AttentionMemory,
    AttentionMemoryConfig,
    EpisodeMemory,
    GRUMemory,
    GRUMemoryConfig,
    NoMemory,
    NoMemoryConfig,
    ReferenceObservations,
    ShortTermMemory,
    unroll_memory,
)
from modules.memory.storage import can_store

__all__ = [
    "ALL_PARTS",
    "BY_ENV",
    "MAX_STATES",
    "OBS_ONLY",
    "AttentionMemory",
    "AttentionMemoryConfig",
    "EpisodeMemory",
    "GRUMemory",
    "GRUMemoryConfig",
    "NoMemory",
    "NoMemoryConfig",
    "Parts",
    "ReferenceObservations",
    "ReplayBuffer",
    "ShortTermMemory",
    "can_store",
    "unroll_memory",
]
