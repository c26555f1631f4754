"""``imagine convert``: a Wan or DreamZero checkpoint as a model of ours, read from its config and headers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagine.configs.commands.common import Common, Words
from imagine.configs.runfolder import RunFolder
from imagine.types import ImagineError

LEFT_OUT = {"agibot": (0.5, 0.5, 1.0, 1.0)}  # top, left, bottom, right of what stays black, as shares of the canvas


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Write a small model folder that points at a foreign checkpoint; every command then takes it as --model.

    Attributes:
        checkpoint: folder or hub id: Wan in diffusers layout, DreamZero or DreamZero-5B in either.
        embodiment: the robot: agibot_g1, or a YAML file (docs/embodiment.md).
        prompt: what the model was trained to be told: agibot, droid, libero, or plain for the instruction alone.
        statistics: a JSON file of proprio_mean, proprio_std, action_mean and action_std, where none lie beside the
            checkpoint; a plain Wan needs none.
        parts: a Wan pipeline that has codec, text encoder and image encoder, where the checkpoint has none.
        answers: questions it was trained to answer; by default JOINT for a DreamZero, VIDEO for a Wan.
        parity: clean, or dreamzero for the released inference's quirks.
        skip_black: leave the black quadrant of the agibot canvas out of the computation.
        max_context_blocks: observed blocks to remember, the first frame among them; 0 is what it was trained at.
    """

    checkpoint: str = ""
    embodiment: str = "agibot_g1"
    prompt: str = "agibot"
    statistics: str = ""
    parts: str = ""
    answers: Words = ()
    parity: str = "clean"
    skip_black: bool = False
    max_context_blocks: int = 0


def run(args: Args) -> dict[str, Any]:
    """Adopt; the model folder is ``model/`` in the run folder.

    Raises:
        ImagineError: an option is out of range, or the checkpoint or embodiment is unusable.
    """
    if not args.checkpoint:
        raise ImagineError("--checkpoint is missing; name a folder or hub id, as in GEAR-Dreams/DreamZero-AgiBot.")
    if args.parity not in ("clean", "dreamzero"):
        raise ImagineError(f"--parity is {args.parity!r}, expected clean or dreamzero.")
    if args.skip_black and args.prompt not in LEFT_OUT:
        raise ImagineError(f"--skip-black knows the canvas of {', '.join(LEFT_OUT)}, got --prompt {args.prompt}.")
    from imagine.embodiment import Embodiment
    from imagine.model.config import Statistics
    from imagine.questions import QUESTIONS
    from imagine.train.memory_estimate import count
    from imagine.wan.convert import PROMPTS, inspect
    from imagine.wan.load import adopt

    if unknown := set(args.answers) - QUESTIONS.keys():
        raise ImagineError(f"--answers holds {sorted(unknown)}, expected some of {', '.join(QUESTIONS)}.")
    if args.prompt != "plain" and args.prompt not in PROMPTS:
        raise ImagineError(f"--prompt is {args.prompt!r}, expected plain or one of {', '.join(PROMPTS)}.")
    shipped = Path(__file__).parents[2] / "policy" / "robots" / f"{args.embodiment}.yaml"
    body = Embodiment.load(shipped if shipped.is_file() else args.embodiment)
    more: dict[str, Any] = {"parity": args.parity}
    if args.max_context_blocks:
        more["max_context_blocks"] = args.max_context_blocks
    if args.skip_black:
        from imagine.model.checkpoint import resolve

        cell = 16 * (2 if inspect(resolve(args.checkpoint)).dit.channels == 48 else 1)
        rows, columns = body.canvas_height // cell, body.canvas_width // cell
        top, left, bottom, right = LEFT_OUT[args.prompt]
        more["blank"] = int(top * rows), int(left * columns), int(bottom * rows), int(right * columns)
    folder = RunFolder.of("convert", args)
    cfg = adopt(
        args.checkpoint,
        body,
        folder.path / "model",
        Statistics.load(args.statistics) if args.statistics else None,
        template="{task}" if args.prompt == "plain" else PROMPTS[args.prompt],
        parts=args.parts or None,
        answers=args.answers or None,
        **more,
    )
    answer = {
        "model": str(folder.path / "model"),
        "answers": list(cfg.answers),
        "parameters": count(cfg.dit, "full", 1)[0],
        "context_frames": cfg.context_frames,
        "chunk_actions": body.chunk_actions,
    }
    folder.save_metrics(answer)
    return answer
