"""How MuJoCo moves a hand and a block: the action is a force on the hand, friction slows both down,
and where they touch one pushes the other."""

from __future__ import annotations

from torch import Tensor

from ..mujoco import Simulator, compiled
from ..plane import shrink_to_disk
from .things import BLOCK, HAND, RIM, Things

STEP = 0.1  # seconds
SUBSTEPS = 10
TICK = STEP / SUBSTEPS
TERMINAL = 0.06  # a step; what a full action comes to where nothing is in the way
MASS, BLOCK_MASS = 1.0, 0.3


def drag(mass: float, kept: float) -> float:
    """The friction by which a mass keeps such a share of its velocity from step to step."""
    return mass * (kept ** (-1 / SUBSTEPS) - 1) / TICK


DRAG, BLOCK_DRAG = drag(MASS, kept=0.6), drag(BLOCK_MASS, kept=0.1)

MJCF = f"""
<mujoco>
  <option timestep="{TICK}" gravity="0 0 0"/>
  <default>
    <geom type="sphere" condim="1" solref="{2 * TICK} 1.5"/>
    <joint type="slide" limited="true" solreflimit="{2 * TICK} 1.5"/>
  </default>
  <worldbody>
    <body>
      <joint name="x" axis="1 0 0" damping="{DRAG}" range="{HAND} {1 - HAND}"/>
      <joint name="y" axis="0 1 0" damping="{DRAG}" range="{HAND} {1 - HAND}"/>
      <geom size="{HAND}" mass="{MASS}"/>
    </body>
    <body>
      <joint name="block x" axis="1 0 0" damping="{BLOCK_DRAG}" range="{RIM} {1 - RIM}"/>
      <joint name="block y" axis="0 1 0" damping="{BLOCK_DRAG}" range="{RIM} {1 - RIM}"/>
      <geom size="{BLOCK}" mass="{BLOCK_MASS}"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x" gear="{DRAG * TERMINAL / STEP}"/>
    <motor joint="y" gear="{DRAG * TERMINAL / STEP}"/>
  </actuator>
</mujoco>
"""


class Table:
    """The physics of hands and blocks."""

    def __init__(self) -> None:
        """Raises ImportError where there is no MuJoCo."""
        self.model = compiled(MJCF)
        self.simulator = Simulator(self.model, SUBSTEPS)

    def __call__(self, things: Things, actions: Tensor) -> Things:
        """Actions [B, 2] -> things one step later."""
        models, force = [self.model] * len(actions), shrink_to_disk(actions, 1.0)
        place, speed = self.simulator(models, things.place, things.pace / STEP, force)
        return Things(place, STEP * speed, things.place)
