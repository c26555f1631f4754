"""Does LeRobot itself open, append to, merge, delete from, split and reopen what we write? One environment per version.

    make lerobot                                        # the newest, and the oldest that reads v3.0 as we write it
    make lerobot ARGS="--versions 0.6.1 --python python3.12"

LeRobot brings its own PyTorch, so it gets environments beside ours, `.venv-lerobot-VERSION`, made once. What is tried
is tests/test_lerobot.py, which any other interpreter that has LeRobot can run too: IMAGINE_LEROBOT names them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = ("0.6.1", "0.4.4")
DATASET_EXTRA = (0, 5)  # before it, LeRobot's plain package read datasets


def environment(version: str, python: str) -> Path:
    """The interpreter of an environment that has a LeRobot, made if it is not there."""
    folder = ROOT / f".venv-lerobot-{version}"
    if not (folder / "ready").is_file():
        print(f"installing lerobot {version} into {folder.name}, once", flush=True)
        subprocess.run([python, "-m", "venv", folder], check=True)
        extra = "[dataset]" if tuple(map(int, version.split(".")[:2])) >= DATASET_EXTRA else ""
        pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"lerobot{extra}=={version}"], check=True)
        (folder / "ready").touch()
    return folder / "bin/python"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS))
    parser.add_argument("--python", default=sys.executable, help="LeRobot from 0.5 on needs 3.12 or newer")
    args = parser.parse_args()
    try:
        pythons = [str(environment(version, args.python)) for version in args.versions]
    except subprocess.CalledProcessError as error:
        sys.exit(f"an environment could not be made ({error}); LeRobot from 0.5 on needs --python of 3.12 or newer.")
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_lerobot.py"]
    sys.exit(subprocess.call(command, cwd=ROOT, env=os.environ | {"IMAGINE_LEROBOT": os.pathsep.join(pythons)}))


if __name__ == "__main__":
    main()
