"""Training on sequences of a model's own frames: what is drawn, what stands on what, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imagine.data.windows import Windows
from imagine.embodiment import Embodiment
from imagine.model.codec import FrameCodec
from imagine.model.decoder import DecoderConfig
from imagine.model.model import WorldActionModel
from imagine.noise import Shares
from imagine.train.fit import FitConfig
from imagine.train.joint import build_model, train_joint
from imagine.train.losses import JointConfig
from imagine.train.replay import Replay
from imagine.train.sequences import Usual, draw_sequences, sequence_loss, sequence_rows
from imagine.types import Context, ImagineError
from tests.conftest import TINY_BODY, TINY_CODEC, TINY_DIT, randomise
from tests.test_train import recorded

CFG = JointConfig(chunks=(2,), policy_batch=4)
DREAMS = CFG.model_copy(update={"own_frames": 1.0, "context_noise": 0.0, "context_repeat": 0.0})


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    cache = recorded(tmp_path_factory.mktemp("robot"), Embodiment.model_validate(TINY_BODY), with_action=True)
    return Windows(cache, Embodiment.model_validate(TINY_BODY), context_frames=2)


@pytest.fixture
def model(windows: Windows) -> WorldActionModel:
    torch.manual_seed(0)
    dit = TINY_DIT.model_copy(update={"decoder": DecoderConfig(blocks=1, width=16, memory=8)})
    made = build_model(windows, randomise(FrameCodec(TINY_CODEC)), dit, CFG, name="tiny", text_dim=16)  # type: ignore[arg-type]
    return randomise(made)  # type: ignore[return-value]


def loss_of(
    model: WorldActionModel, windows: Windows, cfg: JointConfig, given: dict[str, Tensor], seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    words = model.text.tokenize(list(windows.instructions))
    return sequence_loss(model, windows, words, given, cfg, Usual.of(windows), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_sequence_stays_in_its_episode_and_masks_what_is_beyond(windows: Windows, seed: int) -> None:
    rows = np.random.default_rng(seed).integers(len(windows), size=16)
    chunks = 3
    parts = sequence_rows(windows, rows, chunks, torch.Generator().manual_seed(seed))
    first, last = windows.episode_rows(rows)
    for k, at in enumerate(parts):
        there = at >= 0
        assert ((at >= first) & (at <= last))[there].all()
        if k:
            assert (at[there] - parts[k - 1][there] == windows.embodiment.chunk_frames).all()
    given = draw_sequences(windows, rows, chunks, CFG, torch.Generator().manual_seed(seed))
    gone = torch.from_numpy(np.stack(parts) < 0)
    assert not given["video_valid"][gone].any() and not given["action_valid"][gone].any()
    assert (given["video_level"][:, given["dreams"]] == 1).all()


def test_rows_that_dream_go_on_from_their_own_frames_and_others_from_recorded_ones(
    model: WorldActionModel, windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Context] = []
    drawn: list[Tensor] = []
    prefill, predict = model.prefill, model.predict
    monkeypatch.setattr(model, "prefill", lambda context: (seen.append(context), prefill(context))[1])

    def predicted(*args):
        answer = predict(*args)
        drawn.append(answer)
        return answer

    monkeypatch.setattr(model, "predict", predicted)
    rows = windows.chains(2)[:, 0][:3]
    cfg = DREAMS.model_copy(update={"policy_passes": 0})
    given = draw_sequences(windows, rows, 2, cfg, torch.Generator().manual_seed(0))
    given["dreams"] = torch.tensor([True, False, True])[: len(rows)]
    loss_of(model, windows, cfg, given)
    one, two = drawn[0], seen[1]
    assert torch.equal(two.video[0, -1], one.video[0, -1]) and torch.equal(two.memory[0], one.memory[0])
    recorded_now = windows.frames(given["frame"][1][1]).float()[:2]
    assert torch.equal(two.video[1], recorded_now)


def test_a_loss_does_not_hear_of_what_is_masked(model: WorldActionModel, windows: Windows) -> None:
    rows = windows.rows()[-4:]  # at the end of an episode
    given = draw_sequences(windows, rows, 6, DREAMS, torch.Generator().manual_seed(0))
    dead = ~given["video_valid"].any(2)
    assert dead.any()
    other = dict(given, action=torch.where(dead[..., None, None], 9.0, given["action"]))
    for name in ("video", "proprio"):
        assert torch.allclose(
            loss_of(model, windows, DREAMS, given)[1][name], loss_of(model, windows, DREAMS, other)[1][name]
        )


def test_what_is_unusual_counts_for_more(windows: Windows) -> None:
    usual = Usual.of(windows)
    common = usual.mean[None, None]
    assert float(usual.rarity(common).max()) == 0
    rare = common.clone()
    rare[..., 0, 0] += 10 * usual.variance.sqrt()[..., 0, 0]
    got = usual.rarity(rare)
    assert float(got[0, 0, 0, 0]) == 16 and float(got.sum()) == 16


def test_it_learns_a_batch_that_it_sees_again_and_again(model: WorldActionModel, windows: Windows) -> None:
    rows = windows.chains(2)[:, 0][:4]
    cfg = DREAMS.model_copy(update={"pixel_weight": 1.0, "shares": Shares(dynamics=1, inverse=0, joint=0, free=0)})
    given = draw_sequences(windows, rows, 2, cfg, torch.Generator().manual_seed(0), rows)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    numbers = []
    for _ in range(60):
        total, parts = loss_of(model, windows, cfg, given)
        optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        numbers.append({k: float(v) for k, v in parts.items()})
    assert numbers[-1]["video"] < 0.5 * numbers[0]["video"] and numbers[-1]["pixels"] < numbers[0]["pixels"]


def test_a_run_is_resumed_to_the_same_weights(windows: Windows, tmp_path: Path) -> None:
    def trained(folder: str, *steps: int) -> WorldActionModel:
        for n in steps:
            torch.manual_seed(0)
            dit = TINY_DIT.model_copy(update={"decoder": DecoderConfig(blocks=1, width=16, memory=8)})
            codec = randomise(FrameCodec(TINY_CODEC))
            made = build_model(windows, codec, dit, CFG, name="tiny", text_dim=16)  # type: ignore[arg-type]
            run = FitConfig(steps=4, batch=3, warmup=1, decay=0.0, eval_every=100, save_every=1, mixed_precision="no")
            run = run.model_copy(update={"steps": n})
            out = train_joint(windows, made, CFG, run, tmp_path / folder, out=tmp_path / folder / "out")
        return out

    straight, resumed = trained("a", 4), trained("b", 2, 4)
    for (name, a), b in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_memory_without_sequences_is_refused(windows: Windows, model: WorldActionModel, tmp_path: Path) -> None:
    cfg = JointConfig()
    with pytest.raises(ImagineError, match="memory is learnt on sequences"):
        train_joint(windows, model, cfg, FitConfig(steps=1), tmp_path, out=tmp_path / "out")


class _Square:
    """A loss in two halves: (w x)^2 of what was drawn."""

    def __init__(self) -> None:
        self.module = torch.nn.Linear(1, 1, bias=False)

    def draw(self, step: int, generator: torch.Generator) -> tuple[int, dict[str, Tensor]]:
        return 0, {"x": torch.full((1,), float(step))}

    def compute(self, given: dict[str, Tensor], generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        value = self.module(given["x"]).square().sum()
        return value, {"seen": value.detach()}


def test_without_a_graph_gradients_are_those_of_the_step_alone() -> None:
    from contextlib import nullcontext

    loss = _Square()
    replay = Replay(loss, loss.module, torch.device("cpu"), nullcontext)
    replay.works = False  # as where no graph could be captured
    weight = float(loss.module.weight.detach())
    for step in (1, 3, 2):
        value, numbers = replay(step, torch.Generator().manual_seed(step))
        assert float(value) == pytest.approx((weight * step) ** 2) == float(numbers["seen"])
        assert float(loss.module.weight.grad.detach()) == pytest.approx(2 * weight * step**2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_gives_what_plain_passes_give() -> None:
    from contextlib import nullcontext

    loss = _Square()
    loss.module.cuda()
    replay, weight = Replay(loss, loss.module, torch.device("cuda"), nullcontext), float(loss.module.weight.detach())
    for step in (1, 3, 2):
        value, _ = replay(step, torch.Generator().manual_seed(step))
        assert float(value) == pytest.approx((weight * step) ** 2)
        assert float(loss.module.weight.grad.detach()) == pytest.approx(2 * weight * step**2)
    assert replay.graph is not None


def test_the_codecs_of_both_strides_round_trip_shapes() -> None:
    canvas = torch.zeros(2, 16, 24, 3, dtype=torch.uint8)
    for widths, factor in (((8, 16), 4), ((8, 8, 16), 8)):
        cfg = replace_widths(widths)
        codec = FrameCodec(cfg)
        assert cfg.factor == factor
        latents = codec.encode(canvas)
        assert latents.shape == (2, 4, 16 // factor, 24 // factor) and codec.decode(latents).shape == canvas.shape


def replace_widths(widths: tuple[int, ...]):
    return TINY_CODEC.model_copy(update={"widths": widths})
