"""The Python of README and docs runs, and the commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from imagine.configs import cli
from imagine.configs.vocabulary import FORMER

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
DOCS = [
    block
    for page in ("judge.md", "evaluate.md", "pretrained.md", "improve.md", "play.md")
    for block in re.findall(r"```(python|bash)\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
]
COMMANDS = [
    line.split("#")[0].strip()
    for kind, text in BLOCKS + DOCS
    if kind == "bash"
    for line in text.replace("\\\n", " ").splitlines()
    if "imagine " in line
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", [text for kind, text in BLOCKS + DOCS if kind == "python"], ids=lambda c: c.split("\n")[0]
)
def test_python_blocks_run(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "imagine" and words[0] not in FORMER
    name, options = cli.command(words)
    cli.parse(cli.module_of(name), name, options)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", "\n".join(text for kind, text in BLOCKS if kind == "bash"), re.M)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target
