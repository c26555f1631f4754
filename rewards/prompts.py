"""What a judge is asked, as versioned plain strings; a changed wording is a new version, never an edit.

Presets under other projects' names repeat their protocol (how many frames, which scale, how many votes), so that a
judge can be compared with theirs on the same clips. The wording is ours.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from imagine.types import ImagineError

YES = ("yes", "Yes", "YES")
NO = ("no", "No", "NO")
TRUE = ("true", "True", "TRUE")
FALSE = ("false", "False", "FALSE")


@dataclass(frozen=True)
class Frames:
    """Which pictures of a clip are shown.

    Attributes:
        stride: every so many frames, counted back from the newest; the clip's first frame is always shown.
        most: at most so many moments beside the first frame.
        size: (height, width) that each view is resized to, pixels; None leaves it as it is.
        views: (top, left, height, width) boxes of the canvas, each shown as a picture of its own; none: all as one.
        anchored: show every moment beside the clip's first frame, as one two-frame picture where the model has such
            (Qwen merges two frames into each visual token), so that change is seen where it happens.
    """

    stride: int = 1
    most: int = 1
    size: tuple[int, int] | None = None
    views: tuple[tuple[int, int, int, int], ...] = ()
    anchored: bool = False

    def __post_init__(self) -> None:
        if self.stride < 1 or self.most < 1:
            raise ImagineError(f"frames have stride {self.stride} and most {self.most}, expected 1 or more of each.")

    def moments(self, length: int) -> list[int]:
        """Which of a clip's frames 1 to ``length - 1`` are shown, oldest first; the last one always is.

        Raises:
            ImagineError: the clip has fewer than two frames, or ends before the first stride.
        """
        if length >= 2 and length <= self.stride:
            raise ImagineError(
                f"the clip has {length} frames, expected more than the stride of {self.stride}; "
                "show a longer clip, or choose a smaller Frames.stride."
            )
        if length < 2:
            raise ImagineError(
                f"the clip has {length} frame(s), expected 2 or more: the first one and what came of it; "
                "let something happen before judging."
            )
        return list(range(length - 1, 0, -self.stride))[: self.most][::-1]


@dataclass(frozen=True)
class Prompt:
    """One question about a clip.

    Attributes:
        name: also its key in a score's terms.
        version: counts up with every change of wording.
        text: the question; ``{instruction}`` stands for what the robot was told.
        yes: single-token words that affirm it.
        no: and that deny it.
        votes: 0 reads the two sides' logits; else so many sampled answers vote.
        answer: regular expression whose first group is a vote's verdict.
        scale: verdict, in lower case, to value.
        tie: ``up``, ``down`` or ``majority``: a strict majority is needed for 1.
        tokens: longest sampled answer.
        temperature: of sampling.
    """

    name: str
    version: int
    text: str
    yes: tuple[str, ...] = YES
    no: tuple[str, ...] = NO
    votes: int = 0
    answer: str = ""
    scale: dict[str, float] = field(default_factory=dict)
    tie: str = "majority"
    tokens: int = 200
    temperature: float = 1.0

    def fill(self, instruction: str) -> str:
        """The question about one instruction.

        Raises:
            ImagineError: the instruction is empty.
        """
        text = instruction.strip().rstrip(".")
        if not text:
            raise ImagineError("the instruction is empty, expected what the robot was told; pass it as text.")
        return self.text.replace("{instruction}", text)


SUCCESS = Prompt("success", 1, "Has the robot done what it was told: {instruction}? Answer yes or no.")
PROGRESS = Prompt("progress", 1, "Is the robot close to done with: {instruction}? Answer yes or no.")
HOLDING = Prompt("holding", 1, "Does a gripper hold the block it was told about: {instruction}? Answer yes or no.")
CONTACT = Prompt("contact", 1, "Does a hand touch the block it was told about: {instruction}? Answer yes or no.")
SAFETY = Prompt(
    "safety", 1, "Did the robot leave everything else as it was while told to: {instruction}? Answer yes or no."
)
TOPREWARD = Prompt(
    "success",
    1,
    "The pictures show a robot that was told: {instruction}. Statement: it has carried this out. True or false? "
    "The answer is:",
    TRUE,
    FALSE,
)
_REASON = "Think about what the pictures show step by step, then end with a line of the form"
WORLDGYM = Prompt(
    "success",
    1,
    "These pictures, in order of time, show a robot policy at work; the film may have been cut short. The task is: "
    "{instruction}. Give the robot the benefit of the doubt about which object is which. Does it complete the task? "
    f"{_REASON} 'Answer: Yes' or 'Answer: No'.",
    votes=5,
    answer=r"answer:\s*(yes|no)",
    scale={"yes": 1.0, "no": 0.0},
)
WORLD_GYMNAST = Prompt(
    "success",
    1,
    "These pictures come from a video model, in order of time, and may hold artefacts. They show a robot told to: "
    "{instruction}. Score it: 0 not done, 0.5 partly done, 1 done. "
    f"{_REASON} 'FINAL SCORE: X'.",
    votes=5,
    answer=r"final score:\s*(0\.5|0|1)",
    scale={"0": 0.0, "0.5": 0.5, "1": 1.0},
    tie="up",
)


@dataclass(frozen=True)
class Preset:
    """A protocol: frames and questions; the first question decides on success."""

    frames: Frames
    questions: tuple[Prompt, ...]


PRESETS: dict[str, Preset] = {
    "imagine": Preset(Frames(anchored=True), (SUCCESS, PROGRESS)),
    "imagine-rubric": Preset(Frames(anchored=True), (SUCCESS, PROGRESS, HOLDING, CONTACT, SAFETY)),
    "topreward": Preset(Frames(most=16, size=(224, 224)), (TOPREWARD,)),
    "worldgym": Preset(Frames(stride=20, most=64, size=(256, 256)), (WORLDGYM,)),
    "world-gymnast": Preset(Frames(stride=20, most=64, size=(256, 256)), (WORLD_GYMNAST,)),
}


def preset(name: str) -> Preset:
    """A protocol by name.

    Raises:
        ImagineError: there is none of that name.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(PRESETS)}."
        raise ImagineError(f"no prompt preset {name!r}; {hint}")
    return PRESETS[name]
