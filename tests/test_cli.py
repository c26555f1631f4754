"""The command line answers on standard output, fails in one sentence, and leaves nothing half-written."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from imagine.configs import cli
from imagine.configs.commands.common import Common
from imagine.configs.load import load
from imagine.configs.recipe import Recipe
from imagine.configs.runfolder import RunFolder
from imagine.configs.vocabulary import COMMANDS, FORMER, FORMER_OPTIONS
from imagine.embodiment import ActionSlice, Embodiment, View
from imagine.types import ImagineError


@dataclass(frozen=True)
class Inner:
    width: int = 64
    rate: float = 1e-3


@dataclass(frozen=True)
class Outer:
    name: str = "tiny"
    inner: Inner = Inner()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):
    """Install a run function as ``imagine demo``."""

    def install(run):
        fake = SimpleNamespace(Args=Common, run=run)
        monkeypatch.setattr(cli, "import_module", lambda name: fake)

    return install


def complaint(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """What a bad request says; checks that it is one line, exit code 2, nothing on standard output."""
    assert cli.main(words) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_help_names_every_command(capsys) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in COMMANDS)
    assert len(shown.splitlines()) <= 40 and max(map(len, shown.splitlines())) <= 88
    assert cli.main(["evaluate", "--help"]) == 0
    assert "evaluate judge" in (shown := capsys.readouterr().out) and "finetune" not in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_listed_command_exists(name: str) -> None:
    module = cli.module_of(name)
    assert issubclass(module.Args, Common) and callable(module.run)
    module.Args()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["recrd"], "did you mean 'record'"),
        (["bc"], "did you mean 'finetune bc'"),
        (["finetune"], "wants to know what: bc, rl"),
        (["finetune", "--lr", "1"], "wants to know what: bc, rl"),
        (["finetune", "clone"], "has no 'clone'; expected bc, rl"),
        (["finetune", "destill", "--lr", "1"], "did you mean 'distill'"),
        (
            ["evaluate", "--epsodes", "3"],
            "imagine evaluate policy has no option '--epsodes' (did you mean '--episodes'",
        ),
        (["dance"], "the commands are demo, play"),
        (["record", "--epsodes", "3"], "did you mean '--episodes'"),
        (["record", "--epsodes=3"], "did you mean '--episodes'"),
        (["record", "--episodes", "few"], "--episodes"),
        (["record", "--episodes"], "--episodes"),
        (["record", "--seed", "1", "--episodes", "2.5", "--json"], "--episodes is '2.5', expected int"),
        (["plan", "--method", "luck"], "--method is 'luck', expected Literal['best_of_n'"),
        (["record", "stray"], "'stray'"),
        (["record", "--episodes", "0"], "expected at least 1"),
    ],
)
def test_a_bad_request_is_answered_in_one_sentence(words: list[str], expected: str, capfd) -> None:
    assert expected in complaint(words, capfd)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        *((name, [old], [new]) for name, flags in FORMER_OPTIONS.items() for old, new in flags.items()),
        ("evaluate policy", ["--lanes=8", "--world", "real"], ["--num-envs=8", "--world", "sim"]),
        ("evaluate policy", ["--world=real", "--told", "right"], ["--world=sim", "--swap-instruction", ""]),
        ("finetune rl", ["--doubt_cost=0.2"], ["--inverse-error-cost=0.2"]),
    ],
)
def test_an_option_of_the_last_version_still_works_with_a_hint(name: str, old: list, new: list, capfd) -> None:
    assert cli.renamed(name, old) == new
    hints = capfd.readouterr().err.splitlines()
    assert len(hints) == sum(a != b for a, b in zip(old, new, strict=True)) and "next version" in hints[0]
    assert cli.renamed(name, new) == new and capfd.readouterr().err == ""
    fields = {f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(cli.module_of(name).Args)}
    assert {word.split("=")[0] for word in new if word.startswith("--")} <= fields


@pytest.mark.parametrize("old", FORMER)
def test_a_command_of_the_last_version_still_works_with_a_hint(old: str, capfd) -> None:
    assert cli.command([old, "--seed", "3"]) == (FORMER[old], ["--seed", "3"]) and FORMER[old] in COMMANDS
    assert f"'imagine {FORMER[old]}' now" in capfd.readouterr().err
    assert cli.command(["evaluate", "--seed", "3"]) == ("evaluate policy", ["--seed", "3"])


def test_json_is_one_object_and_all_else_goes_to_standard_error(command, capfd) -> None:
    def run(args: Common) -> dict:
        print("python")
        os.write(1, b"c library\n")
        os.system("echo child")
        return {"seed": args.seed, "rate": np.float32(0.5), "lost": float("nan"), "curve": np.arange(2)}

    command(run)
    assert cli.main(["demo", "--json", "--seed", "7"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"seed": 7, "rate": 0.5, "lost": None, "curve": [0, 1]} and out.count("\n") == 1
    assert all(word in err for word in ("python", "c library", "child"))


def test_without_json_the_answer_is_a_table(command, capfd) -> None:
    command(lambda args: {"success_rate": 0.123456})
    assert cli.main(["demo"]) == 0
    assert "success rate" in (out := capfd.readouterr().out) and "0.1235" in out


def test_interruption_says_how_to_resume(command, capfd) -> None:
    def run(args: Common) -> dict:
        raise KeyboardInterrupt

    command(run)
    assert cli.main(["demo"]) == 130
    assert "resume with the same command" in capfd.readouterr().err


def test_a_bug_of_ours_is_not_mistaken_for_a_bad_request(command) -> None:
    def run(args: Common) -> dict:
        raise ValueError("a bug")

    command(run)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["demo"])


def test_collect_passes_on_what_was_asked_and_counts_what_there_is(tmp_path: Path, monkeypatch, capfd) -> None:
    asked = {}

    def collect(out: Path, episode: str, **given) -> dict:
        asked.update(given)
        return {"total_episodes": 4, "total_frames": 80, "collected": 3, "seconds": 1.26, "features": {}}

    monkeypatch.setattr("imagine.agents.collect.collect", collect)
    words = ["record", "--out", str(tmp_path), "--episodes", "4", "--option", "families=reach,push_left", "--json"]
    assert cli.main(words) == 0
    assert asked["options"]["blocks"] == (2, 2, 3, 3, 4) and asked["options"]["families"] == ("reach", "push_left")
    assert asked["fps"] == 30 and "observation.environment_state" in asked["names"]
    counts = {"episodes": 4, "frames": 80, "collected": 3, "seconds": 1.3}
    assert json.loads(capfd.readouterr().out) == {"out": str(tmp_path), **counts}
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == counts
    assert "holds results of {'blocks': None}, not {'blocks': '3'}" in complaint(
        [*words, "--option", "blocks=3"], capfd
    )


def test_the_same_options_find_the_same_run_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = RunFolder.of("demo", Common(seed=3))
    first.save_metrics({"loss": float("inf")})
    assert RunFolder.of("demo", Common(seed=3, json=True)).metrics == {"loss": None}
    assert RunFolder.of("demo", Common(seed=4)).path != first.path
    assert yaml.safe_load((first / "config.yaml").read_text()) == {"seed": 3}
    assert not list(tmp_path.rglob(".*"))


def test_a_run_folder_refuses_another_run(tmp_path: Path) -> None:
    RunFolder.of("demo", Common(out=tmp_path, seed=0))
    RunFolder.of("demo", Common(out=tmp_path, seed=1)).save_metrics({})  # the first left no results: no harm done
    with pytest.raises(ImagineError, match=r"'seed': 1.*'seed': 2.*another --out"):
        RunFolder.of("demo", Common(out=tmp_path, seed=2))


def test_a_preset_holds_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "wide.yaml").write_text("inner:\n  width: 128\n")
    assert load(Outer) == Outer()
    wide = load(Outer, tmp_path / "wide.yaml", ["inner.rate=1e-4", "name=wide"])
    assert wide == Outer("wide", Inner(128, 1e-4))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("inner.widht=3", "unknown key 'inner.widht', did you mean 'width'"),
        ("inner.width=many", "inner.width: .*got 'many'"),
        ("inner=3", "inner"),
        ("inner.width", "not of the form"),
        ("inner.width=[", "not YAML"),
    ],
)
def test_a_wrong_override_is_explained(override: str, expected: str) -> None:
    with pytest.raises(ImagineError, match=expected):
        load(Outer, overrides=[override])


@pytest.mark.parametrize("preset", ["tiny", "nano"])
def test_the_training_presets_hold_known_keys(preset: str) -> None:
    recipe = load(Recipe, preset)
    assert recipe.model_fit.steps > recipe.codec_fit.steps > 0 and recipe.dit.decoder.blocks > 0


def test_a_missing_preset_is_explained() -> None:
    with pytest.raises(ImagineError, match="no preset 'gigantic'"):
        load(Outer, "gigantic")


def test_the_embodiment_page_shows_a_file_that_loads(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs/embodiment.md").read_text()
    (tmp_path / "arm.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    body = Embodiment.load(tmp_path / "arm.yaml")
    assert (body.proprio_dim, body.action_dim, body.frame_stride) == (8, 8, 4)
    assert all(f"`{key}`" in page for kind in (Embodiment, View, ActionSlice) for key in kind.model_fields)


def test_a_table_is_for_people() -> None:
    rate = {"success_rate": 0.91666666, "ci_low": 0.8044, "ci_high": None, "n": 48}
    told = {
        "value": 0.1875,
        "ci_low": 0.0477,
        "ci_high": 0.3122,
        "n": 48,
        "per_task": {"pick_up": 0.123456, "all": rate},
    }
    assert cli.readable(told).splitlines() == [
        "0.1875 [0.0477, 0.312], n = 48",
        "per task: ",
        "  pick up: 0.1235",
        "  all: 0.9167 no interval, n = 48",
    ]
    assert cli.readable([1, 2]) == "[1, 2]" and cli.readable(list(range(9))) == "a list of 9, see --json"
    assert (
        cli.readable([{}]) == "a list of 1, see --json"
        and cli.readable("nft") == "nft"
        and cli.readable(None) == "null"
    )
