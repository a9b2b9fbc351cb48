"""MuJoCo, an extra, as a function: what comes next depends on positions and velocities alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from mujoco import MjModel


def import_mujoco() -> Any:
    """MuJoCo. Raises ImportError where it is missing."""
    try:
        import mujoco
    except ImportError as error:
        raise ImportError(
            "this environment needs MuJoCo: pip install 'ami-agent[mujoco]'"
        ) from error
    return mujoco


def compile_model(mjcf: str) -> MjModel:
    """The model that a text in MJCF describes. Raises ImportError where MuJoCo is missing."""
    return import_mujoco().MjModel.from_xml_string(mjcf)


class Simulator:
    """Steps B models together, on the host. Nothing is kept from one step for the next, neither a
    contact's forces nor a clock, so an environment does the same alone and in any batch."""

    def __init__(self, like: MjModel, substeps: int) -> None:
        """All models that will be stepped have the sizes of this one."""
        from mujoco import MjData
        from mujoco.rollout import Rollout

        self.substeps = substeps
        # Rather than a loop of mj_step over the environments: of 100 balls a step took 46
        # microseconds each in a loop, 41 in a rollout and 32 on two threads of it; of 2000 balls
        # 69, 56 and 55; of one alone 81 and 158. Both cores had other work too.
        threads = torch.get_num_threads()
        self._data = [MjData(like) for _ in range(threads)]
        self._rollout = Rollout(nthread=threads if threads > 1 else 0)

    def __call__(
        self, models: Sequence[MjModel], position: Tensor, velocity: Tensor, control: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The models of B environments, positions [B, Q], velocities [B, V] and controls [B, U] ->
        positions and velocities after the substeps."""
        start = torch.cat([position, velocity], -1).double().cpu().numpy()
        clock = np.zeros((len(start), 1))
        states, _ = self._rollout.rollout(
            models,
            self._data,
            np.concatenate([clock, start], -1),
            control.double().cpu().numpy()[:, None],
            nstep=self.substeps,
        )
        end = torch.from_numpy(states[:, -1, 1:]).to(position)
        new_position, new_velocity = end.split([position.shape[-1], velocity.shape[-1]], -1)
        return new_position, new_velocity
