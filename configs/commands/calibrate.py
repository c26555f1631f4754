"""``imagine calibrate``: can the judge be believed, on real clips, on imagined ones, and when it is to be fooled?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagine.configs.commands.common import Common, console
from imagine.configs.commands.worlds import bar
from imagine.configs.runfolder import RunFolder
from imagine.types import ImagineError

REAL_FALSE = 0.01
"""Share of the negatives among the real clips to fit that may be called a success."""


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Fit a judge's temperature and bias per task family on fresh episodes, and measure it on others.

    Attributes:
        judge: a shipped judge's name, or the folder or hub id of an image-text-to-text model.
        model: whose dreams are judged: a shipped model's name, a folder, or a hub id.
        episodes: how many real episodes to record on the twin for each of both; an episode gives four clips.
        rollouts: how many imagined rollouts to judge, for each of both.
        canaries: how many of each kind.
        fit_seed: first seed of what is fitted.
        seed: first seed of what is measured; nothing shipped was trained or fitted on seeds from 900000 on.
        write: also write the calibration into the judge's folder, where everybody finds it.
    """

    judge: str = "judge-tiny"
    model: str = "g1-table-tiny"
    episodes: int = 200
    rollouts: int = 240
    canaries: int = 50
    fit_seed: int = 860_000
    seed: int = 970_000
    write: bool = False

    def fits(self, seeds: np.ndarray) -> np.ndarray:
        """Which of these seeds are for fitting, (n,) bool."""
        most = max(self.episodes, self.rollouts)
        return (seeds >= self.fit_seed) & (seeds < self.fit_seed + most)


def run(args: Args) -> dict[str, Any]:
    """Calibrate and measure; writes ``judge.json``, ``metrics.json`` and ``reliability.png`` to the run folder.

    Returns:
        ``real`` and ``imagined``: auroc, brier, ece, fpr and fnr with their intervals (``*_ci``) and n, on the
        held-out seeds; ``exploitability_floor`` and ``canaries``; ``second_judge``, how a judge of another architecture
        differs.

    Raises:
        ImagineError: a number is out of range, or the judge or the model cannot be loaded.
    """
    for name in ("episodes", "rollouts", "canaries"):
        if getattr(args, name) < (least := 16 if name == "rollouts" else 4):
            raise ImagineError(f"--{name} is {getattr(args, name)}, expected at least {least}.")
    if abs(args.seed - args.fit_seed) < max(args.episodes, args.rollouts):
        raise ImagineError(
            f"seeds from {args.fit_seed} and from {args.seed} overlap; what is fitted must not be measured."
        )
    from imagine.agents.collect import collect
    from imagine.configs import heldout, material
    from imagine.configs.build import dream_config
    from imagine.model.model import WorldActionModel
    from imagine.policy.robots.g1_table.tasks import FAMILIES, Task
    from imagine.rewards.vlm import SETTINGS, JudgeSettings, VLMJudge, judge_folder

    path = judge_folder(args.judge)
    if args.write and not path.is_dir():
        raise ImagineError(f"--write needs a judge in a folder, got {args.judge!r}; fetch it, or leave --write out.")
    judge, model = VLMJudge.load(path), WorldActionModel.from_pretrained(args.model)
    folder = RunFolder.of("calibrate", args)
    patterns = [Task(f, "*").instruction for f in FAMILIES]

    data = [folder.path / "fit", folder.path / "measure"]
    for out, first in zip(data, (args.fit_seed, args.seed), strict=True):
        collect(out, heldout.EPISODE, args.episodes, first, 2, allow_reserved=True, shard_size=20)
    windows = heldout.windows(model, data, folder.path)
    real = material.real_clips(windows, args.seed)
    margin, valid = margins(judge, np.stack([real.first, real.now], 1), real.instruction)
    parts = _Half(margin, valid, real.label, real.instruction, real.cluster, args.fits(windows.seeds(real.cluster)))
    calibration = {"real": parts.fitted(patterns, REAL_FALSE)}
    answer: dict[str, Any] = {"real": parts.report(calibration["real"])}
    curves = {"real": parts.curve(calibration["real"])}

    seeds = [first + i for first in (args.fit_seed, args.seed) for i in range(args.rollouts)]
    with bar("imagined rollouts") as tell:
        dreams = material.rollouts(model, args.model, seeds, tell)
    limit = dream_config(args.model).hallucination_limit
    believed = _believed(dreams.doubt, limit)
    clear = believed & _clear(dreams.films)
    every = np.where(clear, over_time(judge, dreams.films, dreams.instruction), -np.inf)
    ended = np.minimum(believed.sum(1), believed.shape[1] - 1)  # the chunk that was not believed is the last one
    label = np.take_along_axis(dreams.label, ended[:, None], 1)[:, 0]
    parts = _Half(
        every.max(1), np.asarray(np.isfinite(every).any(1)), label, dreams.instruction, dreams.seeds,
        args.fits(dreams.seeds),
    )  # fmt: skip
    calibration["imagined"] = parts.fitted(patterns, None)
    answer["imagined"] = parts.report(calibration["imagined"])
    answer["second_judge"] = parts.second((dreams.second & believed).any(1), calibration["imagined"])
    answer["imagined"]["by_policy"] = parts.by(dreams.kind, calibration["imagined"])
    curves["imagined"] = parts.curve(calibration["imagined"])

    settings = JudgeSettings.read(path).model_copy(update={"calibration": calibration})
    answer |= _canaries(args, model, judge, dreams, calibration["imagined"])
    folder.write_text(SETTINGS, settings.model_dump_json(indent=1))
    folder.save_metrics(answer)
    _picture(curves, folder / "reliability.png")
    if args.write:
        from imagine.files import atomic_write

        atomic_write(path / SETTINGS, settings.model_dump_json(indent=1))
        atomic_write(path / "metrics.json", (folder / "metrics.json").read_bytes())
        console.print(f"calibration written to {path / SETTINGS}")
    console.print(f"reliability diagram: {folder / 'reliability.png'}")
    return answer


def margins(judge: Any, clips: np.ndarray, instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Raw log odds (N,) of success, and which are valid, of clips (N, 2, H, W, 3): first frame and now."""
    out, good = [np.zeros(0)], [np.zeros(0, bool)]
    with bar("judging") as tell:
        for begin in range(0, len(clips), 64):
            part = slice(begin, begin + 64)
            margin, valid = judge.margin(clips[part], instructions[part])
            out.append(margin.numpy())
            good.append(valid.numpy())
            tell(min(begin + 64, len(clips)), len(clips))
    return np.concatenate(out).astype(np.float64), np.concatenate(good)


def over_time(judge: Any, films: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
    """Log odds (N, T) at every moment of films (N, 1 + T, H, W, 3); -inf where the judge could not tell."""
    n, t = len(films), films.shape[1] - 1
    pairs = np.stack([np.repeat(films[:, :1], t, 1), films[:, 1:]], 2).reshape(n * t, 2, *films.shape[2:])
    margin, valid = margins(judge, pairs, [i for i in instructions for _ in range(t)])
    return np.where(valid, margin, -np.inf).reshape(n, t)


@dataclass
class _Half:
    """Questions of which some calibrate and the others measure."""

    margin: np.ndarray
    valid: np.ndarray
    label: np.ndarray
    instruction: list[str]
    cluster: np.ndarray
    fits: np.ndarray

    def fitted(self, patterns: Sequence[str], most_false: float | None) -> Any:
        from imagine.rewards.calibrate import Calibration, fit_calibrator

        use = self.fits & self.valid
        named = {p: use & self._of(p) for p in patterns}
        families = {
            p: fit_calibrator(self.margin[i], self.label[i], most_false=most_false) for p, i in named.items() if i.any()
        }
        other = fit_calibrator(self.margin[use], self.label[use], most_false=most_false)
        return Calibration(families=families, other=other)

    def _of(self, pattern: str) -> np.ndarray:
        import fnmatch

        return np.array([fnmatch.fnmatchcase(i, pattern) for i in self.instruction])

    def _judged(self, calibration: Any) -> tuple[np.ndarray, np.ndarray]:
        p, threshold = calibration.apply(np.where(self.valid, self.margin, 0.0), self.instruction)
        return np.where(self.valid, p, 0.0), threshold  # who cannot tell has not said yes

    def report(self, calibration: Any) -> dict[str, Any]:
        """On what measures."""
        from imagine.rewards.calibrate import report

        use = ~self.fits
        p, threshold = self._judged(calibration)
        found = report(p[use], threshold[use], self.label[use], self.cluster[use].tolist())
        out: dict[str, Any] = {}
        for name, value in found.items():
            if isinstance(value, dict):
                out |= {name: value["value"], f"{name}_ci": [value["ci_low"], value["ci_high"]]}
            else:
                out[name] = value
        return {**out, "invalid": float((~self.valid[use]).mean())}

    def second(self, said: Any, calibration: Any) -> dict[str, Any]:
        """How far the judge's praise runs ahead of a second judge's (n,) bool, on what measures."""
        p, threshold = self._judged(calibration)
        use = ~self.fits
        first, other = (p >= threshold)[use], np.asarray(said)[use]
        return {"name": "latent", "gap": float(first.mean() - other.mean()), "agree": float((first == other).mean())}

    def by(self, kind: np.ndarray, calibration: Any) -> dict[str, Any]:
        """Judged and true share of success by kind, on what measures."""
        p, threshold = self._judged(calibration)
        use = ~self.fits
        return {
            str(k): {
                "judged": float((p >= threshold)[use & (kind == k)].mean()),
                "true": float(self.label[use & (kind == k)].mean()),
                "n": int((use & (kind == k)).sum()),
            }
            for k in dict.fromkeys(kind.tolist())
        }

    def curve(self, calibration: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        from imagine.rewards.calibrate import reliability

        use = ~self.fits
        return reliability(self._judged(calibration)[0][use], self.label[use])


def _canaries(args: Args, model: Any, judge: Any, dreams: Any, calibration: Any) -> dict[str, Any]:
    """Rollouts that did not succeed, and how many of them are judged to have done so at any time."""
    from imagine.configs import material
    from imagine.configs.build import dream_config
    from imagine.rewards.guards import FILM_CANARIES, exploitability, film_canary, shuffled_chunks

    limit = dream_config(args.model).hallucination_limit

    def fooled(
        films: np.ndarray, told: Sequence[str], doubt: np.ndarray | None = None, *, begin: int = 0
    ) -> np.ndarray:
        margin = over_time(judge, films, told)
        p, threshold = calibration.apply(margin.reshape(-1), [i for i in told for _ in range(margin.shape[1])])
        yes = (p >= threshold).reshape(margin.shape) & _clear(films)
        if doubt is not None:
            yes &= _believed(doubt, limit)
        return np.asarray(yes[:, begin:].any(1))

    measures = ~args.fits(dreams.seeds)
    base = np.flatnonzero(measures & (dreams.kind == "base"))[: args.canaries]
    told = [dreams.instruction[i] for i in base]
    # Played backwards, a film begins with the block in the air, where yes is true: only its end must not be a success.
    ends = {"reversed": dreams.doubt.shape[1] - 1}
    found = {
        k: fooled(film_canary(k, dreams.films[base], args.seed), told, begin=ends.get(k, 0)) for k in FILM_CANARIES
    }
    seeds = dreams.seeds[base].tolist()
    for name, actions in (
        ("zero", _still(model, len(seeds), dreams.actions.shape)),
        ("shuffled", shuffled_chunks(dreams.actions[base], args.seed)),
    ):
        films, doubt, said = material.dreamt_under(model, args.model, seeds, actions)
        truths = material.replayed(model, seeds, actions)
        failed = ~_label(truths, said)
        found[name] = fooled(films[failed], [i for i, f in zip(said, failed, strict=True) if f], doubt[failed])
    misled = np.flatnonzero(measures & (dreams.kind == "misled") & ~dreams.label[:, -1])[: args.canaries]
    found["wrong instruction"] = fooled(
        dreams.films[misled], [dreams.instruction[i] for i in misled], dreams.doubt[misled]
    )
    result = exploitability(found)
    return {
        "exploitability_floor": result.floor,
        "exploitability_ci": [result.ci_low, result.ci_high],
        "canaries": {"n": result.n, **{k: {"floor": f, "n": n} for k, (f, n) in result.by_kind.items()}},
    }


def _believed(doubt: np.ndarray, limit: float | None) -> np.ndarray:
    """(N, T) bool, which chunks count: a dream ends with the first one that is not believed."""
    return np.logical_and.accumulate(doubt <= (np.inf if limit is None else limit), 1)


def _clear(films: np.ndarray) -> np.ndarray:
    """(N, T) bool, which moments of films (N, 1 + T, H, W, 3) the gym's guards find neither blurred nor noise."""
    import torch

    from imagine.configs.build import MOST_BLUR, MOST_NOISE
    from imagine.rewards.rules import blurred, noisy

    shown = torch.from_numpy(films)
    each = range(1, films.shape[1])
    blur, noise = (torch.stack([f(shown[:, k : k + 1], shown[:, 0]) for k in each], 1) for f in (blurred, noisy))
    return np.asarray(((blur <= MOST_BLUR) & (noise <= MOST_NOISE)).numpy())


def _still(model: Any, n: int, shape: tuple[int, ...]) -> np.ndarray:
    """Zero actions: where commands are relative, no motion; grippers stay open at the top of their range."""
    zero = np.zeros((n, *shape[1:]), np.float32)
    low, high = model.body.action_low, model.body.action_high
    return np.where((low >= 0) & (high > 0), high, np.clip(zero, low, high)).astype(np.float32)


def _label(truths: np.ndarray, told: Sequence[str]) -> np.ndarray:
    from imagine.policy.robots.g1_table.tasks import Task
    from imagine.policy.robots.g1_table.truth import accomplished

    return np.array([accomplished(t[:1], t[1:], Task.parse(i)).any() for t, i in zip(truths, told, strict=True)])


def _picture(curves: dict[str, Any], path: Path) -> None:
    """Reliability diagram: what was said against what was so, one panel per kind of clip."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    for i, (name, (sizes, said, true)) in enumerate(curves.items()):
        axes = figure.add_subplot(1, len(curves), i + 1)
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axes.plot(said, true, marker="o", markersize=4, color="#1f6f8b")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title=f"{name}, n = {int(sizes.sum())}")
        axes.set_xlabel("probability said")
        axes.set_ylabel("share that had succeeded")
    figure.savefig(path, dpi=120)
