"""Chat completions from any OpenAI-compatible server: bounded, retried, counted, cached. Knows nothing of questions.

The ``openai`` client does the HTTP; retries are counted here, because they stop for all requests once the server is
gone and must not move the caller's random numbers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from imagine.extras import extra
from imagine.files import atomic_write

Content = list[dict[str, Any]]  # parts of a message: pictures, then a question

KEY = "OPENAI_API_KEY"
"""Environment variable that holds the key; it may be unset."""

LARGEST_ANSWER = 2**22
"""Bytes of an answer that are read; it is asked for, and taken, uncompressed."""
_FAILURES = 3  # requests given up in a row, at least, before the server is taken for gone
_log = logging.getLogger(__name__)


class EndpointConfig(BaseModel):
    """Where the judge is, and how patiently it is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern=r"^https?://[^@\s]+$")  # base, as http://127.0.0.1:8000/v1; no user:password@ in it
    model: str = Field(min_length=1)  # as the server calls it
    timeout: float = Field(default=60.0, gt=0)  # seconds of silence per request; also the longest pause between tries
    retries: int = Field(default=3, ge=0)  # per request, after failures that may pass
    backoff: float = Field(default=0.5, ge=0)  # seconds before the first retry; doubles with each, give or take half
    concurrency: int = Field(default=8, ge=1)  # requests at a time, of all calls together
    votes: int = Field(default=5, ge=1)  # per question, where the server gives no log probabilities
    top_logprobs: int = Field(default=20, ge=2, le=20)  # likeliest words asked for; some servers allow 5
    cache: Path | None = None  # folder of answers, by model and request; the same model at another url shares them


@dataclass(frozen=True)
class Usage:
    """What has been asked so far."""

    requests: int = 0  # sent over HTTP, retries among them
    cached: int = 0  # answers that needed none
    retries: int = 0
    failed: int = 0  # answers given up, or not understood
    seconds: float = 0.0  # that the requests took, summed
    prompt_tokens: int = 0  # as the server counts
    completion_tokens: int = 0


@dataclass(frozen=True)
class Reply:
    """What a server answered.

    Attributes:
        text: all of it.
        top: (word, log probability, at most 0) of words that might have come first; empty unless asked for.
    """

    text: str
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Unanswered:
    """Why there is no reply.

    Attributes:
        kind: ``unreachable``, ``refused``, ``nonsense``, or ``logprobs`` where the server gives none.
        why: what happened and what to do about it.
        tries: requests it took to find out.
    """

    kind: str
    why: str
    tries: int = 0


@dataclass(frozen=True)
class _Failure:
    """A request without an answer: HTTP status (0: none came), the reason, seconds the server asks us to wait."""

    status: int
    text: str
    wait: float | None = None


class _TooLong(ValueError):
    """An answer is larger than any completion."""


def _bounded_client(factory: Any) -> Any:
    """An HTTP client that follows no redirection (not with a key) and reads no more than so much of an answer."""
    http = import_module(factory.__mro__[1].__module__.partition(".")[0])  # httpx, or what came after it

    class Bounded(http.SyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, whole: Any) -> None:
            self.whole = whole

        def __iter__(self) -> Iterator[bytes]:
            left = LARGEST_ANSWER
            for part in self.whole:
                left -= len(part)
                if left < 0:
                    raise _TooLong(f"an answer of more than {LARGEST_ANSWER} bytes")
                yield part

        def close(self) -> None:
            self.whole.close()

    def bound(response: Any) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _TooLong("a compressed answer, which was not asked for")
        response.stream = Bounded(response.stream)

    plain = {"Accept-Encoding": "identity"}
    return factory(follow_redirects=False, headers=plain, event_hooks={"response": [bound]})


class Server:
    """Where chat completions come from. Threads may share it."""

    def __init__(self, cfg: EndpointConfig) -> None:
        """Nothing is sent yet.

        Raises:
            MissingExtra: the ``openai`` package is not installed.
        """
        with extra("vlm"):
            from openai import DefaultHttpxClient, OpenAI, omit
        self.cfg, self.usage, self._lock = cfg, Usage(), threading.Lock()
        self._slots = threading.BoundedSemaphore(cfg.concurrency)
        self._lacks: set[str] = set()  # fields that this server does not take
        self._gave_logprobs, self._given_up = False, 0  # ever; in a row
        self._random = random.Random()  # pauses must not move the caller's seeded generator
        self._key = os.environ.get(KEY, "").strip()
        http = _bounded_client(DefaultHttpxClient)
        self._client = OpenAI(
            base_url=cfg.url, api_key=self._key or "EMPTY", timeout=cfg.timeout, max_retries=0, http_client=http
        )
        self._headers = {} if self._key else {"Authorization": omit}

    def replies(self, contents: Sequence[Content], options: Sequence[dict[str, Any]]) -> list[Reply | Unanswered]:
        """Ask everything, ``concurrency`` requests at a time, and equal requests once.

        Args:
            contents: messages.
            options: other fields of the request's body; each content is asked with each of them.

        Returns:
            One per content and options, those of one content adjacent. Once the server is clearly gone (it does not
            know us, or requests failed in a row) the rest is not tried.
        """
        turns = [[{"role": "user", "content": content}] for content in contents]
        bodies = [{"model": self.cfg.model, "messages": turn, **some} for turn in turns for some in options]
        # Equal requests are one: a dream fills its last batch of rows by repeating a row.
        keys = [json.dumps(body, sort_keys=True) for body in bodies]
        once = dict(zip(keys, bodies, strict=True))
        stop, self._given_up = threading.Event(), 0
        with ThreadPoolExecutor(self.cfg.concurrency) as pool:
            try:
                answers = dict(zip(once, pool.map(lambda body: self._reply(body, stop), once.values()), strict=True))
            finally:
                stop.set()  # after an interrupt, no thread goes on retrying
        return [answers[key] for key in keys]

    def _reply(self, body: dict[str, Any], stop: threading.Event) -> Reply | Unanswered:
        name = hashlib.sha256(json.dumps(["v1", body], sort_keys=True).encode()).hexdigest() + ".json"
        if known := self._read_cache(name):
            self._count(cached=1)
            return known
        reply = self._ask(body, stop)
        if isinstance(reply, Reply):
            self._write_cache(name, reply)
        elif reply.kind != "logprobs":
            self._count(failed=1)
        return reply

    def _ask(self, body: dict[str, Any], stop: threading.Event) -> Reply | Unanswered:
        error, status = Unanswered("unreachable", "the server is gone"), 0
        for tries in range(1, self.cfg.retries + 2):
            if stop.is_set():
                return error
            if "logprobs" in body and "logprobs" in self._lacks:
                return Unanswered("logprobs", "the server gives no log probabilities")
            sent = {name: value for name, value in body.items() if name not in self._lacks}
            answer = self._send(sent)
            if not isinstance(answer, _Failure):
                self._given_up = 0
                return self._parse(answer, body)
            status, text = answer.status, answer.text
            objections = [f for f in ("logprobs", "seed") if f in sent and 400 <= status < 500 and f in text.lower()]
            if objections:
                self._go_without(objections[0], text)
                return self._ask(body, stop)
            error = self._explain(answer, tries)
            if error.kind == "refused":
                break
            if tries <= self.cfg.retries:
                self._count(retries=1)
                own = self.cfg.backoff * 2 ** (tries - 1) * self._random.uniform(0.5, 1.5)
                stop.wait(min(own if answer.wait is None else answer.wait, self.cfg.timeout))
        # Refusals of one request say nothing about the next; these do, and so does a row of failures.
        self._given_up += error.kind == "unreachable"
        if status in (401, 403, 404, 405) or self._given_up >= max(_FAILURES, self.cfg.concurrency):
            stop.set()
        return error

    def _send(self, body: dict[str, Any]) -> Any:
        """One request: whatever the client makes of an answer of status 2xx, else a :class:`_Failure`."""
        from openai import APIConnectionError, APIStatusError

        if not re.fullmatch(r"[\x21-\x7e]*", self._key):
            return _Failure(401, f"the key in ${KEY} does not fit into an HTTP header")
        began = time.monotonic()
        try:
            with self._slots:
                return self._client.chat.completions.create(**body, extra_headers=self._headers)
        except APIStatusError as error:
            wait = error.response.headers.get("retry-after", "")
            seconds = float(wait) if re.fullmatch(r"\d+(\.\d+)?", wait) else None
            return _Failure(error.status_code, self._clean(error.response.text), seconds)
        except APIConnectionError as error:
            reason = error.__cause__ or error
            if isinstance(reason, _TooLong):
                return reason
            return _Failure(0, self._clean(f"{error} {type(reason).__name__}: {reason}"))
        except (ValueError, RecursionError) as error:  # JSON that cannot be read
            return error
        finally:
            self._count(requests=1, seconds=time.monotonic() - began)

    def _clean(self, text: str) -> str:
        return " ".join(self._without_key(text).split())[:300]

    def _without_key(self, text: str) -> str:
        """Some servers repeat the key; "EMPTY" is no secret."""
        return text.replace(self._key, "***") if len(self._key) >= 8 else text

    def _parse(self, answer: Any, body: dict[str, Any]) -> Reply | Unanswered:
        """What a completion says; the client does not check what servers send."""
        try:
            choice, spent = answer.choices[0], answer.usage
            content = choice.logprobs.content if choice.logprobs else None
            words = (content[0].top_logprobs or []) if content else []
            said = self._without_key(choice.message.content or "")
            reply = Reply(said, tuple((w.token, w.logprob) for w in words))
            if any(not isinstance(w, str) or p > 1e-3 for w, p in reply.top):
                raise ValueError("a log probability above 0, or words that are no text")
            tokens = {n: int(getattr(spent, n, 0) or 0) for n in ("prompt_tokens", "completion_tokens")}
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            return Unanswered("nonsense", f"no chat completion but {self._clean(str(answer)[:200])!r}")
        self._count(**tokens)
        if "logprobs" in body and not reply.top:
            if not self._gave_logprobs:  # else it is only this answer that has none, as an empty one
                self._go_without("logprobs", "it answered without")
            return Unanswered("logprobs", "an answer without log probabilities")
        self._gave_logprobs |= bool(reply.top)
        return reply

    def _go_without(self, field: str, why: str) -> None:
        with self._lock:
            if field not in self._lacks:
                _log.warning("%s is asked without %s from now on: %s", self.cfg.url, field, why)
            self._lacks.add(field)

    def _explain(self, failure: _Failure, tries: int) -> Unanswered:
        """What went wrong and what to do about it."""
        status, text, cfg = failure.status, failure.text, self.cfg
        passing = status in (0, 408, 425, 429) or status >= 500
        key = f"put a valid key into the environment variable {KEY}"
        where = "check the url (most end in /v1) and that the server has this model"
        up = f"start the server, correct its url, or raise timeout (now {cfg.timeout:g} s)"
        other = f"try later or lower concurrency (now {cfg.concurrency})" if passing else "change what it objects to"
        advice = {0: up, 401: key, 403: key, 404: where, 405: where}.get(status, where if status < 400 else other)
        why = f"HTTP {status} {text}" if status else text
        return Unanswered("unreachable" if passing else "refused", f"{why}; {advice}", tries)

    def _read_cache(self, name: str) -> Reply | None:
        try:
            kept = json.loads((self.cfg.cache / name).read_text(encoding="utf-8")) if self.cfg.cache else {}
            return Reply(str(kept["text"]), tuple((str(w), float(p)) for w, p in kept["top"]))
        except (OSError, ValueError, LookupError, TypeError):  # not there, or corrupt: ask again
            return None

    def _write_cache(self, name: str, reply: Reply) -> None:
        if self.cfg.cache is None:
            return
        try:
            atomic_write(self.cfg.cache / name, json.dumps(asdict(reply)))
        except OSError as error:  # a full disk costs the saving, not the answer
            _log.warning("an answer could not be kept in %s: %s", self.cfg.cache, error)

    def _count(self, **more: float) -> None:
        with self._lock:
            self.usage = Usage(**{name: n + more.get(name, 0) for name, n in asdict(self.usage).items()})
