"""Play: what is driven can be gone back to and gone on from, to the bit; and nobody else gets at the page."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from imagine.agents.play.controls import Controls
from imagine.agents.play.record import PlayRecorder
from imagine.agents.play.requests import Requests
from imagine.agents.play.server import PlayServer
from imagine.agents.play.session import MOST_FUTURES, PlaySession
from imagine.configs import build
from imagine.configs.defaults import MODEL
from imagine.configs.playing import page, session_of
from imagine.data.read import LeRobotDataset
from imagine.embodiment import Embodiment
from imagine.policy.robots.registry import DEFAULT, load_robot
from imagine.types import ImagineError

SEEDS = (0, 1, 2, 3)
ROBOTS = Path(__file__).parent.parent / "policy/robots"
BODIES = [
    *(ROBOTS / "g1_table" / name for name in ("g1_eef.yaml", "g1_joints.yaml")),
    ROBOTS / "agibot_g1.yaml",
    *(ROBOTS.parent.parent / "examples" / name for name in ("metaworld/sawyer.yaml", "pusht/pusht.yaml")),
]


@pytest.fixture
def session(foreign: Path) -> PlaySession:
    return session_of(build.load(foreign), policy="base")


def pushes(seed: int, n: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, 2)).astype(np.float32)


def same(a, b) -> bool:
    return np.array_equal(a.chunk.frames, b.chunk.frames) and np.array_equal(a.chunk.motion, b.chunk.motion)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_moment_that_is_returned_to_goes_on_as_it_did(session: PlaySession, seed: int) -> None:
    session.start(seed)
    first = [session.steer(push) for push in pushes(seed)]
    session.go(first[0].number)
    again = [session.steer(push) for push in pushes(seed)[1:]]
    assert all(same(a, b) for a, b in zip(first[1:], again, strict=True))
    assert [m.chunk.judgement.result() for m in first[1:]] == [m.chunk.judgement.result() for m in again]
    other = session.go(first[0].number) and session.steer(-pushes(seed)[1])
    assert not same(other, first[1])
    assert other.parent == first[1].parent == first[0].number


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("by", ["hands", "policy"])
def test_a_future_that_is_taken_is_what_playing_it_gives(session: PlaySession, seed: int, by: str) -> None:
    start = session.start(seed)
    push = pushes(seed)[0] if by == "hands" else None
    futures = session.imagine(3, 2, push)
    assert not np.array_equal(futures[0].chunks[-1].frames, futures[1].chunks[-1].frames)
    taken = session.take(0)
    assert [m.chunk.by for m in session.line()] == ["start", by, by]
    after = session.steer(pushes(seed)[1])
    session.go(start.number)
    played = [session.steer(push) if push is not None else session.drive() for _ in range(2)]
    assert same(played[-1], taken)
    assert played[-1].chunk.judgement.result() == taken.chunk.judgement.result()
    assert same(session.steer(pushes(seed)[1]), after)


def test_the_best_candidate_is_a_believable_one_of_highest_value(session: PlaySession) -> None:
    session.start(1)
    found = session.imagine(5)
    best = found[session.best]
    rivals = [f for f in found if f.believable] or list(found)
    assert best.judgement.value == max(f.judgement.value for f in rivals)


def test_another_instruction_reaches_policy_and_judge_and_is_left_by_going_back(session: PlaySession) -> None:
    start = session.start(0, "push the bowl")
    before = session.proposed(1)
    moved = session.steer([0.3, 0.0])
    session.go(start.number)
    session.steer([0.3, 0.0])
    session.instruct("reach the red bowl")
    assert session.dream.instruction == ["reach the red bowl"]
    session.go(moved.number)
    assert session.dream.instruction == ["push the bowl"]
    session.go(start.number)
    assert np.array_equal(session.proposed(1), before)
    session.instruct("reach the red bowl")
    assert not np.array_equal(session.proposed(1), before)
    state = session.dream.snapshot()
    with pytest.raises(ImagineError, match="sing"):
        session.instruct("sing the bowl")
    assert session.dream.instruction == state["instruction"] == ["reach the red bowl"]


def test_what_cannot_be_had_is_refused_and_changes_nothing(session: PlaySession) -> None:
    with pytest.raises(ImagineError, match="start first"):
        session.steer([0, 0])
    session.start(0)
    for wrong in (
        lambda: session.go(7),
        lambda: session.take(0),
        lambda: session.imagine(MOST_FUTURES + 1),
        lambda: session.imagine(2, 0),
        lambda: session.steer([np.nan, 0]),
        lambda: session.steer([0.0]),
        lambda: session.switch(0),
        lambda: session.start(-1),
        lambda: session.start(0, "sing"),
    ):
        with pytest.raises(ImagineError):
            wrong()
    assert len(session.moments) == 1 and session.now.number == 0


@pytest.mark.parametrize("path", BODIES, ids=lambda p: p.stem)
def test_every_number_of_an_action_can_be_commanded_within_its_bounds(path: Path) -> None:
    body = load_robot(path).embodiment() if path.parent.parent.name == "examples" else Embodiment.load(path)
    assert body is not None
    controls = Controls(body, (body.action_high - body.action_low) / 8)
    keys = [key for c in controls.each for key in c.keys]
    assert len(keys) == len(set(keys)) and not set(keys) & {"p", " ", "[", "]"}
    target = controls.target(np.zeros(body.proprio_dim, np.float32))
    rest = controls.chunk(np.zeros(body.action_dim), target)
    for control in controls.each:
        push = np.zeros(body.action_dim)
        push[control.index] = 1
        if control.is_switch:
            chunk = controls.chunk(push * 0, controls.switched(target, control.index))
        else:
            chunk = controls.chunk(push, target)
        assert chunk.shape == (body.chunk_actions, body.action_dim)
        assert (chunk >= body.action_low).all() and (chunk <= body.action_high).all()
        moved = np.flatnonzero((chunk != rest).any(0))
        assert moved.tolist() in ([control.index], [])
        assert len(moved) or target[control.index] == control.high


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_played_is_saved_as_an_episode_that_our_reader_reads(
    session: PlaySession, tmp_path: Path, seed: int
) -> None:
    session.start(seed)
    recorder = PlayRecorder(tmp_path / "played", session.controls.body)
    with pytest.raises(ImagineError, match="nothing was played"):
        recorder.add(session.line())
    for push in pushes(seed):
        session.steer(push)
    line = session.line()
    body = session.controls.body
    assert recorder.add(line) == 4 * body.chunk_actions
    session.go(2)
    assert recorder.add(session.line()) == 2 * body.chunk_actions
    data = LeRobotDataset.open(tmp_path / "played")
    own = Embodiment.load(tmp_path / "played/embodiment.yaml")
    assert data.check_embodiment(own) == (True, True) and len(data) == 2
    row = data.features(0, data.keys(own, has_state=True, has_action=True))
    state, action = own.proprio_of(row), own.action_of(row)
    assert np.allclose(state[:: body.frame_stride][1], line[1].chunk.motion[0], atol=1e-5)
    first = own.relative_action(action[: body.chunk_actions], own.anchor_of({k: v[:1] for k, v in row.items()}))
    assert np.allclose(first, line[1].chunk.action, atol=1e-5)
    assert data.instructions(0)[0] == line[0].instruction


# ------------------------------------------------------------------------------------------------------------ the page
@pytest.fixture
def server(session: PlaySession):
    session.start(0)
    with PlayServer(Requests(session, None, {"model": "tiny"}), page()) as running:
        yield running


def fetch(server: PlayServer, path: str, host: str | None = None) -> tuple[int, str]:
    host = f"127.0.0.1:{server.port}" if host is None else host
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        data = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
    return int(data.split()[1]), data


def test_the_page_loads_nothing_from_elsewhere_and_is_for_its_owner(server: PlayServer) -> None:
    status, text = fetch(server, f"/?token={server.token}")
    assert status == 200 and "script-src 'nonce-" in text and "NONCE" not in text
    assert "https://" not in text and "src=" not in text and "frame-ancestors 'none'" in text
    assert server.token not in text
    for path in ("/", "/?token=", "/?token=x", f"/?token={server.token}x", "/play"):
        assert fetch(server, path)[0] == 403
    assert fetch(server, f"/other?token={server.token}")[0] == 404
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1", ""):
        assert fetch(server, f"/?token={server.token}", host)[0] in (400, 403)


def read(message: bytes) -> tuple[dict, bytes]:
    size = int.from_bytes(message[:4], "little")
    return json.loads(message[4 : 4 + size]), message[4 + size :]


def test_another_page_cannot_open_the_websocket(server: PlayServer) -> None:
    async def refused(origin: str | None, token: str) -> int:
        try:
            async with connect(f"ws://127.0.0.1:{server.port}/play?token={token}", origin=origin):  # type: ignore[arg-type]
                return 101
        except InvalidStatus as error:
            return error.response.status_code

    ours = f"http://127.0.0.1:{server.port}"
    assert asyncio.run(refused(ours, server.token)) == 101
    for origin in (None, "null", "https://evil.example", "http://127.0.0.1:1"):
        assert asyncio.run(refused(origin, server.token)) == 403
    assert asyncio.run(refused(ours, "guess")) == 403


def test_a_page_drives_and_bad_requests_are_refused_in_one_sentence(server: PlayServer) -> None:
    async def converse(asked: list) -> list[tuple[dict, bytes]]:
        ours = f"http://127.0.0.1:{server.port}"
        async with connect(f"ws://127.0.0.1:{server.port}/play?token={server.token}", origin=ours) as socket:  # type: ignore[arg-type]
            got = []
            for one in asked:
                await socket.send(one if isinstance(one, str | bytes) else json.dumps({**one, "id": len(got)}))
            while sum("id" in a or "error" in a for a, _ in got) < len(asked):
                got.append(read(await socket.recv()))
            return got

    good = [
        {"do": "steer", "push": [1, 0]},
        {"do": "drive"},
        {"do": "imagine", "n": 2, "depth": 1},
        {"do": "go", "moment": 0},
    ]
    answers = asyncio.run(converse(good))
    hello, answered = answers[0][0], [a for a in answers if "id" in a[0]]
    assert hello["hello"] == {"model": "tiny"} and hello["seconds"] == 0.4 and not hello["simulator"]
    frame = hello["height"] * hello["width"] * 3
    assert [len(pixels) // frame for _, pixels in answered] == [2, 2, 4, 0]
    assert answered[-1][0]["now"] == 0
    bad = [
        "{", b"\xff", "[]", "[" * 5000, {"do": "fly"}, {"do": "steer"}, {"do": "steer", "push": ["x", 0]}, {"do": "go"},
        {"do": "steer", "push": [1e400, 0]}, {"do": "go", "moment": True}, {"do": "start", "seed": 2**70},
        {"do": "instruct", "text": "x" * 501}, {"do": "imagine", "n": 10**9, "depth": 1}, {"do": "save"},
    ]  # fmt: skip
    errors = [a["error"] for a, _ in asyncio.run(converse(bad)) if "error" in a]
    assert len(errors) == len(bad) and all("Traceback" not in e and len(e) <= 500 for e in errors)
    assert asyncio.run(converse(good[:1]))[-1][0].get("error") is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_simulator_beside_the_dream_does_the_same_after_going_back(seed: int) -> None:
    session = session_of(build.load(MODEL))
    start = session.start(900_000 + seed)
    assert np.array_equal(start.true.result().frames, start.chunk.frames)  # type: ignore[union-attr]
    push = np.random.default_rng(seed).uniform(-1, 1, 8)
    moments = [session.steer(push) for _ in range(3)]
    session.go(moments[0].number)
    session.switch(3)
    session.steer(-push)
    session.go(moments[1].number)
    again = session.steer(push)
    assert same(again, moments[2])
    assert np.array_equal(again.true.result().frames, moments[2].true.result().frames)  # type: ignore[union-attr]
    robot = load_robot(DEFAULT)
    env = robot.make_env(session.controls.body, horizon=9, **robot.options())
    env.reset(seed=900_000 + seed)
    frames = [env.step(m.chunk.action)[4]["frames"] for m in moments]
    assert np.array_equal(frames[-1], moments[2].true.result().frames)  # type: ignore[union-attr]
