"""Chat completions over HTTP: bounded, retried, counted, cached. Knows nothing of questions and pictures.

The standard library's transport, in threads: no dependency, and at home inside any event loop.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import HTTPErrorProcessor, Request, build_opener

from pydantic import BaseModel, ConfigDict, Field

Content = list[dict[str, Any]]  # parts of a message: pictures, then a question

_PATIENCE = 3  # requests given up in a row, at least, before the server is taken for gone
_log = logging.getLogger(__name__)


class EndpointConfig(BaseModel):
    """Where the judge is, and how patiently it is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern=r"^https?://[^@\s]+$")  # base, as http://127.0.0.1:8000/v1; no user:password@ in it
    model: str = Field(min_length=1)  # as the server calls it
    key_env: str = "OPENAI_API_KEY"  # environment variable that holds the key; it may be unset
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


class _Outright(HTTPErrorProcessor):
    """Every status is an answer, and no redirection is followed: not with a key."""

    http_response = https_response = lambda self, request, response: response


class Server:
    """Where chat completions come from. Threads may share it."""

    def __init__(self, cfg: EndpointConfig) -> None:
        self.cfg, self.usage, self._lock = cfg, Usage(), threading.Lock()
        self._places = threading.BoundedSemaphore(cfg.concurrency)
        self._lacks: set[str] = set()  # fields that this server does not take
        self._gave_logprobs, self._gave_up = False, 0  # ever; in a row
        self._open = build_opener(_Outright).open
        self._random = random.Random()  # pauses must not move the caller's seeded generator

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
        # Equal requests are one: a dream fills its last tile of lanes by repeating a lane.
        keys = [json.dumps(body, sort_keys=True) for body in bodies]
        once = dict(zip(keys, bodies, strict=True))
        over, self._gave_up = threading.Event(), 0
        with ThreadPoolExecutor(self.cfg.concurrency) as pool:
            try:
                answers = dict(zip(once, pool.map(lambda body: self._reply(body, over), once.values()), strict=True))
            finally:
                over.set()  # after an interrupt, no thread goes on retrying
        return [answers[key] for key in keys]

    def _reply(self, body: dict[str, Any], over: threading.Event) -> Reply | Unanswered:
        name = hashlib.sha256(json.dumps(["v1", body], sort_keys=True).encode()).hexdigest() + ".json"
        if known := self._known(name):
            self._count(cached=1)
            return known
        reply = self._asked(body, over)
        if isinstance(reply, Reply):
            self._keep(name, reply)
        elif reply.kind != "logprobs":
            self._count(failed=1)
        return reply

    def _asked(self, body: dict[str, Any], over: threading.Event) -> Reply | Unanswered:
        error = Unanswered("unreachable", "the server is gone")
        for tries in range(1, self.cfg.retries + 2):
            if over.is_set():
                return error
            if "logprobs" in body and "logprobs" in self._lacks:
                return Unanswered("logprobs", "the server gives no log probabilities")
            sent = {name: value for name, value in body.items() if name not in self._lacks}
            status, text, wait = self._post(sent)
            if 200 <= status < 300:
                self._gave_up = 0
                return self._read(text, body)
            objections = [f for f in ("logprobs", "seed") if f in sent and 400 <= status < 500 and f in text.lower()]
            if objections:
                self._go_without(objections[0], text)
                return self._asked(body, over)
            error = self._failure(status, text, tries)
            if error.kind == "refused":
                break
            if tries <= self.cfg.retries:
                self._count(retries=1)
                own = self.cfg.backoff * 2 ** (tries - 1) * self._random.uniform(0.5, 1.5)
                over.wait(min(own if wait is None else wait, self.cfg.timeout))
        # Refusals of one request say nothing about the next; these do, and so does a row of failures.
        self._gave_up += error.kind == "unreachable"
        if status in (401, 403, 404, 405) or self._gave_up >= max(_PATIENCE, self.cfg.concurrency):
            over.set()
        return error

    def _post(self, body: dict[str, Any]) -> tuple[int, str, float | None]:
        """Status, text, and seconds the server asks us to wait; status 0 and the reason where nothing came back."""
        key = os.environ.get(self.cfg.key_env, "").strip()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        request = Request(self.cfg.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers)
        status, wait, began = 0, None, time.monotonic()
        try:
            with self._places, self._open(request, timeout=self.cfg.timeout) as answer:
                text = answer.read().decode(errors="replace")
                status, said = answer.status, answer.headers.get("Retry-After", "")
                wait = float(said) if re.fullmatch(r"\d+(\.\d+)?", said) else None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            text = f"{type(reason).__name__}: {reason}"
        except ValueError:  # from http.client, with the key in its message
            text = f"the url or the key in ${self.cfg.key_env} does not fit into an HTTP request"
        self._count(requests=1, seconds=time.monotonic() - began)
        text = text.replace(key, "***") if len(key) >= 8 else text  # some servers repeat it; "EMPTY" is no secret
        return status, text if 200 <= status < 300 else " ".join(text.split())[:300], wait

    def _read(self, text: str, body: dict[str, Any]) -> Reply | Unanswered:
        try:
            said = json.loads(text)
            choice, spent = said["choices"][0], said.get("usage") or {}
            words = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
            reply = Reply(choice["message"].get("content") or "", tuple((w["token"], w["logprob"]) for w in words))
            if not isinstance(reply.text, str) or any(not isinstance(w, str) or p > 1e-3 for w, p in reply.top):
                raise ValueError("a log probability above 0, or words that are no text")
            self._count(**{n: int(spent.get(n) or 0) for n in ("prompt_tokens", "completion_tokens")})
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
            return Unanswered("nonsense", f"no chat completion but {text[:80]!r}")
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

    def _failure(self, status: int, text: str, tries: int) -> Unanswered:
        """What went wrong and what to do about it."""
        passing, cfg = status in (0, 408, 425, 429) or status >= 500, self.cfg
        key = f"put a valid key into the environment variable {cfg.key_env}"
        where = "check the url (most end in /v1) and that the server has this model"
        up = f"start the server, correct its url, or raise timeout (now {cfg.timeout:g} s)"
        other = f"try later or lower concurrency (now {cfg.concurrency})" if passing else "change what it objects to"
        advice = {0: up, 401: key, 403: key, 404: where, 405: where}.get(status, where if status < 400 else other)
        why = f"HTTP {status} {text}" if status else text
        return Unanswered("unreachable" if passing else "refused", f"{why}; {advice}", tries)

    def _known(self, name: str) -> Reply | None:
        try:
            kept = json.loads((self.cfg.cache / name).read_text(encoding="utf-8")) if self.cfg.cache else {}
            return Reply(str(kept["text"]), tuple((str(w), float(p)) for w, p in kept["top"]))
        except (OSError, ValueError, LookupError, TypeError):  # not there, or corrupt: ask again
            return None

    def _keep(self, name: str, reply: Reply) -> None:
        if self.cfg.cache is None:
            return
        try:
            self.cfg.cache.mkdir(parents=True, exist_ok=True)
            part = self.cfg.cache / f"{name}.{os.getpid()}.{threading.get_ident()}"
            part.write_text(json.dumps(asdict(reply)), encoding="utf-8")
            part.replace(self.cfg.cache / name)  # readers see all of it or nothing
        except OSError as error:  # a full disk costs the saving, not the answer
            _log.warning("an answer could not be kept in %s: %s", self.cfg.cache, error)

    def _count(self, **more: float) -> None:
        with self._lock:
            self.usage = Usage(**{name: n + more.get(name, 0) for name, n in asdict(self.usage).items()})
