"""A judge that a policy was paid by never silently tells how good that policy is."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest

from imagine.configs import cli
from imagine.configs.judges import second_judge
from imagine.configs.paid import FILE, Payer, note, paid_by, payers_of
from imagine.model.model import SHIPPED, WorldActionModel
from imagine.policy.adapter import Learner
from imagine.types import CheckpointMismatch

MODEL = SHIPPED / "g1-table-tiny"


def test_a_judge_is_known_by_its_weights_and_else_by_its_name(tmp_path: Path) -> None:
    tiny, heads = Payer.of("judge-tiny", MODEL), Payer.of("latent", MODEL)
    assert len(tiny.weights) == len(heads.weights) == 12 and not tiny.is_same(heads)
    shutil.copytree(SHIPPED / "judge-tiny", tmp_path / "mine")
    assert Payer.of(str(tmp_path / "mine"), MODEL).is_same(tiny), "the same weights under another name"
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"others")
    assert not Payer.of(str(tmp_path / "mine"), MODEL).is_same(tiny)
    server = Payer.of("http://there/v1#big", MODEL)
    assert server.weights == "" and server.is_same(server) and not server.is_same(tiny)


def test_what_was_paid_for_is_passed_on(tmp_path: Path) -> None:
    tiny, server = Payer.of("judge-tiny", MODEL), Payer("http://there/v1#big", "")
    note(tmp_path / "first", None, tiny)
    note(tmp_path / "second", tmp_path / "first", server)
    note(tmp_path / "third", tmp_path / "second", server)
    assert payers_of(tmp_path / "third") == [tiny, server]
    note(tmp_path / "cloned", None)
    assert not (tmp_path / "cloned").exists() and payers_of(None) == []
    policies = ("base", "random", "other", str(tmp_path / "third"), f"{tmp_path / 'third'}+noise=0.02")
    assert paid_by("judge-tiny", policies, MODEL) == policies[3:] and paid_by("latent", policies, MODEL) == ()
    (tmp_path / "third" / FILE).write_text("{}")
    with pytest.raises(CheckpointMismatch, match="damaged"):
        payers_of(tmp_path / "third")


def test_the_second_judge_is_of_another_family() -> None:
    assert second_judge("judge-tiny", MODEL) == second_judge("http://there/v1#big", MODEL) == "latent"
    assert second_judge("latent", MODEL) == "judge-tiny"


def test_evaluate_warns_and_asks_the_second_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Learner(WorldActionModel.from_pretrained(MODEL), rank=2).save(tmp_path / "paid")
    note(tmp_path / "paid", None, Payer.of("judge-tiny", MODEL))
    words = ["evaluate", "--policy", f"base,{tmp_path / 'paid'}", "--world", "imagined", "--episodes", "2"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main([*words, "--num-envs", "2", "--horizon", "1", "--json", "--out", str(tmp_path / "run")]) == 0
    got = json.loads(out.getvalue())
    assert got["second_judge"]["name"] == "latent" and got["second_judge"]["policy"] == str(tmp_path / "paid")
    assert got["second_judge"]["n"] == 2 and "learnt from rewards of judge judge-tiny" in got["warning"]
    assert "learnt from rewards of judge" in " ".join(capsys.readouterr().err.split())
    report = (tmp_path / "run" / "report.html").read_text()
    assert "learnt from rewards of judge" in report and "imagined success, judge latent" in report
