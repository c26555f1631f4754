"""A judge behind HTTP: what it is sent, what its answers mean, and every way in which there may be none."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import math
import os
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from imagine.model.model import SHIPPED
from imagine.rewards.endpoint import EndpointConfig, EndpointVLM
from imagine.rewards.local import Ask
from imagine.rewards.prompts import NO, SUCCESS, YES
from imagine.types import RewardUnavailable, ShapeError

KEY = "sk-secret-0123456789"
Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]] | None  # status, body, headers; None hangs up
TOP = {"yes": 0.5, " Yes": 0.25, "no": 0.125, "maybe": 0.0625}


class FakeServer(ThreadingHTTPServer):
    """Answers every request as a script says; remembers what it was sent."""

    daemon_threads = True

    def __init__(self, script: Callable[[dict[str, Any], int], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.script, self.bodies, self.keys, self.lock = script, [], [], threading.Lock()
        self.now, self.most = 0, 0  # requests at a time
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def questions(self) -> list[str]:
        return [body["messages"][0]["content"][-1]["text"] for body in self.bodies]


class FakeHandler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.keys.append(self.headers.get("Authorization"))
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
            n = len(self.server.bodies)
        reply = self.server.script(body, n) if self.path == "/v1/chat/completions" else (404, "no such path")
        with self.server.lock:
            self.server.now -= 1
        if reply is None:
            return
        status, said, headers = (*reply, {})[:3]
        raw = said if isinstance(said, bytes) else (said if isinstance(said, str) else json.dumps(said)).encode()
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)
        except OSError:  # who asked has gone
            pass

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def a_key_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeServer]]:
    started: list[FakeServer] = []

    def start(script: Callable[[dict[str, Any], int], Reply]) -> FakeServer:
        server = FakeServer(script)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def words(top: dict[str, float]) -> Reply:
    """A completion with the likeliest words and their probabilities."""
    likely = [{"token": word, "logprob": math.log(p)} for word, p in top.items()]
    choice = {"message": {"content": "yes"}, "logprobs": {"content": [{**likely[0], "top_logprobs": likely}]}}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 1}}


def text(said: str) -> Reply:
    """A completion as servers without log probabilities give it."""
    return 200, {"choices": [{"message": {"content": said}}], "usage": {"prompt_tokens": 7, "completion_tokens": 1}}


def judge(url: str, **changes: Any) -> EndpointVLM:
    return EndpointVLM(
        EndpointConfig(**{"url": url, "model": "m", "timeout": 5, "backoff": 0.01, "retries": 2, **changes})
    )


def some_clips(clips: int = 1, moments: int = 1, views: int = 1, pictures: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (clips, moments, views, pictures, 8, 12, 3), generator=g, dtype=torch.uint8)


def some_asks(clips: int = 1, questions: int = 1, moments: int = 1) -> list[list[Ask]]:
    return [[Ask(f"clip {b} question {j}?", moments, YES, NO) for j in range(questions)] for b in range(clips)]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


# -------------------------------------------------------------------- what is asked, and what the answer means


def test_margin_and_coverage_are_those_of_the_likeliest_words(serve: Callable[..., FakeServer]) -> None:
    server = serve(lambda body, n: words(TOP))
    vlm = judge(server.url)
    answers = vlm.ask(some_clips(2), some_asks(2, 3))
    assert answers.margin.shape == answers.coverage.shape == (2, 3)
    assert answers.margin.dtype == answers.coverage.dtype == torch.float32
    torch.testing.assert_close(answers.margin, torch.full((2, 3), math.log(0.75 / 0.125)))
    torch.testing.assert_close(answers.coverage, torch.full((2, 3), 0.875))
    assert answers.understood.tolist() == [True, True]
    assert sorted(server.questions()) == [f"clip {b} question {j}?" for b in range(2) for j in range(3)]
    assert (vlm.usage.requests, vlm.usage.prompt_tokens, vlm.usage.completion_tokens) == (6, 42, 6)
    assert vlm.usage.failed == vlm.usage.retries == vlm.usage.cached == 0 < vlm.usage.seconds


def test_each_question_gets_its_own_answer(serve: Callable[..., FakeServer]) -> None:
    odds = {f"clip {b} question {j}?": (1 + b + 2 * j) / 8 for b in range(2) for j in range(3)}

    def script(body: dict[str, Any], n: int) -> Reply:
        p = odds[body["messages"][0]["content"][-1]["text"]]
        return words({"Yes": p, "No": 0.9 - p})

    got = judge(serve(script).url).ask(some_clips(2), some_asks(2, 3)).margin
    want = torch.tensor([[(p := odds[q.text]) / (0.9 - p) for q in a] for a in some_asks(2, 3)]).log()
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("top", "margin", "coverage"),
    [
        ({"yes": 0.8, "perhaps": 0.1, "so": 0.01}, math.log(0.8 / 0.01), 0.8),  # at most as likely as the last one
        ({"no": 0.8, "perhaps": 0.1, "so": 0.01}, math.log(0.01 / 0.8), 0.8),
        ({"yes": 0.9}, math.log(0.9 / 0.1), 0.9),  # at most what one word leaves
    ],
)
def test_a_side_that_is_not_among_the_likeliest_is_bounded(
    serve: Callable[..., FakeServer], top: dict[str, float], margin: float, coverage: float
) -> None:
    answers = judge(serve(lambda body, n: words(top)).url).ask(some_clips(), some_asks())
    assert answers.margin.item() == pytest.approx(margin, rel=1e-4)
    assert answers.coverage.item() == pytest.approx(coverage, rel=1e-5)


def test_placeholders_for_impossible_words_bound_nothing(serve: Callable[..., FakeServer]) -> None:
    likely = [{"token": "yes", "logprob": -0.1}, {"token": "so", "logprob": -4.0}, {"token": "no", "logprob": -9999.0}]
    reply = {"choices": [{"message": {"content": ""}, "logprobs": {"content": [{"top_logprobs": likely}]}}]}
    answers = judge(serve(lambda body, n: (200, reply)).url).ask(some_clips(), some_asks())
    assert answers.margin.item() == pytest.approx(3.9, rel=1e-4)


def decoded(body: dict[str, Any]) -> list[np.ndarray]:
    urls = [part["image_url"]["url"] for part in body["messages"][0]["content"][:-1]]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))) for url in urls]


def test_one_word_is_asked_for_after_the_pictures(serve: Callable[..., FakeServer]) -> None:
    server, clips = serve(lambda body, n: words(TOP)), some_clips(moments=3, views=2)
    judge(server.url, top_logprobs=7).ask(clips, some_asks(moments=2))
    (body,) = server.bodies
    shown = [view[0].numpy() for moment in clips[0, :2] for view in moment]
    assert all(np.array_equal(a, b) for a, b in zip(decoded(body), shown, strict=True))
    del body["messages"]
    assert body == {"model": "m", "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 7}
    assert server.keys == [f"Bearer {KEY}"]


def test_of_first_and_now_pairs_the_first_picture_is_shown_once(serve: Callable[..., FakeServer]) -> None:
    server, clips = serve(lambda body, n: words(TOP)), some_clips(moments=3, views=2, pictures=2)
    clips[:, :, :, 0] = clips[:, :1, :, 0]
    clips[0, 2, 0, 1] = clips[0, 0, 0, 0]  # everything is as it was: that is news, and shown
    judge(server.url).ask(clips, some_asks(moments=3))
    first, now = clips[0, 0, :, 0], clips[0, :, :, 1]
    shown = [first[0], now[0, 0], first[1], now[0, 1], now[1, 0], now[1, 1], now[2, 0], now[2, 1]]
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(decoded(server.bodies[0]), shown, strict=True))


def test_two_pictures_that_are_no_such_pair_are_all_shown(serve: Callable[..., FakeServer]) -> None:
    server, clips = serve(lambda body, n: words(TOP)), some_clips(moments=2, pictures=2)
    judge(server.url).ask(clips, some_asks(moments=2))
    assert len(decoded(server.bodies[0])) == 4


def test_without_a_key_none_is_sent(serve: Callable[..., FakeServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    server = serve(lambda body, n: words(TOP))
    judge(server.url).ask(some_clips(), some_asks())
    assert server.keys == [None]


def test_clips_and_questions_that_do_not_fit_are_refused(serve: Callable[..., FakeServer]) -> None:
    server = serve(lambda body, n: words(TOP))
    for clips, asks in (
        (some_clips()[0], some_asks()),
        (some_clips().float(), some_asks()),
        (some_clips()[:0], []),
        (some_clips(2), some_asks(1)),
        (some_clips(), [[]]),
        (some_clips(moments=1), some_asks(moments=2)),
    ):
        with pytest.raises(ShapeError):
            judge(server.url).ask(clips, asks)
    assert not server.bodies


@pytest.mark.parametrize("wrong", [{"url": "127.0.0.1:8000"}, {"url": "http://me:word@host/v1"}, {"tiemout": 3}])
def test_a_config_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EndpointConfig(**{"url": "http://host/v1", "model": "m", **wrong})


# -------------------------------------------------------------------- votes


REFUSALS: dict[str, Reply] = {
    "refused": (400, {"error": {"message": "logprobs are not supported by this model", "code": 400}}),
    "forbidden": (403, {"error": {"message": "You are not allowed to request logprobs from this model"}}),
    "unexpected": (422, {"detail": "Unexpected fields in the request: {'logprobs', 'top_logprobs'}"}),
    "ignored": (200, {"choices": [{"message": {"content": "yes"}, "logprobs": None}]}),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_without_log_probabilities_votes_are_counted(serve: Callable[..., FakeServer], refusal: str) -> None:
    said = ["Yes.", " no", "yes, it has", "I cannot tell", "**Yes**"]
    server = serve(lambda body, n: REFUSALS[refusal] if "logprobs" in body else text(said[body["seed"]]))
    vlm = judge(server.url, concurrency=1)
    answers = vlm.ask(some_clips(), some_asks(questions=2))
    p = (3 + 0.5) / (4 + 1)
    torch.testing.assert_close(answers.margin, torch.full((1, 2), math.log(p / (1 - p))))
    torch.testing.assert_close(answers.coverage, torch.full((1, 2), 4 / 5))
    votes = [body for body in server.bodies if "logprobs" not in body]
    assert len(votes) == 10 and {v["seed"] for v in votes} == set(range(5)) and vlm.usage.failed == 0
    assert all(v["temperature"] == 1 and v["max_tokens"] <= 8 and "top_logprobs" not in v for v in votes)
    vlm.ask(some_clips(), some_asks())
    assert sum("logprobs" in body for body in server.bodies) == 1  # asked for once, then never again


def test_a_server_that_takes_no_seed_is_asked_without(serve: Callable[..., FakeServer]) -> None:
    def script(body: dict[str, Any], n: int) -> Reply:
        if "logprobs" in body:
            return REFUSALS["refused"]
        return (400, {"error": "unknown parameter: seed"}) if "seed" in body else text("no")

    server = serve(script)
    vlm = judge(server.url, votes=3, concurrency=1)
    answers = vlm.ask(some_clips(), some_asks())
    assert answers.margin.item() == pytest.approx(math.log(0.5 / 3.5)) and answers.coverage.item() == 1
    assert sum("seed" in body for body in server.bodies) == 1


def test_votes_that_say_nothing_have_no_coverage(serve: Callable[..., FakeServer]) -> None:
    server = serve(lambda body, n: REFUSALS["refused"] if "logprobs" in body else text("nobody knows yesterday"))
    answers = judge(server.url).ask(some_clips(), some_asks())
    assert answers.margin.item() == answers.coverage.item() == 0


def test_an_empty_answer_does_not_unlearn_log_probabilities(serve: Callable[..., FakeServer]) -> None:
    server = serve(lambda body, n: text("") if n == 2 or "logprobs" not in body else words(TOP))
    answers = judge(server.url, concurrency=1, votes=2).ask(some_clips(), some_asks(questions=3))
    assert answers.coverage.tolist() == [[0.875, 0.0, 0.875]]


def test_free_text_is_sampled_per_vote(serve: Callable[..., FakeServer]) -> None:
    def script(body: dict[str, Any], n: int) -> Reply:
        question = body["messages"][0]["content"][-1]["text"]
        return None if (question, body["seed"]) == ("clip 1 question 0?", 1) else text(f"{question} {body['seed']}")

    server = serve(script)
    said = judge(server.url).say(some_clips(2), some_asks(2, 2), 3, 50, 0.7)
    want = [[[f"clip {b} question {j}? {v}" for v in range(3)] for j in range(2)] for b in range(2)]
    want[1][0][1] = ""
    assert said == want
    assert {(b["max_tokens"], b["temperature"], "logprobs" in b) for b in server.bodies} == {(50, 0.7, False)}


# -------------------------------------------------------------------- no answer


def test_a_server_that_is_down_is_an_error() -> None:
    vlm = judge(url := f"http://127.0.0.1:{free_port()}/v1", concurrency=1)
    with pytest.raises(RewardUnavailable, match=f"{url}.*refused.*start the server"):
        vlm.ask(some_clips(), some_asks(questions=50))
    assert vlm.usage.requests <= 9 and vlm.usage.failed == 50  # it does not try every question in vain
    with pytest.raises(RewardUnavailable):
        vlm.say(some_clips(), some_asks(), 2, 9, 1.0)


def test_a_server_that_is_too_slow_is_an_error(serve: Callable[..., FakeServer]) -> None:
    done = threading.Event()
    server = serve(lambda body, n: None if done.wait(3) else words(TOP))
    with pytest.raises(RewardUnavailable, match=r"timed out.*raise timeout \(now 0.1 s\)"):
        judge(server.url, timeout=0.1, retries=1).ask(some_clips(), some_asks())
    assert len(server.bodies) == 2
    done.set()


def test_a_slow_answer_costs_only_its_question(serve: Callable[..., FakeServer]) -> None:
    done = threading.Event()

    def script(body: dict[str, Any], n: int) -> Reply:
        if body["messages"][0]["content"][-1]["text"] == "clip 0 question 1?":
            done.wait(3)
        return words(TOP)

    answers = judge(serve(script).url, timeout=0.2, retries=0).ask(some_clips(), some_asks(questions=4))
    done.set()
    assert answers.coverage.tolist() == [[0.875, 0, 0.875, 0.875]] and answers.margin[0, 1] == 0


@pytest.mark.parametrize(
    "reply",
    [
        (200, "<html>Welcome to nginx!</html>"),
        (200, "[1, 2"),
        (200, "null"),
        (200, "[" * 100_000),
        (200, {"error": "overloaded"}),
        (200, {"choices": []}),
        (200, {"choices": [{"message": {"content": ["a"]}}]}),
        (200, {"choices": [{"message": {}, "logprobs": {"content": [{"top_logprobs": [{"token": "yes"}]}]}}]}),
        words({"maybe": 0.5, "eyes": 0.25, "nothing": 0.125}),
        words({"yes": 7.5, "no": 2.5}),  # raw logits, no probabilities
    ],
    ids=["html", "cut", "null", "deep", "error", "no choices", "no text", "no numbers", "other words", "logits"],
)
def test_nonsense_is_neither_yes_nor_no(serve: Callable[..., FakeServer], reply: Reply) -> None:
    answers = judge(serve(lambda body, n: reply).url).ask(some_clips(), some_asks(questions=2))
    assert answers.margin.tolist() == answers.coverage.tolist() == [[0, 0]]


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
def test_of_an_endless_or_inflated_answer_little_is_read(serve: Callable[..., FakeServer], headers: dict) -> None:
    said = gzip.compress(bytes(2**28)) if headers else b"x" * 2**26
    server = serve(lambda body, n: (200, said, headers))
    tracemalloc.start()
    try:
        answers = judge(server.url).ask(some_clips(), some_asks())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answers.coverage.tolist() == [[0]] and most < 2**25


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_says(serve: Callable[..., FakeServer], status: int) -> None:
    server = serve(lambda body, n: (status, "busy", {"Retry-After": "0.3"}) if n == 1 else words(TOP))
    vlm, began = judge(server.url), time.monotonic()
    assert vlm.ask(some_clips(), some_asks()).coverage.item() == 0.875
    assert time.monotonic() - began >= 0.3
    assert (vlm.usage.requests, vlm.usage.retries, vlm.usage.failed) == (2, 1, 0)


def test_no_pause_is_longer_than_the_timeout(serve: Callable[..., FakeServer]) -> None:
    server = serve(lambda body, n: (429, "busy", {"Retry-After": "9999"}) if n == 1 else words(TOP))
    began = time.monotonic()
    assert judge(server.url, timeout=0.5).ask(some_clips(), some_asks()).coverage.item() == 0.875
    assert time.monotonic() - began < 3


def test_pauses_leave_the_callers_random_numbers_alone(serve: Callable[..., FakeServer]) -> None:
    import random

    server = serve(lambda body, n: None if n == 1 else words(TOP))
    before = random.getstate()
    judge(server.url).ask(some_clips(), some_asks())
    assert random.getstate() == before


@pytest.mark.parametrize(("status", "advice"), [(401, "OPENAI_API_KEY"), (404, "/v1"), (400, "objects to")])
def test_a_refusal_is_an_error_that_is_not_tried_again(
    serve: Callable[..., FakeServer], status: int, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(lambda body, n: (status, {"error": f"no, {KEY}, not so"}))
    vlm = judge(server.url, concurrency=2)
    with caplog.at_level(logging.DEBUG), pytest.raises(RewardUnavailable, match=advice) as raised:
        vlm.ask(some_clips(), some_asks(questions=10))
    assert len(server.bodies) == (10 if status == 400 else pytest.approx(2, abs=1))
    assert vlm.usage.retries == 0 and vlm.usage.failed == 10
    assert KEY not in str(raised.value) + caplog.text + repr(vlm.cfg) and f"HTTP {status}" in str(raised.value)


def test_the_key_follows_no_redirection(serve: Callable[..., FakeServer]) -> None:
    other = serve(lambda body, n: words(TOP))
    server = serve(lambda body, n: (307, "", {"Location": f"{other.url}/chat/completions"}))
    with pytest.raises(RewardUnavailable, match="check the url"):
        judge(server.url).ask(some_clips(), some_asks())
    assert len(server.bodies) == 1 and not other.bodies


def test_one_question_that_is_refused_costs_only_itself(serve: Callable[..., FakeServer]) -> None:
    def script(body: dict[str, Any], n: int) -> Reply:
        long = body["messages"][0]["content"][-1]["text"] == "clip 0 question 0?"
        return (400, {"error": "context too long"}) if long else words(TOP)

    answers = judge(serve(script).url).ask(some_clips(), some_asks(questions=3))
    assert answers.coverage.tolist() == [[0, 0.875, 0.875]]


def test_a_key_that_no_header_can_hold_stays_secret(
    serve: Callable[..., FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one\nsk-two")
    with pytest.raises(RewardUnavailable, match="OPENAI_API_KEY") as raised:
        judge(serve(lambda body, n: words(TOP)).url, retries=0).ask(some_clips(), some_asks())
    assert "sk-" not in str(raised.value)


def test_what_a_dying_server_answered_is_kept_and_the_rest_asked_later(
    serve: Callable[..., FakeServer], tmp_path: Path
) -> None:
    alive, cfg = threading.Event(), {"concurrency": 1, "retries": 0, "cache": tmp_path}
    server = serve(lambda body, n: words(TOP) if n <= 3 or alive.is_set() else None)
    vlm = judge(server.url, **cfg)
    answers = vlm.ask(some_clips(2), some_asks(2, 4))
    assert answers.coverage.tolist() == [[0.875, 0.875, 0.875, 0], [0, 0, 0, 0]]
    assert answers.margin[0, 3] == 0 and not answers.margin[1].any()
    before = len(server.bodies)
    assert before <= 3 + 3 and vlm.usage.failed == 5  # soon given up
    alive.set()
    assert vlm.ask(some_clips(2), some_asks(2, 4)).coverage.eq(0.875).all()
    assert len(server.bodies) - before == 5 and vlm.usage.cached == 3


def test_there_are_never_more_requests_at_a_time_than_allowed(serve: Callable[..., FakeServer]) -> None:
    def script(body: dict[str, Any], n: int) -> Reply:
        time.sleep(0.02)
        return words(TOP)

    server = serve(script)
    vlm = judge(server.url, concurrency=3)
    both = [threading.Thread(target=vlm.ask, args=(some_clips(3), some_asks(3, 4))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(server.bodies) == 24 and server.most == 3


# -------------------------------------------------------------------- the cache


def test_equal_questions_about_equal_clips_are_asked_once(serve: Callable[..., FakeServer]) -> None:
    """As when a dream fills its last tile of lanes by repeating one."""
    vlm = judge(serve(lambda body, n: words({"yes": 0.9, "no": 0.1})).url)
    clips, asks = some_clips().expand(8, *[-1] * 6), some_asks() * 8
    answers = vlm.ask(clips, asks)
    assert vlm.usage.requests == 1 and answers.margin.shape == (8, 1)
    assert len(set(answers.margin[:, 0].tolist())) == 1 and (answers.coverage > 0.99).all()


def test_what_was_answered_is_not_asked_again(serve: Callable[..., FakeServer], tmp_path: Path) -> None:
    server, clips, asks = serve(lambda body, n: words(TOP)), some_clips(2), some_asks(2, 2)
    first = judge(server.url, cache=tmp_path / "new").ask(clips, asks)
    other = judge(f"http://127.0.0.1:{free_port()}/v1", cache=tmp_path / "new")  # nobody is there
    again = other.ask(clips, asks)
    assert torch.equal(first.margin, again.margin) and torch.equal(first.coverage, again.coverage)
    assert len(server.bodies) == 4 and (other.usage.cached, other.usage.requests) == (4, 0)
    clips[0, 0, 0, 0, 0, 0, 0] += 1  # one value of one pixel
    changed = judge(server.url, cache=tmp_path / "new")
    changed.ask(clips, asks)
    assert (changed.usage.cached, changed.usage.requests) == (2, 2)
    elsewhere = judge(server.url, cache=tmp_path / "new", model="another")
    elsewhere.ask(clips, asks)
    assert elsewhere.usage.cached == 0


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"text": 1}', '{"text": "", "top": [["yes"]]}', "\udcff"])
def test_a_damaged_entry_is_asked_again(serve: Callable[..., FakeServer], tmp_path: Path, damage: str) -> None:
    server = serve(lambda body, n: words(TOP))
    judge(server.url, cache=tmp_path).ask(some_clips(), some_asks())
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage.encode(errors="surrogateescape"))
    assert judge(server.url, cache=tmp_path).ask(some_clips(), some_asks()).coverage.item() == 0.875
    assert len(server.bodies) == 2 and entry.read_bytes() == whole and list(tmp_path.iterdir()) == [entry]


def test_neither_the_key_nor_a_failure_is_kept(serve: Callable[..., FakeServer], tmp_path: Path) -> None:
    replies: list[Reply] = [text(f"your key is {KEY}"), (400, "no"), (200, "<html>")]
    server = serve(lambda body, n: replies[n - 1])
    said = judge(server.url, cache=tmp_path, concurrency=1).say(some_clips(), some_asks(), 3, 9, 1.0)
    assert said == [[["your key is ***", "", ""]]]
    (entry,) = tmp_path.iterdir()
    assert KEY not in entry.read_text()


def test_a_cache_that_cannot_be_written_costs_no_answer(serve: Callable[..., FakeServer], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    vlm = judge(serve(lambda body, n: words(TOP)).url, cache=tmp_path / "file")
    assert vlm.ask(some_clips(), some_asks()).coverage.item() == 0.875


# -------------------------------------------------------------------- a real server


@pytest.fixture
def judge_tiny(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """``transformers serve`` with the shipped judge-tiny: its process, url and model."""
    folder, port = SHIPPED / "judge-tiny", free_port()
    command = [sys.executable, str(Path(__file__).parent / "serve_judge.py"), str(folder), str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (
        open(tmp_path / "log", "wb") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as server,
    ):
        try:
            deadline = time.monotonic() + 120
            while not healthy(f"http://127.0.0.1:{port}/health"):
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.1)
            yield server, f"http://127.0.0.1:{port}/v1", str(folder)
        finally:
            server.kill()


def healthy(url: str) -> bool:
    try:
        with urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
def test_a_real_server_answers_until_it_is_killed(
    judge_tiny: tuple[subprocess.Popen[bytes], str, str], tmp_path: Path
) -> None:
    server, url, model = judge_tiny
    g = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (2, 2, 1, 2, 32, 48, 3), generator=g, dtype=torch.uint8)
    clips[:, :, :, 0] = clips[:, :1, :, 0]
    question = SUCCESS.fill("push the block")
    asks = [[Ask(question, 1, YES, NO), Ask(question, 2, YES, NO)] for _ in range(2)]
    # One at a time: the server has one random generator for all, and a vote's seed would be lost to the next request.
    vlm = judge(url, model=model, timeout=30, concurrency=1, votes=15, cache=tmp_path / "cache")
    answers, usage = vlm.ask(clips, asks), vlm.usage
    assert usage.failed == usage.retries == 0 and usage.requests == 1 + 60  # log probabilities in vain, then votes
    assert usage.prompt_tokens > 60 * 2 * 6 and usage.completion_tokens > 60  # 2 pictures or 3, of 6 tokens each
    said = vlm.say(clips, asks, 15, 4, 1)
    assert vlm.usage.requests == usage.requests  # they are the same requests, so these are the votes
    for b, texts in enumerate(said):
        for j, votes in enumerate(texts):
            verdicts = [next((w for w in vote.split() if w in YES + NO), None) for vote in votes]
            k, n = sum(v in YES for v in verdicts), sum(v is not None for v in verdicts)
            assert answers.margin[b, j].item() == pytest.approx(math.log((k + 0.5) / (n - k + 0.5)), abs=1e-5)
            assert answers.coverage[b, j].item() == pytest.approx(n / 15) and n > 0

    server.kill()
    server.wait(10)
    assert torch.equal(vlm.ask(clips, asks).margin, answers.margin)  # from the cache
    with pytest.raises(RewardUnavailable, match="start the server"):
        vlm.ask(255 - clips, asks)
