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
KEPT = (0.6, 0.1)  # of a velocity from step to step, of hand and block
MASS = (1.0, 0.3)
DRAG = tuple(mass * (kept ** (-1 / SUBSTEPS) - 1) / TICK for mass, kept in zip(MASS, KEPT))

MJCF = f"""
<mujoco>
  <option timestep="{TICK}" gravity="0 0 0"/>
  <default>
    <geom type="sphere" condim="1" solref="{2 * TICK} 1.5"/>
    <joint type="slide" limited="true" solreflimit="{2 * TICK} 1.5"/>
  </default>
  <worldbody>
    <body>
      <joint name="x" axis="1 0 0" damping="{DRAG[0]}" range="{HAND} {1 - HAND}"/>
      <joint name="y" axis="0 1 0" damping="{DRAG[0]}" range="{HAND} {1 - HAND}"/>
      <geom size="{HAND}" mass="{MASS[0]}"/>
    </body>
    <body>
      <joint name="block x" axis="1 0 0" damping="{DRAG[1]}" range="{RIM} {1 - RIM}"/>
      <joint name="block y" axis="0 1 0" damping="{DRAG[1]}" range="{RIM} {1 - RIM}"/>
      <geom size="{BLOCK}" mass="{MASS[1]}"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x" gear="{DRAG[0] * TERMINAL / STEP}"/>
    <motor joint="y" gear="{DRAG[0] * TERMINAL / STEP}"/>
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
