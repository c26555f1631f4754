"""The benchmark counts what the facts count, treats the reference fairly, and runs where there is no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from imagine.questions import DYNAMICS, JOINT, POLICY
from imagine.types import ImagineError, NoiseLevels

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import gpu
from speed import ours, report
from speed.fp8 import Fp8Linear, fp8_error, fp8_linears
from speed.reference import Reference
from speed.shapes import NETWORKS, one_pass, plan, reference_chunk

ROOT = Path(__file__).parent.parent
TINY = NETWORKS["tiny"]
CPU = torch.device("cpu")


def session(lanes: int = 1, **how: Any) -> ours.Session:
    return ours.Session.begin(ours.build(TINY, CPU, torch.float32, **how), TINY, lanes)


def assert_same(a: Tensor | None, b: Tensor | None, atol: float = 1e-5) -> None:
    assert a is not None and b is not None
    torch.testing.assert_close(a, b, rtol=0, atol=atol * float(b.abs().max()))


# ---------------------------------------------------------------------- floors
@pytest.mark.parametrize(("past", "tflop"), [(1, 47.7), (3, 50.3), (5, 52.8), (7, 55.4)])
def test_forward_costs_what_was_counted_by_hand(past: int, tflop: float) -> None:
    """Counted apart: 23.91 GFLOP per token, and 819 200 per token and key, of DreamZero's 14 B model."""
    cost = one_pass(NETWORKS["14b"], past=past)
    assert cost.flops / 1e12 == pytest.approx(tflop, rel=0.02)
    assert cost.ms(790, 4300) == pytest.approx(tflop / 0.79, rel=0.02)
    tokens = 2 * 880 + 24 + 1
    by_hand = tokens * (23.91e9 + 819200 * (past * 880 + tokens + 512 + 257))
    assert cost.flops == pytest.approx(by_hand, rel=0.002)


def test_other_floors_agree_with_the_facts() -> None:
    big, middle = NETWORKS["14b"], NETWORKS["5b"]
    wasted = one_pass(big, reference=True).flops - one_pass(big).flops
    assert wasted / 1e12 == pytest.approx(3.9, rel=0.05)  # keys and values of text and image, modulation per token
    assert one_pass(middle).flops / 1e12 == pytest.approx(1.1, rel=0.05)
    assert one_pass(middle).ms(790, 4300) == pytest.approx(2.0, rel=0.1)  # its weights, not its arithmetic
    assert one_pass(NETWORKS["1.3b"], past=3).flops / 1e12 == pytest.approx(6.4, rel=0.06)
    mean = sum(one_pass(big, past=p).flops for p in (1, 3, 5, 7)) / 4
    assert reference_chunk(big).flops == pytest.approx(18 * (mean + wasted), rel=0.1)
    assert one_pass(big, skip=True).flops / one_pass(big).flops == pytest.approx(0.72, abs=0.02)


def test_formula_counts_what_torch_counts() -> None:
    """Every matrix product of one forward and of one clean pass."""
    s = session()
    for work, actions in ((lambda: s.forward(JOINT), True), (lambda: s.observe(s.newest), False)):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
            work()
        # a state that sees itself alone asks the memory nothing, which the formula overlooks
        assert counted.get_total_flops() == pytest.approx(one_pass(TINY, actions=actions).flops, rel=0.02)


def test_parameters_are_those_of_the_released_models() -> None:
    with torch.device("meta"):
        sizes = {n: sum(p.numel() for p in ours.JointDiT(NETWORKS[n].config()).parameters()) for n in ("14b", "5b")}
    assert sizes["14b"] == 16_484_292_448  # as DreamZero's training log says
    assert sizes["5b"] / 1e9 == pytest.approx(5.7, abs=0.4)


# ---------------------------------------------------------------------- the two ways
@torch.no_grad()
def test_reference_way_equals_ours() -> None:
    s = session(parity="dreamzero")
    ref, c, sigma = Reference(s.dit), s.context, torch.tensor([0.7])
    memory = ref.prefill(c.video, c)
    state = s.state[:, -1]
    video, action, _ = ref.forward(memory, s.noise.video, sigma, c, start=7, action=s.noise.action, state=state)
    got = s.dit(s.noise, NoiseLevels(sigma, sigma), s.cache)
    assert_same(got.video, video)
    assert_same(got.action, action)


@torch.no_grad()
def test_reference_chunk_without_guidance_is_our_sampler() -> None:
    """Both branches of one instruction, the same eight calls: 16 steps of the same path."""
    from speed.reference import CALLS, STEPS

    s = session(parity="dreamzero")
    ref, c = Reference(s.dit), s.context
    before = ref.prefill(c.video[:, :5], c)
    memories = [before, before]
    want = ref.chunk(memories, (c, c), c.video[:, 5:], s.noise.video, s.noise.action, s.state[:, -1], start=5)
    got, _ = s.denoise(JOINT, STEPS, calls=list(CALLS))
    assert_same(got.video, want[0], 1e-4)
    assert_same(got.action, want[1], 1e-4)


@torch.no_grad()
def test_switches_change_no_answer() -> None:
    def step(s: ours.Session, **how: Any) -> Tensor:
        answer, kept = s.denoise(DYNAMICS, 2, keep=True, **how)
        s.remember(kept, answer.video)
        return s.forward(DYNAMICS).video

    want = step(session())
    assert_same(step(session(), reread=True), want)
    tokenwise = session()
    with ours.per_token(tokenwise.dit):
        assert_same(step(tokenwise), want)
    loose = ours.Session.begin(ours.build(TINY, CPU, torch.float32), TINY, 1, ring=False)
    assert_same(step(loose), want)
    many = step(session(lanes=2))
    assert many.shape[0] == 2


@torch.no_grad()
def test_black_quarter_is_skipped_with_the_same_weights() -> None:
    s = session()
    skipping = ours.build(TINY, CPU, torch.float32, skip=True)
    other = ours.Session.begin(skipping, TINY, 1)
    for _ in range(2):
        video = other.forward(DYNAMICS).video
    top, left, bottom, right = (2 * n for n in TINY.blank)  # in latents
    assert not video[..., top:bottom, left:right].any()
    assert video[..., :top, :].any() and s.forward(DYNAMICS).video.shape == video.shape


class Host(TorchDispatchMode):
    """Notes what no CUDA graph can record: numbers from the host, and sizes that come from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in func.name() for word in ("lift_fresh", "_local_scalar_dense", "nonzero", "masked_select")):
            self.asked.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("skip", [False, True])
@torch.inference_mode()
def test_a_whole_answer_can_be_recorded(skip: bool) -> None:
    s = session(skip=skip)
    for question in (DYNAMICS, JOINT, POLICY):
        s.denoise(question, 2)
        with Host() as host:
            s.denoise(question, 2)
        assert not host.asked
    rooms = [room[0].data_ptr() for room in s.cache._rooms]
    answer, kept = s.denoise(DYNAMICS, 2, keep=True)
    s.remember(kept, answer.video)
    assert rooms == [room[0].data_ptr() for room in s.cache._rooms]  # addresses stay


@torch.inference_mode()
def test_half_precision_keeps_keys_in_half_precision() -> None:
    s = ours.Session.begin(ours.build(TINY, CPU, torch.bfloat16), TINY, 1)
    assert {x.dtype for x in (*s.cache.turned, *s.cache.values, *s.cache.text_keys)} == {torch.bfloat16}
    assert s.dit.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert s.forward(JOINT).video.isfinite().all()


# ---------------------------------------------------------------------- FP8
@pytest.mark.parametrize("scales", ["token", "tensor"])
def test_fp8_rounds_a_few_percent(scales: str) -> None:
    linear = torch.nn.Linear(64, 48)
    x = torch.randn(2, 10, 64, generator=torch.Generator().manual_seed(0))
    assert 0.005 < fp8_error(linear, x, scales) < 0.06
    x[0, 0] *= 1e6  # one loud token hides the others only where they share a scale
    layer = Fp8Linear(linear, scales)
    quiet = (layer(x)[1] - linear(x)[1]).norm() / linear(x)[1].norm()
    assert (quiet < 0.06) == (scales == "token")
    alone = layer(x[1:])
    assert torch.equal(layer(x)[1:], alone) == (scales == "token")  # a lane does not feel its neighbours


@torch.no_grad()
def test_fp8_replaces_the_linear_layers_of_blocks() -> None:
    s = session()
    before = s.forward(JOINT)
    names = fp8_linears(s.dit.blocks, emulate=True)
    assert len(names) == 12 * TINY.layers and not any(isinstance(m, torch.nn.Linear) for m in s.dit.blocks.modules())
    after = s.forward(JOINT)
    assert 1e-4 < float((after.video - before.video).norm() / before.video.norm()) < 0.15


def test_fp8_refuses_other_devices() -> None:
    dit = ours.build(TINY, CPU, torch.bfloat16)
    with pytest.raises(ImagineError, match="expected an NVIDIA GPU"):
        fp8_linears(dit.blocks)
    assert not any(isinstance(m, Fp8Linear) for m in dit.modules())  # nothing half done


# ---------------------------------------------------------------------- the command
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().out.startswith("There is no CUDA GPU here;")
    assert gpu.main(["--device", "cpu"]) == 2
    assert "would take hours" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu.main(["--models", "70b"])


def test_plan_needs_no_gpu_and_is_what_the_page_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--plan", "--json", str(tmp_path / "plan.json")]) == 0
    assert "forward, 7 latents remembered" in capsys.readouterr().out
    assert json.loads((tmp_path / "plan.json").read_text()).keys() == {"1.3b", "5b", "14b"}
    table = report.markdown(*report.floors(plan()))
    assert table in (ROOT / "docs" / "benchmarks" / "README.md").read_text()


@pytest.mark.slow
def test_dry_run_gives_every_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--device", "cpu", "--models", "tiny", "--no-compile", "--quick", "--lanes", "1,2"]
    assert gpu.main([*options, "--json", str(tmp_path / "x.json"), "--markdown", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "x.json").read_text())
    assert not told["failed"] and not told["dropped"]
    m = told["models"]["tiny"]
    assert m.keys() == {"ceilings", "parameters", "forward", "dynamics", "policy", "reference", "switches"}
    assert m["policy"].keys() == {"JOINT K=1", "JOINT K=4", "POLICY K=1", "POLICY K=4"}
    assert m["dynamics"].keys() == {"1", "2"} and m["dynamics"]["2"]["kept"]["frames_per_s"] > 0
    assert len(m["switches"]) == 8 and all(s["gain"] > 0 for s in m["switches"].values())
    assert m["reference"]["chunk_gain_k1"] > m["reference"]["chunk_gain_k4"] > 1
    assert m["forward"]["share_of_floor"] > 0 and m["forward"]["times"]["eager"]["turns"] == 2
    page = next(tmp_path.glob("cpu-*.md")).read_text()
    assert all(what in page for what in ("one forward", "FP8 linear layers", "the reference's way"))
    assert "tiny" in capsys.readouterr().out


@pytest.mark.slow
def test_time_that_is_up_drops_cells_and_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--device", "cpu", "--models", "tiny", "--no-compile", "--quick", "--lanes", "1,2", "--minutes", "0"]
    assert gpu.main(options) == 0
    assert "not measured, for want of time: tiny: a session of one lane" in capsys.readouterr().out


@pytest.mark.slow
def test_missing_packages_are_named_in_one_sentence() -> None:
    code = "import runpy, sys; sys.modules['pydantic'] = None; runpy.run_path('benchmarks/gpu.py')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "python -m pip install pydantic" in done.stderr and "Traceback" not in done.stderr
