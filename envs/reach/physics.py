"""How MuJoCo moves an arm: the action is a torque on each joint, and friction slows both down."""

from __future__ import annotations

import torch
from torch import Tensor

from ..mujoco import Simulator, compiled
from ..plane import clip_to_box
from .arms import BEND, LINK, Arm, turn

STEP = 0.1  # seconds
SUBSTEPS = 10
TERMINAL = 0.3  # radians a step that a full torque comes to, where nothing else turns a joint
DRAG = (1.5, 0.3)  # of shoulder and elbow: stretched out, about what links lose in Maze

MJCF = f"""
<mujoco>
  <compiler angle="radian"/>
  <option timestep="{STEP / SUBSTEPS}" gravity="0 0 0"><flag contact="disable"/></option>
  <default><geom type="capsule" fromto="0 0 0 {LINK} 0 0" size="0.04" mass="1"/></default>
  <worldbody>
    <body>
      <joint name="shoulder" type="hinge" axis="0 0 1" damping="{DRAG[0]}"/>
      <geom/>
      <body pos="{LINK} 0 0">
        <joint name="elbow" type="hinge" axis="0 0 1" damping="{DRAG[1]}" range="-{BEND} {BEND}"/>
        <geom/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="shoulder" gear="{DRAG[0] * TERMINAL / STEP}"/>
    <motor joint="elbow" gear="{DRAG[1] * TERMINAL / STEP}"/>
  </actuator>
</mujoco>
"""


class Arms:
    """The physics of arms."""

    def __init__(self) -> None:
        """Raises ImportError where there is no MuJoCo."""
        self.model = compiled(MJCF)
        self.simulator = Simulator(self.model, SUBSTEPS)

    def __call__(self, arm: Arm, actions: Tensor) -> Arm:
        """Actions [B, 2] -> arms one step later."""
        models, torque = [self.model] * len(actions), clip_to_box(actions, 1.0)
        angle, speed = self.simulator(models, arm.angle, arm.pace / STEP, torque)
        shoulder, elbow = angle.unbind(-1)
        return Arm(torch.stack([turn(shoulder), elbow], -1), STEP * speed, arm.angle)
