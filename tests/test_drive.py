"""A robot driven tick by tick: nothing unsafe is sent, nothing waits for the policy, and a seam is no jolt."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from rich.console import Console

from imagine.agents.dream_scorer import DreamScorer
from imagine.agents.drive_record import STATE, RecordingRobot
from imagine.agents.replayed import ReplayedRobot
from imagine.agents.thinking import DreamThinker
from imagine.configs.drive_view import DriveView
from imagine.data.write import DatasetWriter
from imagine.embodiment import Embodiment
from imagine.limits import Limits
from imagine.policy.clock import SimulatedClock, WallClock
from imagine.policy.drive import Answer, DriveConfig, Driver
from imagine.policy.guard import Guard, GuardConfig, surprise
from imagine.policy.robots.g1_table.env import FOLDER
from imagine.policy.robots.registry import DEFAULT, load_robot
from imagine.types import Score

ROBOT = load_robot(DEFAULT)
BODY = ROBOT.embodiment()
assert BODY is not None
LIMITS = ROBOT.limits(BODY)
assert LIMITS is not None
A, K, HZ = BODY.action_dim, BODY.chunk_actions, BODY.control_hz


def pose_of(robot) -> np.ndarray:
    return BODY.absolute_action(BODY.hold(robot.observe()["proprio"])[0], robot.anchor())


@pytest.fixture(scope="module")
def table():
    return ROBOT.make_ticks(BODY, **ROBOT.options())


@pytest.fixture
def start(table) -> np.ndarray:
    table.reset(3)
    return pose_of(table)


def within(sent: list[np.ndarray], start: np.ndarray, *, jerk: bool) -> dict[str, float]:
    path = np.stack([start, *sent]).astype(np.float64)
    found = {name: float(x) for name, x in LIMITS.breaches(path).items()}
    return found if jerk else {name: x for name, x in found.items() if name != "jerk"}


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [0.003, 0.05, 1.0, 1e6])
def test_whatever_is_commanded_what_is_sent_keeps_the_limits(start, seed, size):
    rng, guard = np.random.default_rng(seed), Guard(BODY, LIMITS, GuardConfig(patience=10**6))
    guard.reset(start)
    walk = start + np.cumsum(rng.normal(0, size, (200, A)), 0)
    walk[rng.random(200) < 0.05] = np.nan
    sent = [guard.check(None if rng.random() < 0.1 else command) for command in walk]
    assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in sent)
    broken = within(sent, start, jerk=False)
    assert max(broken.values()) < 2e-3, broken  # float32 of a command on its limit
    assert size < 0.05 or guard.events


def test_a_command_within_the_limits_passes_unchanged(start):
    guard = Guard(BODY, LIMITS)
    guard.reset(start)
    for k in range(60):
        command = (start + 0.02 * np.sin(k / 10)).astype(np.float32)
        np.testing.assert_array_equal(guard.check(command), command)
    assert not guard.events


def test_each_rule_is_named_and_answered(start):
    free, none = {"control_hz": 30.0, "hands": ((0, 3), (4, 7))}, (None,) * A
    limits = {
        "velocity": Limits(**free, velocity=(1.0,) * A),
        "jerk": Limits(**free, jerk=(1000.0,) * A),
        "joint_limit": Limits(**free, low=(*none[:3], -0.5, *none[4:]), high=(*none[:3], 1.5, *none[4:])),
        "workspace": Limits(**free, workspace_low=(-9.0, -9.0, 0.5), workspace_high=(9.0, 9.0, 9.0)),
        "two_arms": Limits(**free, apart=0.05),
    }  # fmt: skip
    bad = {
        "velocity": start + 0.2,
        "jerk": start + 0.1,
        "joint_limit": np.where(np.arange(A) == 3, 5.0, start),
        "workspace": np.where(np.arange(A) == 2, 0.1, start),
        "two_arms": np.concatenate([start[4:7], start[3:]]),
    }
    for rule, allowed in limits.items():
        guard = Guard(BODY, allowed)
        guard.reset(start)
        for _ in range(3):
            guard.check(start)
        sent = guard.check(bad[rule])
        (event,) = guard.events
        assert (event.rule, event.response, event.tick) == (rule, "slow" if rule in ("velocity", "jerk") else "hold", 3)
        assert event.excess > 0
        moved = np.abs(sent - start).max()
        assert (0 < moved < 0.2) if event.response == "slow" else moved < 1e-6
    guard.check(np.full(A, np.inf))
    assert guard.events[-1].rule == "finite"


def test_after_too_many_refusals_nothing_moves_until_the_next_reset(start):
    guard = Guard(BODY, LIMITS, GuardConfig(patience=4))
    guard.reset(start)
    for _ in range(4):
        assert not guard.refused
        guard.check(np.full(A, np.nan))
    assert guard.refused
    np.testing.assert_allclose(guard.check(start + 1e-3), start, atol=1e-6)
    guard.reset(start)
    assert not guard.refused
    for _ in range(50):
        guard.check(None)  # to wait is no fault
    assert not guard.refused


def test_angles_may_cross_pi_and_deltas_stop():
    arm = {"key": "action", "kind": "rotation", "unit": "rad", "low": -0.5, "high": 0.5}
    yaw = {"name": "yaw", "key": "observation.state", "start": 0, "stop": 1, "unit": "rad", "kind": "rotation"}
    body = Embodiment.model_validate(
        {
            **BODY.model_dump(),
            "state": [yaw],
            "proprio": ["yaw"],
            "action": [
                {"name": "yaw", "start": 0, "stop": 1, "relative_to": "yaw", **arm},
                {"name": "step", "start": 1, "stop": 2, "mode": "delta", **{**arm, "kind": "position", "unit": "m"}},
            ],
        }
    )  # fmt: skip
    guard = Guard(body, Limits(control_hz=30, velocity=(3.0, None)))
    guard.reset(np.array([3.1, 0.0]))
    sent = guard.check(np.array([-3.12, 0.2]))  # 0.063 rad further, not 6.2 back
    assert not guard.events
    assert np.exp(1j * sent[0]) == pytest.approx(np.exp(-3.12j), abs=1e-5)
    np.testing.assert_allclose(guard.check(None)[1], 0.0)  # a displacement per tick is not repeated


def test_a_plan_is_dropped_for_what_its_dream_says():
    guard = Guard(BODY, None, GuardConfig(hallucination=0.5, success=0.2, surprise=30, patience=8))
    guard.reset(np.zeros(A))
    assert guard.admit(hallucination=0.4, success=0.3)
    assert guard.admit(hallucination=float("nan"))
    assert not guard.admit(hallucination=0.6)
    assert not guard.admit(success=0.1)
    seen = np.zeros((64, 96, 3), np.uint8)
    elsewhere = seen.copy()
    elsewhere[8:16, 8:16] = 200
    assert surprise(seen, elsewhere) == pytest.approx(200)
    assert guard.compare(seen, seen)
    assert not guard.compare(seen, elsewhere)
    assert [e.rule for e in guard.events] == ["hallucination", "success", "surprise"]
    guard.admit(success=0.1)
    assert guard.refused  # half of the patience in plans


class Scripted:
    """Thinks what it is told, and keeps what it was asked."""

    def __init__(self, chunk: np.ndarray) -> None:
        self.chunk, self.asked = chunk, []

    def __call__(self, observation, committed, number) -> Answer:
        self.asked.append((number, committed.copy()))
        return Answer(self.chunk)


def driven(table, think, *, latency=0.0, **cfg):
    guard = Guard(BODY, LIMITS)
    cfg = DriveConfig(seconds=2.0, stop_on_success=False, **cfg)
    return Driver(table, BODY, guard, SimulatedClock(HZ, latency), cfg).episode(think, 3)


def test_ticks_never_wait_and_what_is_committed_is_what_is_done(table, start):
    chunk = BODY.hold(table.observe()["proprio"])[:K] + np.linspace(0, 0.02, K)[:, None]
    think = Scripted(chunk.astype(np.float32))
    drive = driven(table, think, latency=5 / HZ, every=12)
    assert len(drive.commands) == 2 * HZ
    assert drive.held == 5  # nothing was planned before the first answer
    assert set(drive.latencies) == {5}
    assert [n for n, _ in think.asked] == list(range(len(think.asked)))
    assert len(think.asked[0][1]) == 0
    table.reset(3)
    for number, committed in think.asked[1:]:
        assert len(committed) == 5, number


def test_committed_actions_lead_where_the_plan_in_hand_leads(table, start):
    class Checked(Scripted):
        def __call__(self, observation, committed, number) -> Answer:
            self.asked.append((table.anchor(), committed.copy()))
            return Answer(self.chunk)

    chunk = np.clip(np.linspace(0, 0.03, K)[:, None] * np.ones(A), BODY.action_low, BODY.action_high).astype(np.float32)
    think = Checked(chunk)
    drive = driven(table, think, latency=4 / HZ, every=10)
    ticks = np.cumsum([4, 10, 10])  # nothing is planned before the first answer, and nothing of it is left out
    anchor, committed = think.asked[1]
    done = np.stack(drive.commands)[ticks[1] : ticks[1] + 4]
    np.testing.assert_allclose(BODY.absolute_action(committed, anchor), done, atol=2e-4)


@pytest.mark.parametrize("execution", ["overlap", "restart", "wait"])
def test_only_waiting_holds_the_robot_at_every_question(table, start, execution):
    still = Scripted(BODY.hold(table.observe()["proprio"]))
    drive = driven(table, still, latency=6 / HZ, every=12, execution=execution)
    questions = len(drive.latencies)
    assert 6 * questions <= drive.held <= 6 * (questions + 1) if execution == "wait" else drive.held == 6


def test_a_late_plan_makes_the_robot_hold(table, start):
    still = Scripted(BODY.hold(table.observe()["proprio"]))
    drive = driven(table, still, latency=(K + 10) / HZ, every=12)
    assert drive.held > K + 10
    assert not drive.refused


class Failing(Scripted):
    """Answers but in some of its questions."""

    def __init__(self, chunk: np.ndarray, fails: range) -> None:
        super().__init__(chunk)
        self.fails = fails

    def __call__(self, observation, committed, number) -> Answer:
        self.asked.append((number, committed))
        if number in self.fails:
            raise ConnectionResetError("the server hung up")
        return Answer(self.chunk)


def moving(table) -> np.ndarray:
    return (BODY.hold(table.observe()["proprio"])[:K] + np.linspace(0, 0.02, K)[:, None]).astype(np.float32)


def test_a_robot_holds_while_a_server_fails_and_goes_on_when_it_is_back(table, start):
    drive = driven(table, Failing(moving(table), range(1, 3)), latency=1 / HZ, every=12)
    assert not drive.lost
    assert drive.notes == {"failed: the server hung up": 2}
    failed = 1 + 12 + 1  # asked 12 ticks after the first move, and answered one later
    back = failed + math.ceil(0.25 * HZ) + 1 + math.ceil(0.5 * HZ) + 1  # twice as long after the second failure
    held = np.stack(drive.commands)[failed:back]
    assert np.ptp(held[2:], axis=0).max() == 0  # it stands
    assert np.abs(drive.commands[back + 2] - held[-1]).max() > 0


def test_a_lost_server_ends_the_episode_with_all_that_was_driven(table, start):
    recording = RecordingRobot(table, BODY)
    cfg = DriveConfig(seconds=4.0, stop_on_success=False, patience=1.0)
    driver = Driver(recording, BODY, Guard(BODY, LIMITS), SimulatedClock(HZ), cfg)
    think = Failing(moving(table), range(1, 1000))
    drive = driver.episode(think, 3)
    assert drive.lost == "the server hung up"
    assert len(drive.commands) == HZ + 1  # patience from the last answer on, which came at tick 0
    assert 2 <= len(think.asked) - 1 <= 3  # asked again less and less often
    assert len(recording.episode().features["action"]) == len(drive.commands)
    with pytest.raises(ConnectionResetError):  # nothing has moved before the first answer
        Driver(table, BODY, Guard(BODY, LIMITS), SimulatedClock(HZ), cfg).episode(Failing(moving(table), range(9)), 3)


def test_a_thinker_that_hangs_is_given_up_in_time(table, start):
    gone = threading.Event()

    class Hangs(Scripted):
        def __call__(self, observation, committed, number) -> Answer:
            if number:
                gone.wait(20)
            return Answer(self.chunk)

    clock, cfg = WallClock(HZ), DriveConfig(seconds=5.0, stop_on_success=False, patience=0.6)
    drive = Driver(table, BODY, Guard(BODY, LIMITS), clock, cfg).episode(Hangs(moving(table)), 3)
    gone.set()
    clock.close()
    assert drive.lost == "no answer in 0.6 s"
    assert len(drive.commands) < HZ + 5


def test_a_terminal_shows_how_the_drive_goes_and_a_file_gets_a_line(table, start):
    def shown(**how) -> str:
        view = DriveView("driving", 1, HZ, Console(file=io.StringIO(), width=100, **how))
        guard, cfg = Guard(BODY, LIMITS), DriveConfig(seconds=1.0, stop_on_success=False)
        with view:
            driver = Driver(table, BODY, guard, SimulatedClock(HZ, 3 / HZ), cfg, view.on_tick)
            view.on_episode(driver.episode(Failing(moving(table), range(1, 2)), 3))
        return view.console.file.getvalue()

    terminal, lines = shown(force_terminal=True), shown(force_terminal=False).splitlines()
    assert len(lines) == 1
    for said in ("1 of 1", "100 ms", "late: hold", "the server hung up (1)"):
        assert said in terminal, said
        assert said in lines[0], said


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_robot_without_a_plan_brakes_within_its_limits_and_then_stands(seed):
    limits = Limits(control_hz=HZ, velocity=(1.0,) * A, jerk=(60.0,) * A)
    speed = np.random.default_rng(seed).uniform(-0.9, 0.9, A) / HZ
    guard = Guard(BODY, limits)
    guard.reset(np.zeros(A))
    ramp = np.clip(np.arange(60) / 30, 0, 1)
    path = [guard.check(x) for x in np.cumsum(ramp * ramp * (3 - 2 * ramp))[:, None] * speed]
    assert not guard.events
    moving_at = np.abs(path[-1] - path[-2]).max()
    path += [guard.check(None) for _ in range(60)]
    assert moving_at > 0.9 * np.abs(speed).max()
    assert all(x == 0 for x in limits.breaches(np.stack(path[-66:])).values())
    np.testing.assert_array_equal(path[-1], path[-2])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_wall_clock_gives_ticks_in_time_while_an_answer_takes_long(table, seed):
    table.reset(seed)
    still = Scripted(BODY.hold(table.observe()["proprio"]))
    clock = WallClock(HZ, latency=0.2)
    cfg = DriveConfig(seconds=1.0, stop_on_success=False)
    drive = Driver(table, BODY, Guard(BODY, LIMITS), clock, cfg).episode(still, seed)
    clock.close()
    assert len(drive.commands) == HZ
    assert min(drive.latencies) >= 6  # 0.2 s at 30 Hz


def test_an_answer_goes_on_from_what_is_committed(model_and_observation):
    model, policy, observation = model_and_observation
    free = policy.act(observation, [1, 2])
    begin = np.clip(free[:, :7] + 0.01, model.body.action_low, model.body.action_high)
    bound = policy.act(observation, [1, 2], committed=begin)
    np.testing.assert_allclose(bound[:, :7], begin, atol=1e-4)
    assert np.abs(bound[:, 7:] - free[:, 7:]).max() > 1e-6  # the rest knows of it
    row = {name: value[1:] for name, value in observation.items()}
    np.testing.assert_array_equal(policy.act(row, [2], committed=begin[1:])[0], bound[1])


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_nothing_imagined_outlives_what_is_then_seen(model_and_observation, seed):
    model, policy, observation = model_and_observation

    def judge(clip, instruction) -> Score:
        return Score(*(torch.full((len(clip.latents),), 0.5) for _ in range(2)), torch.ones(len(clip.latents)) > 0)

    first, then = ({name: value[i] for name, value in observation.items()} for i in (0, 1))
    none = np.zeros((0, A), np.float32)
    used, new = (DreamThinker(policy, DreamScorer(model, judge), seed) for _ in range(2))
    dreamt = used(first, none, 0)
    after, fresh = used(then, none, 1), new(then, none, 1)
    np.testing.assert_array_equal(after.actions, fresh.actions)
    np.testing.assert_array_equal(after.expected, fresh.expected)
    assert (after.expected != dreamt.expected).any()


@pytest.fixture(scope="module")
def model_and_observation():
    from imagine.model.model import WorldActionModel
    from imagine.policy.policy import JointPolicy

    model = WorldActionModel.from_pretrained("g1-table-tiny")
    robot = ROBOT.make_ticks(model.body, **ROBOT.options())
    seen = [robot.reset(seed) for seed in (0, 1)]
    return model, JointPolicy(model), {name: np.stack([o[name] for o in seen]) for name in seen[0]}


def test_recorded_episodes_stand_in_for_a_robot_whatever_is_commanded(table, start, tmp_path):
    recording = RecordingRobot(table, BODY)
    cfg = DriveConfig(seconds=1.0, stop_on_success=False)
    clock = SimulatedClock(HZ, 2 / HZ)
    Driver(recording, BODY, Guard(BODY, LIMITS), clock, cfg).episode(Scripted(moving(table)), 3)
    recorded = recording.episode()
    writer = DatasetWriter(tmp_path / "one", BODY.robot_type, HZ, 1, ROBOT.recorder().names)
    writer.write_shard(0, [recorded])
    writer.finalize()
    robot, still = ReplayedRobot(tmp_path / "one", BODY), Scripted(BODY.hold(table.observe()["proprio"]))
    drive = Driver(robot, BODY, Guard(BODY, LIMITS), clock, cfg).episode(still, 7)
    assert len(drive.commands) == HZ
    assert not drive.success
    robot.reset(7)
    for row in recorded.features[STATE]:
        np.testing.assert_array_equal(robot.features()[STATE], row)
        robot.tick(np.full(A, np.nan))
    np.testing.assert_array_equal(robot.features()[STATE], recorded.features[STATE][-1])
    seen, true = robot.observe()["top_head"], recorded.views["observation.images.top_head"][-1]
    assert np.abs(seen.astype(float) - true).mean() < 6  # a video loses a little


@pytest.mark.slow
def test_the_command_drives_on_either_clock_and_plans(tmp_path, capsys):
    import json

    from imagine.configs.cli import main
    from imagine.data.read import LeRobotDataset

    def runs(name: str, *words: str) -> dict:
        usual = ["--episodes", "1", "--seconds", "1", "--json", "--out", str(tmp_path / name)]
        assert main(["drive", *words, *usual]) == 0
        return json.loads(capsys.readouterr().out)["runs"]

    found = runs("both", "--clock", "simulated", "--execution", "overlap,wait", "--latency", "0,150")
    assert set(found) == {f"{e}, {ms} ms" for e in ("overlap", "wait") for ms in (0, 150)}
    assert all(run["missed"] == 0 and 0 < run["ticks"] <= HZ for run in found.values())
    (run,) = runs("plan", "--clock", "simulated", "--plan", "3", "--guard", "surprise=200").values()
    assert run["decisions"] >= 1
    # In real time, the table in a process of its own; what was done is a dataset that everything here reads.
    (run,) = runs("wall", "--record", str(tmp_path / "driven")).values()
    assert run["ticks"] <= HZ
    dataset = LeRobotDataset.open(tmp_path / "driven")
    assert len(dataset.features(0)["action"]) == run["ticks"]
    assert main(["check", "--dataset", str(tmp_path / "driven"), "--embodiment", str(FOLDER / "g1_eef.yaml")]) == 0
    capsys.readouterr()
    (dry,) = runs("dry", "--replay", str(tmp_path / "driven")).values()
    assert dry["success_rate"] == 0
    for wrong in (["--execution", "hope"], ["--latency", "soon"], ["--guard", "calm=1"]):
        assert main(["drive", *wrong, "--out", str(tmp_path / "wrong")]) == 2


def test_a_robots_own_computer_needs_no_torch():
    """The loop, the guard, the client and the embodiment, on a machine that has numpy, pydantic and websockets."""
    code = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from imagine.embodiment import Embodiment
from imagine.limits import Limits
from imagine.policy.client import RemotePolicy
from imagine.policy.clock import SimulatedClock
from imagine.policy.drive import DriveConfig, Driver, thinker
from imagine.policy.guard import Guard
from imagine.types import pack_instruction

body = Embodiment.load({str(FOLDER / "g1_eef.yaml")!r})

class Robot:
    success, moved = False, 0
    def reset(self, seed, instruction=None): pass
    def observe(self):
        views = {{v.name: np.zeros((v.height, v.width, 3), np.uint8) for v in body.views}}
        proprio = np.zeros(sum(s.size for s in body.state if s.name in body.proprio), np.float32)
        return {{**views, "proprio": proprio, "instruction": pack_instruction("wave")}}
    def anchor(self): return np.zeros(body.action_dim, np.float32)
    def features(self): return {{}}
    def tick(self, move): self.moved += 1

class Still:
    def act(self, observation, seeds, episodes):
        return body.hold(observation["proprio"])

robot = Robot()
guard = Guard(body, Limits(control_hz=body.control_hz))
driver = Driver(robot, body, guard, SimulatedClock(body.control_hz, 0.1), DriveConfig(seconds=1))
driver.episode(thinker(Still(), 0, 0), 0)
print(robot.moved)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == str(HZ), done.stdout + done.stderr
