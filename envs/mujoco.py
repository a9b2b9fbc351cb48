"""Many worlds of MuJoCo stepped together, as a function: what follows depends on what is given.

MuJoCo is an extra; nothing imports it before somebody makes such a world.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from mujoco import MjModel

MISSING = "this world needs MuJoCo: pip install 'ami-agent[mujoco]'"


def compiled(mjcf: str) -> MjModel:
    """A model from what is written in MJCF. Raises ImportError where there is no MuJoCo."""
    try:
        import mujoco
    except ImportError as error:
        raise ImportError(MISSING) from error
    return mujoco.MjModel.from_xml_string(mjcf)


class Simulator:
    """Steps bodies that positions and velocities say all about; on the host, whatever the device.

    Nothing is left over from one step for the next, neither a contact's forces nor a clock: a world
    lives the same life alone and in any batch.
    """

    def __init__(self, like: MjModel, substeps: int) -> None:
        """All models that will be stepped have the sizes of this one."""
        from mujoco import MjData
        from mujoco.rollout import Rollout

        self.substeps = substeps
        # Rather than a loop of mj_step over the worlds: of 100 balls a step took 46 microseconds
        # each in a loop, 41 in a rollout and 32 on two threads of it; of 2000 balls 69, 56 and 55;
        # of one alone 81 and 158. Both cores had other work too.
        threads = torch.get_num_threads()
        self._data = [MjData(like) for _ in range(threads)]
        self._rollout = Rollout(nthread=threads if threads > 1 else 0)

    def __call__(
        self, models: Sequence[MjModel], position: Tensor, velocity: Tensor, control: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The models of B worlds, positions [B, Q], velocities [B, V], and what actuators are told,
        [B, U] -> positions and velocities after the substeps."""
        moving = torch.cat([position, velocity], -1).double().cpu().numpy()
        clock = np.zeros((len(moving), 1))
        states, _ = self._rollout.rollout(
            models,
            self._data,
            np.concatenate([clock, moving], -1),
            control.double().cpu().numpy()[:, None],
            nstep=self.substeps,
        )
        end = torch.from_numpy(states[:, -1, 1:]).to(position)
        place, speed = end.split([position.shape[-1], velocity.shape[-1]], -1)
        return place, speed
