"""Questions about pictures for any OpenAI-compatible server: what ``LocalVLM`` reads from logits, asked over HTTP.

What could not be asked or understood is never taken for a no: its coverage is 0, and where nothing at all was answered
that is an error.
"""

from __future__ import annotations

import base64
import io
import logging
import math
import re
from collections.abc import Sequence
from itertools import chain

import torch
from PIL import Image
from torch import Tensor

from imagine.rewards.local import Answers, Ask
from imagine.rewards.transport import Content, EndpointConfig, Reply, Server, Unanswered, Usage
from imagine.types import RewardUnavailable, ShapeError

__all__ = ["EndpointConfig", "EndpointVLM", "Usage"]

_WORD = 4  # tokens of a one-word vote: some models spend one or two before the word
_BLANK = " \t\r\n▁Ġ"  # the last two: how some servers spell a space inside a token
_IMPOSSIBLE = -1000.0  # below it a log probability is a placeholder (OpenAI and vLLM send -9999)
_log = logging.getLogger(__name__)


class EndpointVLM:
    """A served model that answers questions about pictures, as :class:`imagine.rewards.local.LocalVLM` does."""

    def __init__(self, cfg: EndpointConfig) -> None:
        """Nothing is asked yet."""
        self.cfg, self._server = cfg, Server(cfg)

    @property
    def usage(self) -> Usage:
        """What has been asked so far, by all calls together."""
        return self._server.usage

    def ask(self, clips: Tensor, asks: Sequence[Sequence[Ask]], *, share: bool = True) -> Answers:
        """Answer J questions about each of B clips.

        Args:
            clips: (B, M, V, G, H, W, 3) uint8: M moments, V views, G pictures; 2 are (first, now) pairs.
            asks: B lists of J questions.
            share: of no account here; each question is a request, and a server that caches prefixes shares by itself.

        Returns:
            Margin (B, J) float32 and coverage (B, J) float32 in [0, 1]; both 0 where no answer came or made sense. A
            side with no word among the likeliest is taken to be as likely as the last of them, which it is at most.
            Without log probabilities, k of n votes for yes are a margin of log((k + .5) / (n - k + .5)), and coverage
            is the share of votes that could be read. ``understood`` is True: servers do not speak of unknown words.

        Raises:
            ShapeError: no clips, not uint8, questions that do not fit them, or a question about moments not shown.
            RewardUnavailable: no question was answered, because the server could not be reached or refused.
        """
        contents, questions, n = _contents(clips, asks), [q for a in asks for q in a], self.cfg.votes
        sure = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": self.cfg.top_logprobs}
        first = self._server.replies(contents, [sure])
        unread = [i for i, r in enumerate(first) if isinstance(r, Unanswered) and r.kind == "logprobs"]
        votes = [{"max_tokens": _WORD, "temperature": 1, "seed": seed} for seed in range(n)]
        voted = self._server.replies([contents[i] for i in unread], votes)
        self._settle([r for i, r in enumerate(first) if i not in set(unread)] + voted)
        odds = [_odds(reply, question) for reply, question in zip(first, questions, strict=True)]
        for at, i in enumerate(unread):
            odds[i] = _counted(voted[at * n : (at + 1) * n], questions[i])
        margin, coverage = torch.tensor(odds).T.reshape(2, len(asks), -1)
        return Answers(margin, coverage, torch.ones(len(asks), dtype=torch.bool))

    def say(
        self, clips: Tensor, asks: Sequence[Sequence[Ask]], votes: int, tokens: int, temperature: float
    ) -> list[list[list[str]]]:
        """Answer each question several times in free text, for prompts that let the model think.

        Args:
            clips: as for :meth:`ask`.
            asks: likewise.
            votes: sampled answers per question.
            tokens: longest answer.
            temperature: of sampling.

        Returns:
            (B, J, votes) answers; "" where none came, which no grammar takes for a verdict.

        Raises:
            ShapeError: as for :meth:`ask`.
            RewardUnavailable: likewise.
        """
        free = [{"max_tokens": tokens, "temperature": temperature, "seed": seed} for seed in range(votes)]
        replies = self._server.replies(_contents(clips, asks), free)
        self._settle(replies)
        texts = iter([reply.text if isinstance(reply, Reply) else "" for reply in replies])
        return [[[next(texts) for _ in free] for _ in a] for a in asks]

    def _settle(self, replies: Sequence[Reply | Unanswered]) -> None:
        """Say what is missing: an error where that is everything, else a warning."""
        lost = [r for r in replies if isinstance(r, Unanswered)]
        if not lost:
            return
        tries, last = sum(r.tries for r in lost), max(lost, key=lambda r: r.tries > 0)
        about = f"{len(lost)} of {len(replies)} requests to judge {self.cfg.model!r} at {self.cfg.url} got no answer"
        if len(lost) == len(replies) and all(r.kind in ("unreachable", "refused") for r in lost):
            raise RewardUnavailable(f"{about} in {tries} tries: {last.why}.")
        _log.warning("%s: %s", about, last.why)


def _contents(clips: Tensor, asks: Sequence[Sequence[Ask]]) -> list[Content]:
    """What is sent for each question of each clip, in order. Raises ShapeError where the two do not fit."""
    if clips.ndim != 7 or clips.shape[-1] != 3 or clips.dtype != torch.uint8 or 0 in clips.shape:
        want = "(B, M, V, G, H, W, 3) uint8"
        raise ShapeError(f"pictures are {tuple(clips.shape)} {clips.dtype}, expected {want}; show at least one.")
    if len(asks) != len(clips) or len({len(a) for a in asks}) != 1 or not asks[0]:
        raise ShapeError(f"got questions for {len(asks)} clips, expected equally many for each of {len(clips)}.")
    seen = [q.moments for a in asks for q in a]
    if not 1 <= min(seen) <= max(seen) <= clips.shape[1]:
        raise ShapeError(f"questions see {min(seen)} to {max(seen)} moments of a clip, expected 1 to {clips.shape[1]}.")
    contents = []
    for clip, a in zip(clips.cpu(), asks, strict=True):
        shown = [_pictures(moment, clip[0] if m else None) for m, moment in enumerate(clip)]
        contents += [[*chain(*shown[: q.moments]), {"type": "text", "text": q.text}] for q in a]
    return contents


def _pictures(moment: Tensor, first: Tensor | None) -> Content:
    """One moment (V, G, H, W, 3); of (first, now) pairs, the first picture is shown with the first moment only."""
    parts: Content = []
    for v, view in enumerate(moment):
        again = first is not None and len(view) == 2 and torch.equal(view[0], first[v, 0])
        for picture in view[int(again) :]:
            Image.fromarray(picture.numpy()).save(file := io.BytesIO(), "PNG")
            url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
            parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts


def _odds(reply: Reply | Unanswered, ask: Ask) -> tuple[float, float]:
    """Margin and coverage from the likeliest first words."""
    top = reply.top if isinstance(reply, Reply) else ()
    likely = [(word.strip(_BLANK), p) for word, p in top if p > _IMPOSSIBLE]
    yes, no = ([p for word, p in likely if word in words] for words in (ask.yes, ask.no))
    if not yes and not no:
        return 0.0, 0.0
    covered = min(1.0, sum(math.exp(p) for p in yes + no))
    # A single word bounds the others by what it leaves, not by itself.
    least = min(p for _, p in likely) if len(likely) > 1 else math.log(max(1 - covered, 1e-6))
    affirmed, denied = (torch.logsumexp(torch.tensor(side or [least]), 0) for side in (yes, no))
    return float(affirmed - denied), covered


def _counted(votes: Sequence[Reply | Unanswered], ask: Ask) -> tuple[float, float]:
    """Margin and coverage from votes; half a vote for each side keeps a few votes from being certain."""
    words = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, (*ask.yes, *ask.no)))})(?!\w)")
    found = [words.search(vote.text) for vote in votes if isinstance(vote, Reply)]
    read = [match[0] in ask.yes for match in found if match]
    return math.log((sum(read) + 0.5) / (len(read) - sum(read) + 0.5)), len(read) / len(votes)
