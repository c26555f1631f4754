"""A disk that is full, a folder that may not be written, two runs in one folder: one sentence, and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from imagine.configs import cli
from imagine.configs.commands.common import Common
from imagine.configs.runfolder import RunFolder
from imagine.files import atomic_path, atomic_write
from imagine.train.fit import FitConfig, fit
from imagine.types import ImagineError

ROOT = Path(__file__).parent.parent


@contextlib.contextmanager
def little_room(size: int = 2**16) -> Iterator[None]:
    """No file may grow larger than this: what a full disk is to a program, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Make a file system of one's own, where that is allowed."""
    places: list[Path] = []

    def make(options: str) -> Path:
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True)
        if made.returncode:
            pytest.skip("file systems may not be mounted here")
        places.append(place)
        return place

    yield make
    for place in places:
        subprocess.run(["umount", "-l", place], check=True)


def hidden(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


# ---------------------------------------------------------------------- one file
def save_numpy(path: Path) -> None:
    with open(path, "wb") as out:  # straight to the file, of which a part may be written
        np.save(out, np.zeros(2**15))


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("x" * 2**17),
    "numpy": save_numpy,
    "torch": lambda path: torch.save({"x": torch.rand(2**15)}, path),
    "safetensors": lambda path: save_file({"x": torch.rand(2**15)}, path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_whatever_writes_the_systems_error_names_the_file_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    file = tmp_path / "a" / "part.bin"
    atomic_write(file, "old")
    with little_room(), pytest.raises(OSError) as failed, atomic_path(file) as temporary:
        WRITERS[name](temporary)
    assert failed.value.filename == str(file) and failed.value.errno in cli.ADVICE
    assert file.read_text() == "old" and not hidden(tmp_path)


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path: Path) -> None:
    for error in (RuntimeError("a bug"), ImagineError("a request"), FileNotFoundError(2, "none", "elsewhere")):
        with pytest.raises(type(error)) as raised, atomic_path(tmp_path / "x"):
            raise error
        assert raised.value is error and not hidden(tmp_path)


# ---------------------------------------------------------------------- a command
@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    """``imagine demo`` writes a file of a given size into its run folder."""

    def run(args: Common) -> dict[str, object]:
        folder = RunFolder.of("demo", args)
        atomic_write(folder / "curves" / "numbers.txt", "1\n" * 2**16)
        return {"out": str(folder.path)}

    monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(Args=Common, run=run))


def refusal(out: Path, capfd: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["demo", "--out", str(out), "--json"]) == 2
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def succeeds(out: Path, capfd: pytest.CaptureFixture[str]) -> bool:
    assert cli.main(["demo", "--out", str(out), "--json"]) == 0
    return (
        json.loads(capfd.readouterr().out)["out"] == str(out) and (out / "curves/numbers.txt").stat().st_size == 2**17
    )


def test_a_command_without_room_says_so_and_goes_on_when_there_is_room(command, tmp_path: Path, capfd) -> None:
    with little_room():
        said = refusal(tmp_path / "run", capfd)
    assert f"{tmp_path}/run/curves/numbers.txt (File too large); make room and run the same command again" in said
    assert not hidden(tmp_path) and succeeds(tmp_path / "run", capfd)


def test_a_full_disk(command, disk, capfd) -> None:
    place = disk("size=256k")
    (place / "ballast").write_bytes(bytes(200 * 1024))
    assert "numbers.txt (No space left on device); make room" in refusal(place / "run", capfd)
    (place / "ballast").unlink()
    assert succeeds(place / "run", capfd)


def test_a_disk_that_may_not_be_written(command, disk, capfd) -> None:
    place = disk("size=256k,ro")
    assert "(Read-only file system); choose another folder with --out" in refusal(place / "run", capfd)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(command, tmp_path: Path, capfd) -> None:
    tmp_path.chmod(0o500)
    assert "(Permission denied); choose another folder with --out" in refusal(tmp_path / "run", capfd)


def test_a_place_below_a_file(command, tmp_path: Path, capfd) -> None:
    (tmp_path / "file").touch()
    assert "(Not a directory); choose another --out" in refusal(tmp_path / "file" / "below" / "run", capfd)
    assert "is a file; choose another --out" in refusal(tmp_path / "file", capfd)
    assert "(File name too long); choose another --out" in refusal(tmp_path / ("x" * 300), capfd)


def test_a_bug_that_looks_like_the_systems_is_shown_as_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: Common) -> dict[str, object]:
        raise FileNotFoundError(2, "No such file or directory", "forgotten")

    monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(Args=Common, run=run))
    with pytest.raises(FileNotFoundError):
        cli.main(["demo"])


# ---------------------------------------------------------------------- training
def trained(folder: Path, **changes: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    module = torch.nn.Linear(64, 64)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        x = torch.randn(8, 64, generator=generator)
        return (module(x) - x).square().mean(), {}

    about = {"steps": 12, "batch": 8, "warmup": 2, "mixed_precision": "no", "log_every": 4, "eval_every": 100}
    return fit(module, loss, FitConfig(**{**about, "save_every": 3, **changes}), folder).state_dict()  # type: ignore


def test_training_goes_on_to_the_same_weights_once_there_is_room(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "run", steps=12, pause=1e-9)  # saves after its first step
    with little_room(2**14), pytest.raises(OSError) as failed:
        trained(tmp_path / "run")
    assert failed.value.filename == str(tmp_path / "run/state")
    assert all(torch.equal(v, whole[k]) for k, v in trained(tmp_path / "run").items())


def test_training_saves_by_time_as_well_and_spends_little_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imagine.train import fit as module

    clock, saves = iter(range(10**6)), []
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(module, "save_state", lambda *_: saves.append(next(clock)))
    trained(tmp_path, steps=500, save_every=10**6, save_seconds=50.0, log_every=10**6)
    apart = np.diff(saves)
    assert 8 < len(saves) < 20 and (apart[:-1] >= 50).all()


# ---------------------------------------------------------------------- what was damaged
@pytest.mark.parametrize("content", [b"\xff\xfe", b"- a list", b"[" * 5000, b"{a: 1", b"\0" * 100, b"word"])
@pytest.mark.parametrize("name", ["config.yaml", "metrics.json"])
def test_a_damaged_file_of_a_run_folder_is_named(name: str, content: bytes, command, tmp_path: Path, capfd) -> None:
    assert succeeds(tmp_path, capfd)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImagineError, match=f"{name} is damaged; delete it"):
        RunFolder.of("demo", Common(out=tmp_path)).metrics  # noqa: B018


def test_a_damaged_training_state_is_named(tmp_path: Path) -> None:
    trained(tmp_path, pause=1e-9)
    # Random states are not needed: a step's randomness depends on seed and step alone.
    files = [path for path in (tmp_path / "state").iterdir() if path.is_file() and "random" not in path.name]
    assert len(files) > 2
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ImagineError, match="state is damaged or of another model"):
            trained(tmp_path)
        path.write_bytes(whole)
    trained(tmp_path)


# ---------------------------------------------------------------------- two at once
HOLD = """
import sys
from imagine.configs.runfolder import RunFolder
folder = RunFolder(sys.argv[1], {})
print("has it", flush=True)
input()
"""


def test_two_processes_do_not_write_one_run_folder(tmp_path: Path) -> None:
    left = tmp_path / "run" / ".state.pt.4194305-0123abcd.tmp"  # of a process that is no more
    left.parent.mkdir()
    left.touch()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, stdin=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert other.stdout.readline() == b"has it\n"  # type: ignore[union-attr]
        assert not left.exists()
        with pytest.raises(
            ImagineError, match="being written by another process; wait for it, or choose another --out"
        ):
            RunFolder(tmp_path / "run", {})
        RunFolder(tmp_path / "elsewhere", {})
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    first = RunFolder(tmp_path / "run", {})
    assert RunFolder(tmp_path / "run", {}).path == first.path  # one process may open it twice


# ---------------------------------------------------------------------- an end in the middle
RECORDING = """
import sys, time
sys.path.insert(0, {tests!r})
from test_data import random_episode
import numpy as np

def episode(seed, **options):
    if seed > 0:
        print("recording", flush=True)
        time.sleep(60)
    return random_episode(seed)
"""
COLLECT = """
import sys
sys.path.insert(0, {folder!r})
from types import SimpleNamespace
from imagine.agents.collect import collect
from imagine.configs import cli
from imagine.configs.commands.common import Common

def run(args):
    collect({out!r}, "recording:episode", episodes=6, first_seed=0, workers=2, fps=30, shard_size=3, progress=print)
    return {{}}

cli.import_module = lambda name: SimpleNamespace(Args=Common, run=run)
if __name__ == "__main__":
    sys.exit(cli.main(["demo"]))
"""


@pytest.mark.slow
def test_a_terminated_collection_ends_soon_and_leaves_no_half_file(tmp_path: Path) -> None:
    out = tmp_path / "d"
    (tmp_path / "recording.py").write_text(RECORDING.format(tests=str(ROOT / "tests")))
    (tmp_path / "main.py").write_text(COLLECT.format(folder=str(tmp_path), out=str(out)))
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py")], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    try:
        for line in process.stderr:  # type: ignore[union-attr]
            if "recording" in line and list(out.rglob("*.mp4*")):
                break
        begin = time.monotonic()
        process.terminate()
        _, said = process.communicate(timeout=50)
    finally:
        process.kill()
    assert process.returncode == 130 and time.monotonic() - begin < 45
    assert "interrupted; resume with the same command" in said and "Traceback" not in said
    assert not [p for p in out.rglob("*") if ".tmp" in p.name]
