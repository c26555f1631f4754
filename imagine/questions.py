"""Five questions to one model, each a path in the square whose axes are the two noise levels.

1 is pure noise, 0 is clean. A modality that stays at 0 is *given*, one that goes 1 -> 0 is *generated*, and one that
stays at 1 is *ignored*: it is absent from the sequence, so POLICY never pays for video tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from imagine.types import UntrainedQuestion


@dataclass(frozen=True)
class Question:
    """A path in the noise square: (start, end) noise level per modality; 1 is noise, 0 is clean."""

    name: str
    video: tuple[float, float]
    action: tuple[float, float]

    @property
    def has_video(self) -> bool:
        """Whether video and proprioception tokens take part."""
        return self.video != (1.0, 1.0)

    @property
    def has_action(self) -> bool:
        """Whether action tokens take part."""
        return self.action != (1.0, 1.0)

    @property
    def given(self) -> tuple[str, ...]:
        """Modalities the caller must provide clean."""
        return tuple(n for n in ("video", "action") if getattr(self, n) == (0.0, 0.0))


POLICY = Question("POLICY", video=(1.0, 1.0), action=(1.0, 0.0))  # p(a | o)
DYNAMICS = Question("DYNAMICS", video=(1.0, 0.0), action=(0.0, 0.0))  # p(o' | o, a)
INVERSE = Question("INVERSE", video=(0.0, 0.0), action=(1.0, 0.0))  # p(a | o, o')
JOINT = Question("JOINT", video=(1.0, 0.0), action=(1.0, 0.0))  # p(o', a | o)
VIDEO = Question("VIDEO", video=(1.0, 0.0), action=(1.0, 1.0))  # p(o' | o)

QUESTIONS = {q.name: q for q in (POLICY, DYNAMICS, INVERSE, JOINT, VIDEO)}


def require(question: Question, answers: Iterable[Question]) -> None:
    """Refuse a question the checkpoint was not trained to answer.

    Raises:
        UntrainedQuestion: with what it does answer, and the remedy.
    """
    answers = frozenset(answers)
    if question in answers:
        return
    known = ", ".join(sorted(q.name for q in answers)) or "nothing"
    raise UntrainedQuestion(
        f"this checkpoint answers {known}; {question.name} starts at sigma_video={question.video[0]:g}, "
        f"sigma_action={question.action[0]:g}, where it was never trained and would answer wrongly without a sign. "
        f"Fine-tune it with {question.name} in `questions`, or load a checkpoint whose model.answers contains it."
    )
