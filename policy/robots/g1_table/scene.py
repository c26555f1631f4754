"""The table-top scene as MuJoCo XML: an AgiBot-G1-shaped robot, a table, a bowl and coloured blocks.

Link lengths and joint limits are the published ones of the AgiBot G1; masses, gains, colours and shapes are our own.
What this is not: the G1's meshes, its linkage gripper or its tuned controllers; and the head camera hangs on a boom
above the far edge of the table and looks down and a little back, as from within the head hands and forearms would hide
what they handle. Forward is up in its picture, and left is left.

Frames: x forward, y to the robot's left, z up, in metres; the base stands at the origin.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imagine.policy.robots.g1_table.sites import Site

CONTROL_HZ = 30
SUBSTEPS = 8
LIFT = 0.33  # waist lift; shoulders 0.684 m above the table, where the elbow covers all of the workspace
TABLE_Z = 0.60
BLOCK_HALF = 0.028
REST_Z = TABLE_Z + BLOCK_HALF
BOWL_RADIUS = 0.088  # two blocks lie in it side by side
OPENING = 0.10  # between the fingers of an open gripper
FINGER_THICKNESS = 0.016
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.62, 0.15),
    "blue": (0.12, 0.25, 0.88),
    "yellow": (0.97, 0.82, 0.08),
}
WOOD = (0.60, 0.52, 0.44)  # the table's top
SHAPES: dict[str, str] = {  # geometries of blocks; all but boxes are for tests of what a model never saw
    "box": f'type="box" size="{BLOCK_HALF} {BLOCK_HALF} {BLOCK_HALF}"',
    "cylinder": f'type="cylinder" size="{BLOCK_HALF} {BLOCK_HALF}"',
    "flat": f'type="box" size="{BLOCK_HALF} {BLOCK_HALF} {BLOCK_HALF - 0.008}"',
}
SIDES = ("left", "right")
HEAD = (0.0, 0.35)  # yaw, pitch in rad; fixed
WAIST = (0.0, LIFT)  # pitch in rad, lift in m; fixed

# (left limit low, high), (right limit low, high) of j1..j7, rad.
JOINT_LIMITS = {
    "left": ((-3.14, 3.14), (-2.09, 1.48), (-3.10, 3.10), (-1.48, 1.48), (-3.10, 3.10), (-1.74, 1.74), (-3.10, 3.10)),
    "right": ((-3.14, 3.14), (-1.48, 2.09), (-3.10, 3.10), (-1.48, 1.48), (-3.10, 3.10), (-1.74, 1.74), (-3.10, 3.10)),
}
_AXES = ("0 -1 0", "-1 0 0", "0 0 1", "0 -1 0", "0 0 1", "0 1 0", "0 0 1")
_GAINS = ((1200, 70, 120), (1200, 70, 120), (800, 45, 120), (800, 45, 120), (300, 14, 60), (300, 14, 60), (150, 7, 60))
_GHOST = 'contype="0" conaffinity="0"'  # links never collide: elbows touching the torso would only stall the arms


def _joint(side: str, i: int) -> str:
    low, high = JOINT_LIMITS[side][i]
    return f'<joint name="{side}_j{i + 1}" axis="{_AXES[i]}" range="{low} {high}"/>'


def _hand(side: str) -> str:
    fingers = "".join(
        f'<body name="{side}_finger{n}" pos="0 0 -.2485" gravcomp="1">'
        f'<joint name="{side}_grip{n}" type="slide" axis="0 {sign} 0" range="0 {OPENING / 2}" damping="8"/>'
        f'<geom name="{side}_finger{n}" class="finger" pos="0 {sign * FINGER_THICKNESS / 2} -.045"/></body>'
        for n, sign in ((1, 1), (2, -1))
    )
    return f"""
    <body name="{side}_hand" gravcomp="1">{_joint(side, 6)}
      <geom type="capsule" size=".022" fromto="0 0 -.03 0 0 -.19" mass=".35" material="shell" {_GHOST}/>
      <geom name="{side}_palm" type="box" size=".022 .040 .018" pos="0 0 -.228" mass=".3" material="{side}_palm"/>
      <camera name="hand_{side}" pos=".085 0 -.19" xyaxes="0 -1 0 .86 0 -.5" fovy="78"/>
      <site name="{side}_tcp" pos="0 0 -.3235" size=".004" rgba="0 0 0 0"/>{fingers}
    </body>"""


def _arm(side: str) -> str:
    y = 0.21 if side == "left" else -0.21
    j = [_joint(side, i) for i in range(7)]
    return f"""
    <body name="{side}_shoulder" pos="0.131 {y} {0.954 + LIFT}" gravcomp="1">{j[0]}
      <geom type="sphere" size=".055" mass=".8" material="dark" {_GHOST}/>
      <body name="{side}_shoulder2" gravcomp="1">{j[1]}
        <geom type="sphere" size=".05" mass=".3" material="dark" {_GHOST}/>
        <body name="{side}_upper" gravcomp="1">{j[2]}
          <geom type="capsule" fromto="0 0 -.05 0 0 -.26" size=".04" mass="1.2" material="shell" {_GHOST}/>
          <body name="{side}_elbow" pos="0 0 -.305" gravcomp="1">{j[3]}
            <geom type="sphere" size=".042" mass=".5" material="dark" {_GHOST}/>
            <body name="{side}_forearm" gravcomp="1">{j[4]}
              <geom type="capsule" fromto="0 0 -.03 0 0 -.17" size=".025" mass=".7" material="shell" {_GHOST}/>
              <body name="{side}_wrist" pos="0 0 -.1975" gravcomp="1">{j[5]}
                <geom type="sphere" size=".027" mass=".3" material="dark" {_GHOST}/>{_hand(side)}
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>"""


def _actuators() -> str:
    lines = []
    for side in SIDES:
        for i, (kp, kv, force) in enumerate(_GAINS, 1):
            name = f"{side}_j{i}"
            lines.append(f'<position name="{name}" joint="{name}" kp="{kp}" kv="{kv}" forcerange="-{force} {force}"/>')
        lines += [
            f'<position name="{side}_grip{n}" joint="{side}_grip{n}" kp="500" kv="12" forcerange="-15 15"/>'
            for n in (1, 2)
        ]
    return "\n".join(lines)


def _bowl() -> str:
    r = BOWL_RADIUS
    ring = "".join(
        f'<geom class="bowl" pos="{r * np.cos(a):.4f} {r * np.sin(a):.4f} .02" euler="0 0 {a:.4f}"/>'
        for a in np.arange(10) * 2 * np.pi / 10
    )
    floor = f'<geom type="cylinder" size="{BOWL_RADIUS} .003" pos="0 0 .003" rgba=".80 .80 .84 1"/>'
    return f'<body name="bowl" mocap="true" pos=".56 0 {TABLE_Z}">{floor}{ring}</body>'


def build(shapes: Sequence[str], site: Site) -> str:
    """MJCF text of the scene with one block of each of these shapes, named ``block0``... and coloured later."""
    # Longer than forty lines, as a template reads best in one piece.
    free = "".join(
        f'<body name="block{i}" pos="{0.3 + 0.08 * i} 0 {REST_Z}"><freejoint name="block{i}"/>'
        f'<geom name="block{i}" class="block" {SHAPES[shape]}/></body>'
        for i, shape in enumerate(shapes)
    )
    excludes = "".join(f'<exclude body1="{s}_hand" body2="{s}_finger{n}"/>' for s in SIDES for n in (1, 2))
    return f"""
<mujoco model="g1_table">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{1 / (CONTROL_HZ * SUBSTEPS):.10f}" integrator="implicitfast" cone="elliptic" impratio="5"
          iterations="20"/>
  <visual><quality shadowsize="0" offsamples="0"/><map znear=".01" zfar="10"/>
    <headlight ambient=".45 .45 .45" diffuse=".5 .5 .5" specular="0 0 0"/><global offwidth="256" offheight="256"/>
  </visual>
  <default>
    <joint damping="1" armature=".05"/>
    <default class="finger">
      <geom type="box" size=".012 {FINGER_THICKNESS / 2} .045" mass=".05" material="finger" friction="2 .05 .001"
            condim="4" solref=".008 1"/>
    </default>
    <default class="block">
      <geom mass="{site.mass}" friction="{site.friction} .02 .001" condim="4"/>
    </default>
    <default class="bowl"><geom type="box" size=".006 .029 .02" rgba=".96 .96 .98 1"/></default>
  </default>
  <asset>
    <material name="shell" rgba=".80 .82 .85 1"/><material name="dark" rgba=".22 .22 .26 1"/>
    <material name="finger" rgba=".10 .10 .12 1"/><material name="wood"/>
    <material name="floor" rgba=".36 .39 .42 1"/>
    <material name="left_palm" rgba=".55 .25 .60 1"/><material name="right_palm" rgba=".15 .55 .60 1"/>
  </asset>
  <worldbody>
    <geom name="floor" type="plane" size="3 3 .1" material="floor" {_GHOST}/>
    <geom name="table" type="box" pos=".56 0 {TABLE_Z - 0.02}" size=".34 .55 .02" material="wood"
          friction=".8 .02 .001"/>
    <geom name="torso" type="capsule" fromto=".05 0 .3 .05 0 {0.954 + LIFT}" size=".1" material="shell" {_GHOST}/>
    <geom name="base" type="box" pos="-.05 0 .15" size=".25 .25 .15" material="dark" {_GHOST}/>
    <geom name="head" type="sphere" pos=".12 0 {1.15 + LIFT}" size=".08" material="dark" {_GHOST}/>
    <camera name="top_head" {site.camera()} fovy="30"/>
    {_arm("left")}{_arm("right")}{_bowl()}{free}
  </worldbody>
  <contact>{excludes}</contact>
  <actuator>{_actuators()}</actuator>
</mujoco>"""
