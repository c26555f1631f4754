"""A policy over websockets: openpi's protocol, one sentence for what is wrong, and verdicts in time or none."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import serve

from imagine.agents.planner import PlanningState
from imagine.agents.serving import DreamJudge
from imagine.policy import wire
from imagine.policy.client import RemoteError, RemotePolicy
from imagine.policy.policy import JointPolicy, RandomPolicy
from imagine.policy.server import PolicyServer, ServerConfig
from imagine.seeds import Stream, derive
from imagine.types import Clip, ImagineError, Policy, Score, pack_instruction

ANY_PORT = ServerConfig(port=0, slice_size=2)
K, A = 4, 2


# ---------------------------------------------------------------------- openpi's client, written from its description
def to_wire(value: Any) -> bytes:
    def default(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return {b"__ndarray__": True, b"data": x.tobytes(), b"dtype": x.dtype.str, b"shape": x.shape}
        return {b"__npgeneric__": True, b"data": x.item(), b"dtype": x.dtype.str}

    return msgpack.packb(value, default=default)


def from_wire(data: bytes) -> Any:
    def hook(x: dict) -> Any:
        if b"__ndarray__" in x:
            return np.ndarray(buffer=x[b"data"], dtype=np.dtype(x[b"dtype"]), shape=x[b"shape"])
        return np.dtype(x[b"dtype"]).type(x[b"data"]) if b"__npgeneric__" in x else x

    return msgpack.unpackb(data, object_hook=hook)


class OpenPi:
    """What openpi's client does: read the metadata, send an observation, take text for an error."""

    def __init__(self, url: str):
        self.connection = connect(url, compression=None, max_size=None).__enter__()
        self.metadata = from_wire(self.connection.recv(5))

    def ask(self, message: Any) -> Any:
        self.connection.send(message if isinstance(message, bytes | str) else to_wire(message))
        said = self.connection.recv(5)
        return said if isinstance(said, str) else from_wire(said)


def observation(seed: int = 0) -> dict[str, Any]:
    """One observation of the tiny robot, as openpi's clients send it."""
    rng = np.random.default_rng(seed)
    head = rng.integers(0, 256, (16, 16, 3), np.uint8)
    return {"head": head, "proprio": rng.normal(size=3).astype(np.float32), "prompt": "push the red bowl"}


def batch(*seeds: int) -> dict[str, np.ndarray]:
    """The same observations as an environment gives them."""
    each = [observation(s) for s in seeds]
    told = [pack_instruction(o.pop("prompt")) for o in each]
    return {**{k: np.stack([o[k] for o in each]) for k in each[0]}, "instruction": np.stack(told)}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Nearest:
    """The closed form: a candidate is worth what its first action is, less where the robot started from."""

    def __init__(self, clock: Clock | None = None, seconds: float = 0.0):
        self.clock, self.seconds, self.slices = clock, seconds, []

    def __call__(self, observation: dict[str, np.ndarray], start: dict[str, np.ndarray]) -> Callable:
        came = observation["proprio"][0, 0] - start["proprio"][0, 0]

        def judge(candidates: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            self.slices.append(len(candidates))
            if self.clock:
                self.clock.now += self.seconds
            value = candidates[:, 0, 0] + came
            return value, {"success": value / 2, "spread": 0 * value, "hallucination": candidates[:, 0, 1]}

        return judge


@pytest.fixture
def serving(tiny_model) -> Iterator[Callable[..., PolicyServer]]:
    """Start servers on ports of their own; all are stopped in the end."""
    begun: list[PolicyServer] = []

    def begin(policy: Policy | None = None, **options: Any) -> PolicyServer:
        begun.append(PolicyServer(policy or JointPolicy(tiny_model), tiny_model.body, **{"cfg": ANY_PORT, **options}))
        return begun[-1]

    yield begin
    for server in begun:
        server.close()


def candidates(*firsts: float) -> np.ndarray:
    chunks = np.zeros((len(firsts), K, A), np.float32)
    chunks[:, 0, 0] = firsts
    return chunks


def scoring(deadline_ms: float | None = None, *firsts: float, seed: int = 0) -> dict[str, Any]:
    told = {} if deadline_ms is None else {"deadline_ms": deadline_ms}
    return {**observation(seed), "endpoint": "score", "candidates": candidates(*firsts), **told}


# ---------------------------------------------------------------------- openpi
def test_openpis_client_is_answered_as_openpi_does(serving, tiny_model) -> None:
    server = serving()
    client = OpenPi(server.url)
    assert client.metadata["embodiment"] == "tiny" and client.metadata["chunk_actions"] == K
    first, second = client.ask(observation(0)), client.ask(observation(1))
    assert first["actions"].shape == (K, A) and first["actions"].dtype == np.float32
    assert first["server_timing"]["infer_ms"] > 0 and "prev_total_ms" not in first["server_timing"]
    assert second["server_timing"]["prev_total_ms"] >= first["server_timing"]["infer_ms"]
    np.testing.assert_array_equal(
        first["actions"], JointPolicy(tiny_model).act(batch(0), [derive(0, 0, Stream.POLICY)])[0]
    )
    assert server.counts == {"clients": 1, "acted": 2}


@pytest.mark.parametrize(
    "change",
    [
        lambda o: {"observation/head": o["head"], "observation/proprio": o["proprio"], "prompt": o["prompt"]},
        lambda o: {**o, **{k: np.stack([0 * o[k], o[k]]) for k in ("head", "proprio")}},
        lambda o: {"observation/image": o["head"], "observation/state": o["proprio"], "prompt": o["prompt"]},
        lambda o: {
            "observation/exterior_image_1_left": o["head"], "observation/joint_position": o["proprio"][:2],
            "observation/gripper_position": o["proprio"][2:], "prompt": o["prompt"],
        },
        lambda o: {"head": o["head"], "arm": o["proprio"][:2], "grip": o["proprio"][2:], "instruction": o["prompt"]},
        lambda o: {"head": o["head"], "proprio": o["proprio"].tolist(), "instruction": pack_instruction(o["prompt"])},
        lambda o: {**o, "proprio": o["proprio"].astype(np.float64), "prompt": np.str_(o["prompt"]), "unknown": 1},
    ],
)  # fmt: skip
def test_an_observation_may_be_named_in_several_ways(serving, change) -> None:
    client = OpenPi(serving().url)
    plain = client.ask({**observation(), "seed": 5})["actions"]
    np.testing.assert_array_equal(client.ask({**change(observation()), "seed": 5})["actions"], plain)


BAD = [
    ({}, "view 'head': got nothing, expected uint8 (16, 16, 3)"),
    ({**observation(), "head": np.zeros((16, 16, 3), np.float32)}, "got float32 (16, 16, 3)"),
    ({**observation(), "head": np.zeros((3, 16, 16), np.uint8)}, "got uint8 (3, 16, 16)"),
    ({**observation(), "head": "picture"}, "got a str"),
    ({**observation(), "proprio": np.zeros(5)}, "proprio has shape (5,), expected (3,)"),
    ({**observation(), "proprio": np.array([0, np.nan, 0])}, "proprio holds NaN"),
    ({**observation(), "proprio": [0, 1e99, 0]}, "proprio holds NaN or infinity"),
    ({**observation(), "proprio": [[1], [2, 3]]}, "expected numbers"),
    ({**observation(), "proprio": None}, "proprio: got nothing"),
    ({**observation(), "proprio": np.zeros((0, 3))}, "proprio has shape (0, 3)"),
    ({"head": observation()["head"], "arm": np.zeros((2, 2)), "grip": 0.5, "prompt": ""}, "instruction"),
    ({**observation(), "prompt": ""}, "instruction"),
    ({**observation(), "prompt": 7}, "got int for the instruction"),
    ({**observation(), "prompt": "dance wildly"}, "dance"),
    ({**observation(), "seed": "lucky"}, "seed is 'lucky'"),
    ({**observation(), "endpoint": "destroy"}, "no endpoint 'destroy'"),
    ({**observation(), "seed": np.zeros((40, 40))}, "expected a whole number"),
    ({**observation(), "endpoint": np.zeros((40, 40))}, "no endpoint"),
    ([1, 2], "got a list"),
    (b"\xc1 not msgpack", "not msgpack"),
    (
        msgpack.packb({"x": {b"__ndarray__": True, b"data": b"", b"dtype": "|O", b"shape": []}}),
        "dtype '|O' is not sent",
    ),
    ("some text", "got a str"),
]


def test_a_bad_request_is_refused_in_one_sentence_and_the_connection_lives_on(serving) -> None:
    client = OpenPi(serving().url)
    before = client.ask({**observation(), "seed": 3})["actions"]
    for request, expected in BAD:
        said = client.ask(request)
        assert isinstance(said, str) and expected in said and "\n" not in said, said
    np.testing.assert_array_equal(client.ask({**observation(), "seed": 3})["actions"], before)
    assert client.ask(observation())["actions"].shape == (K, A)


def test_a_refused_request_draws_no_noise(serving) -> None:
    server = serving()
    one, other = OpenPi(server.url), OpenPi(server.url)
    for request, _ in BAD:
        one.ask(request)
    np.testing.assert_array_equal(one.ask(observation())["actions"], other.ask(observation())["actions"])


class Broken:
    def act(self, observation: dict, seeds: Any = None, episodes: Any = None) -> np.ndarray:
        raise RuntimeError("out of memory")

    def reset(self, episodes: Any = None) -> None: ...


def test_a_failure_of_ours_sends_the_traceback_and_closes_with_1011_but_the_server_lives_on(serving) -> None:
    server = serving(Broken())
    client = OpenPi(server.url)
    said = client.ask(observation())
    assert said.startswith("Traceback") and "RuntimeError: out of memory" in said
    with pytest.raises(ConnectionClosed) as closed:
        client.connection.recv(5)
    assert closed.value.rcvd.code == 1011
    assert OpenPi(server.url).metadata["embodiment"] == "tiny" and server.counts["failed"] == 1


def test_a_policy_that_answers_nan_moves_no_robot(serving) -> None:
    broken = Broken()
    broken.act = lambda observation, seeds=None, episodes=None: np.full((1, K, A), np.nan, np.float32)  # type: ignore[method-assign]
    assert "NaN" in OpenPi(serving(broken).url).ask(observation())


def test_two_clients_do_not_disturb_each_other(serving) -> None:
    server = serving(scorer=Nearest())
    alone = OpenPi(server.url)
    expected = [alone.ask(observation(i))["actions"] for i in range(4)]
    one, other = OpenPi(server.url), OpenPi(server.url)
    for i in range(4):
        np.testing.assert_array_equal(one.ask(observation(i))["actions"], expected[i])
        other.ask(scoring(None, 0.1, seed=9))
        np.testing.assert_array_equal(other.ask(observation(i))["actions"], expected[i])


def test_clients_that_ask_at_once_are_answered_one_by_one(serving, tiny_model) -> None:
    busy, most = [0], [0]

    class Watched(JointPolicy):
        def act(self, observation: dict, seeds: Any = None, episodes: Any = None) -> np.ndarray:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
            chunk = super().act(observation, seeds, episodes)
            busy[0] -= 1
            return chunk

    server = serving(Watched(tiny_model))
    clients = [OpenPi(server.url) for _ in range(4)]
    answers: dict[int, Any] = {}
    ask = lambda i: answers.update({i: clients[i].ask({**observation(i), "seed": i})["actions"]})  # noqa: E731
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    direct = JointPolicy(tiny_model).act(batch(0, 1, 2, 3), [0, 1, 2, 3])
    np.testing.assert_array_equal(np.stack([answers[i] for i in range(4)]), direct)
    assert most == [1]


def test_health_is_told_over_http(serving) -> None:
    with urllib.request.urlopen(serving().url.replace("ws:", "http:") + "/healthz", timeout=5) as answer:
        assert (answer.status, answer.read()) == (200, b"OK\n")


def test_an_address_in_use_is_refused(serving) -> None:
    port = int(serving().url.rsplit(":", 1)[1])
    with pytest.raises(ImagineError, match="cannot listen on 127"):
        serving(cfg=ServerConfig(port=port))


# ---------------------------------------------------------------------- RoboArena
def test_roboarena_gets_the_bare_array_and_resets_in_text(serving) -> None:
    client = OpenPi(serving().url)
    told = {k: client.metadata[k] for k in ("image_resolution", "needs_wrist_camera", "n_external_cameras")}
    assert told == {"image_resolution": [16, 16], "needs_wrist_camera": False, "n_external_cameras": 1}
    chunk = client.ask({**observation(), "endpoint": "infer", "session_id": "a", "seed": 1})
    np.testing.assert_array_equal(chunk, client.ask({**observation(), "seed": 1})["actions"])
    assert client.ask({"endpoint": "reset", "session_ids": None}) == "reset successful"


@pytest.mark.parametrize("again", [{"endpoint": "reset"}, None])
def test_an_episode_starts_where_a_session_does(serving, again) -> None:
    client = OpenPi(serving(scorer=Nearest()).url)
    client.ask({**observation(0), "session_id": "a"})
    moved = observation(1)["proprio"][0] - observation(0)["proprio"][0]
    late = {**scoring(None, 0.25, seed=1), "session_id": "a"}
    assert client.ask(late)["scores"][0] == pytest.approx(0.25 + moved, abs=1e-5)
    if again:
        client.ask(again)
    else:
        late["session_id"] = "b"
    assert client.ask(late)["scores"][0] == pytest.approx(0.25)


# ---------------------------------------------------------------------- scoring for others
def test_candidates_are_scored_by_the_scorer_and_the_best_is_preferred(serving) -> None:
    judge = Nearest()
    client = OpenPi(serving(scorer=judge).url)
    answer = client.ask(scoring(10_000, 0.1, 0.3, 0.2))
    np.testing.assert_allclose(answer["scores"], [0.1, 0.3, 0.2], rtol=1e-6)
    np.testing.assert_allclose(answer["terms"]["success"], answer["scores"] / 2)
    assert (answer["preferred"], answer["late"], answer["note"]) == (1, False, "")
    assert not answer["spread"].any() and not answer["hallucination"].any()
    assert judge.slices == [2, 1] and answer["server_timing"]["infer_ms"] > 0
    for patient in (None, 1e30):
        np.testing.assert_array_equal(client.ask(scoring(patient, 0.1, 0.3, 0.2))["scores"], answer["scores"])


def test_what_the_deadline_does_not_leave_time_for_has_no_score(serving) -> None:
    clock = Clock()
    judge = Nearest(clock, seconds=4.0)
    answer = OpenPi(serving(scorer=judge, clock=clock).url).ask(scoring(10_000, 0.1, 0.2, 0.0, 0.3, 0.4))
    assert judge.slices == [2, 2]  # a third would end at 12 s
    np.testing.assert_allclose(answer["scores"], [0.1, 0.2, 0.0, 0.3, np.nan], rtol=1e-6)
    assert (answer["preferred"], answer["late"]) == (3, False) and "4 of 5" in answer["note"]


def test_a_verdict_after_the_deadline_is_none_and_the_first_candidate_is_preferred(serving) -> None:
    clock = Clock()
    answer = OpenPi(serving(scorer=Nearest(clock, seconds=11.0), clock=clock).url).ask(scoring(10_000, 0.1, 0.2))
    assert (answer["preferred"], answer["late"]) == (0, True) and np.isnan(answer["scores"]).all()
    assert "none of 2" in answer["note"]


def test_what_was_too_slow_is_not_tried_again_at_once_but_later(serving) -> None:
    clock = Clock()
    judge = Nearest(clock, seconds=30.0)
    client = OpenPi(serving(scorer=judge, clock=clock).url)
    assert client.ask(scoring(10_000, 0.1, 0.2))["late"]
    judge.seconds = 1.0  # it was slow but once
    assert client.ask(scoring(10_000, 0.1, 0.2))["late"] and judge.slices == [2]
    late = [client.ask(scoring(10_000, 0.1, 0.2))["late"] for _ in range(3)]
    assert late == [True, False, False]


def test_an_answer_does_not_wait_for_a_judge_that_hangs(serving) -> None:
    free = threading.Event()

    def hangs(observation: dict, start: dict) -> Callable:
        return lambda candidates: (free.wait(10), {})  # type: ignore[return-value]

    answer = OpenPi(serving(scorer=hangs).url).ask(scoring(50, 0.1, 0.2))
    free.set()
    assert (answer["preferred"], answer["late"]) == (0, True)


def test_what_the_judge_cannot_tell_is_never_preferred(serving) -> None:
    def unsure(observation: dict, start: dict) -> Callable:
        return lambda chunks: (np.where(chunks[:, 0, 0] > 0.2, -np.inf, chunks[:, 0, 0]), {})

    client = OpenPi(serving(scorer=unsure).url)
    answer = client.ask(scoring(None, 0.3, 0.1, 0.2))
    assert answer["preferred"] == 2 and np.isnan(answer["scores"][0]) and np.isnan(answer["spread"]).all()
    answer = client.ask(scoring(None, 0.3, 0.4))
    assert (answer["preferred"], answer["late"]) == (0, False) and "could not tell" in answer["note"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"candidates": np.zeros((0, K, A))}, "(0, 4, 2), expected (N, 4, 2) with N at least 1"),
        ({"candidates": np.zeros((3, K + 1, A))}, "(3, 5, 2), expected (N, 4, 2)"),
        ({"candidates": np.zeros((3, K, 7))}, "chunks of embodiment 'tiny'"),
        ({"candidates": np.full((3, K, A), np.nan)}, "NaN"),
        ({"candidates": np.full((3, K, A), 90.0)}, "are the units right?"),
        ({"candidates": None}, "candidates: got nothing"),
        ({"deadline_ms": 0}, "expected more than 0"),
        ({"deadline_ms": "soon"}, "deadline_ms"),
        ({"deadline_ms": np.nan}, "deadline_ms holds NaN"),
        ({"proprio": np.zeros(2)}, "proprio has shape"),
    ],
)
def test_a_bad_score_request_is_refused_before_anything_is_imagined(serving, change: dict, expected: str) -> None:
    judge = Nearest()
    client = OpenPi(serving(scorer=judge).url)
    assert expected in client.ask({**scoring(100, 0.1, 0.2), **change}) and not judge.slices


def test_what_is_served_is_what_the_planners_scorer_says(serving, tiny_model) -> None:
    def judge(clip: Clip, instruction: Any) -> Score:
        success = clip.latents[:, -1].mean((1, 2, 3)).sigmoid()
        return Score(success, success, torch.ones(len(success), dtype=torch.bool))

    score = DreamJudge(tiny_model, judge)
    answer = OpenPi(serving(scorer=score).url).ask(scoring(None, 0.1, 0.2, 0.3))
    context = JointPolicy(tiny_model).context(batch(0))
    direct = score.score(
        PlanningState(context, context, ("push the red bowl",), (0,)), torch.from_numpy(candidates(0.1, 0.2, 0.3))[None]
    )
    np.testing.assert_array_equal(answer["scores"], direct.value[0])
    np.testing.assert_array_equal(answer["hallucination"], direct.terms["hallucination"][0])
    assert answer["preferred"] == int(direct.value[0].argmax()) and len(set(answer["scores"].tolist())) == 3


def test_a_server_without_a_judge_says_so(serving) -> None:
    server = serving()
    assert "no judge" in OpenPi(server.url).ask(scoring(100, 0.1))
    with RemotePolicy(server.url) as client, pytest.raises(RemoteError, match="scores nothing"):
        client.score(observation(), "push", candidates(0.1), 100)


# ---------------------------------------------------------------------- our client
def test_a_remote_policy_answers_with_the_bytes_of_the_policy_itself(serving, tiny_model) -> None:
    with RemotePolicy(serving().url, K, A) as policy:
        assert isinstance(policy, Policy)
        policy.reset(None)
        chunk = policy.act(batch(0, 1, 2), [7, 8, 9])
    assert chunk.tobytes() == JointPolicy(tiny_model).act(batch(0, 1, 2), [7, 8, 9]).tobytes()
    assert chunk.dtype == np.float32 and chunk.shape == (3, K, A)


def test_the_client_has_candidates_scored(serving) -> None:
    seen = {k: v[0] for k, v in batch(0).items()}
    with RemotePolicy(serving(scorer=Nearest()).url, K, A) as client:
        ranking = client.score(seen, "push the red bowl", candidates(0.1, 0.3), deadline_ms=10_000)
        assert (ranking.preferred, ranking.late) == (1, False) and ranking.terms["success"].shape == (2,)
        client.act(batch(1))
        client.reset()
        assert client.score(seen, "push the red bowl", candidates(0.1), 10_000).scores[0] == pytest.approx(0.1)
        with pytest.raises(RemoteError, match="dance"):
            client.act({**batch(0), "instruction": pack_instruction("dance")[None]})


def elsewhere(answers: Callable[[Any], Any], metadata: Any = None) -> tuple[Any, str]:
    """Some other openpi server, that answers as told; bytes and text are sent as they are."""

    def converse(connection: Any) -> None:
        connection.send(to_wire(metadata or {}))
        for message in connection:
            said = answers(from_wire(message))
            connection.send(said if isinstance(said, bytes | str) else to_wire(said))

    server = serve(converse, "127.0.0.1", 0, compression=None, max_size=None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"ws://127.0.0.1:{server.socket.getsockname()[1]}"


def test_the_client_speaks_to_any_openpi_server() -> None:
    heard = []
    server, url = elsewhere(lambda seen: heard.append(seen) or {"actions": np.ones((10, A))})
    with RemotePolicy(url, K, A, rename={"head": "observation/image"}) as policy:
        chunk = policy.act(batch(0, 1), [1, 2])
    server.shutdown()
    np.testing.assert_array_equal(chunk, np.ones((2, K, A), np.float32))
    assert [sorted(seen) for seen in heard] == [["observation/image", "prompt", "proprio"]] * 2
    assert heard[0]["prompt"] == "push the red bowl"


def test_the_client_speaks_to_roboarena_servers_one_lane_at_a_time() -> None:
    heard = []
    server, url = elsewhere(lambda seen: heard.append(seen) or np.ones((K, A)), {"needs_session_id": True})
    with RemotePolicy(url, K, A) as policy:
        assert policy.act(batch(0)).shape == policy.act(batch(1)).shape == (1, K, A)
        policy.reset()
        policy.act(batch(2))
        with pytest.raises(RemoteError, match="one episode at a time"):
            policy.act(batch(0, 1))
    server.shutdown()
    first, second, third = (seen["session_id"] for seen in heard)
    assert first == second != third and heard[0]["endpoint"] == "infer"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"actions": np.ones((K, A + 1))}, "expected actions of shape"),
        ({"actions": np.ones((K - 1, A))}, "expected actions of shape"),
        ({"actions": np.full((K, A), np.inf)}, "NaN or infinity"),
        ({"other": 1}, "answered a NoneType"),
        (b"\xc1", "not msgpack"),
        ("Traceback ...\nValueError: no such camera\n", "refused: ValueError: no such camera"),
    ],
)
def test_the_client_refuses_what_is_no_chunk(answer: Any, expected: str) -> None:
    server, url = elsewhere(lambda seen: answer)
    with RemotePolicy(url, K, A) as policy, pytest.raises(wire.WireError, match=expected):
        policy.act(batch(0))
    server.shutdown()


@pytest.mark.parametrize(
    "change",
    [{"preferred": 5}, {"preferred": "best"}, {"scores": np.zeros(3)}, {"terms": [1]}, {"spread": [0.0, 0.0]}, None],
)
def test_the_client_refuses_what_is_no_ranking(change: dict | None) -> None:
    whole = {k: np.zeros(2, np.float32) for k in ("scores", "spread", "hallucination")}
    whole |= {"preferred": 0, "late": False, "terms": {}, "note": ""}
    server, url = elsewhere(lambda seen: 7 if change is None else whole | change, {"accepts": ["score"]})
    with RemotePolicy(url, K, A) as policy, pytest.raises(RemoteError, match="expected a ranking"):
        policy.score({k: v[0] for k, v in batch(0).items()}, "push", candidates(0.1, 0.2), 5000)
    server.shutdown()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (msgpack.packb({b"__npgeneric__": True, b"data": 2**33, b"dtype": "S1"}), "is not sent"),
        (b"\xdd" + (2**22).to_bytes(4, "big") + b"\x80" * 2**22, "more than"),
        (b"\0" * 2**25, "hung up"),
        ("no " * 2**20, "refused: no no"),
    ],
)
def test_a_hostile_server_costs_its_client_one_sentence(said: Any, expected: str) -> None:
    server, url = elsewhere(lambda seen: said, {"accepts": 7})
    with RemotePolicy(url, K, A) as policy, pytest.raises(wire.WireError, match=expected) as refused:
        policy.act(batch(0))
    server.shutdown()
    assert len(str(refused.value)) < 600


def test_the_client_connects_anew_when_the_server_was_started_again(serving, tiny_model) -> None:
    server = serving()
    policy = RemotePolicy(server.url, K, A)
    before = policy.act(batch(0), [1])
    server.close()
    port = int(server.url.rsplit(":", 1)[1])
    serving(cfg=ServerConfig(port=port))
    np.testing.assert_array_equal(policy.act(batch(0), [1]), before)
    policy.close()
    np.testing.assert_array_equal(policy.act(batch(0), [1]), before)
    policy.close()


def test_the_client_does_not_wait_for_ever_and_never_mistakes_an_old_answer_for_a_new_one() -> None:
    free = threading.Event()

    def slow(seen: dict) -> Any:
        if seen.get("endpoint") == "score":
            free.wait(5)
        return {"actions": np.full((K, A), seen["proprio"][0])}

    server, url = elsewhere(slow, {"accepts": ["score"]})
    with RemotePolicy(url, K, A) as policy:
        ranking = policy.score({k: v[0] for k, v in batch(0).items()}, "push", candidates(0.1, 0.2), 10)
        assert (ranking.preferred, ranking.late) == (0, True) and "within 10 ms" in ranking.note
        free.set()
        assert policy.act(batch(1))[0, 0, 0] == batch(1)["proprio"][0, 0]
        free.clear()
        policy.timeout = 0.05
        with pytest.raises(RemoteError, match="gave no answer in"):
            policy._ask({**observation(2), "endpoint": "score"})
        free.set()
        policy.timeout = 5
        assert policy.act(batch(3))[0, 0, 0] == batch(3)["proprio"][0, 0]
    server.shutdown()


def test_where_nobody_listens_or_another_robot_is_served_the_client_says_so(serving) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(RemoteError, match="no policy server answers"):
            RemotePolicy(f"ws://127.0.0.1:{taken.getsockname()[1]}", timeout=2)
    for address in ("http://here", "ws://", "ws://here:port"):
        with pytest.raises(RemoteError, match=r"expected .*ws://HOST:PORT"):
            RemotePolicy(address)
    with pytest.raises(RemoteError, match="serves tiny with 2 action values, expected 14"):
        RemotePolicy(serving().url, K, 14)


def test_what_is_committed_goes_over_the_wire(serving, tiny_model) -> None:
    """A remote policy continues what is committed exactly as the same policy here; others say that they cannot."""
    here, body = JointPolicy(tiny_model), tiny_model.body
    begin = np.clip(here.act(batch(0, 1), [3, 4])[:, :2] + 0.01, body.action_low, body.action_high)
    with RemotePolicy(serving().url, K, A) as remote:
        assert remote.takes_committed
        said = remote.act(batch(0, 1), [7, 8], committed=begin)
        assert said.tobytes() == here.act(batch(0, 1), [7, 8], committed=begin).tobytes()
        for wrong in (begin[:, :, :1], np.repeat(begin, K, 1), begin + np.nan):
            with pytest.raises(RemoteError, match="committed"):
                remote.act(batch(0, 1), [7, 8], committed=wrong)
    fixed = RandomPolicy(body.action_low, body.action_high, K)
    with RemotePolicy(serving(policy=fixed).url, K, A) as remote:
        assert not remote.takes_committed
        with pytest.raises(RemoteError, match="cannot go on"):
            remote.act(batch(0), [7], committed=begin[:1])


def test_the_client_needs_no_torch() -> None:
    loaded = "{m.split('.')[0] for m in sys.modules}"
    code = f"import sys, imagine.policy.client\nprint(sorted({loaded} & {{'torch', 'pydantic'}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# ---------------------------------------------------------------------- imagine serve
def test_imagine_serve_says_where_it_listens_and_stops_when_told(tmp_path: Path, tiny_model) -> None:
    tiny_model.save_pretrained(tmp_path / "tiny")
    words = ["serve", "--model", tmp_path / "tiny", "--judge", "none", "--port", 0, "--out", tmp_path / "run", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "imagine.configs.cli", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        line = process.stderr.readline()  # type: ignore[union-attr]
        assert "serving base of" in line
        url = next(word for word in line.split() if word.startswith("ws://")).rstrip(";")
        with RemotePolicy(url, K, A) as policy:
            policy.act(batch(0, 1), [1, 2])
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert json.loads(out)["acted"] == 2 == json.loads((tmp_path / "run" / "metrics.json").read_text())["acted"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["--port", "70000"], "--port is 70000"), (["--policy", "expert"], "true state"), (["--judge"], "--judge")],
)
def test_a_bad_serve_command_is_answered_in_one_sentence(words: list[str], expected: str, capfd) -> None:
    from imagine.configs import cli

    assert cli.main(["serve", *words]) == 2
    out, err = capfd.readouterr()
    assert out == "" and expected in err and err.count("\n") == 1
