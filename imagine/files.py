"""Files and folders that are there whole or not at all: written under a temporary name beside, then renamed."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TEMPORARY = re.compile(r"^\..+\.(\d+)-[0-9a-f]{8}\.tmp$")


def temporary_path(path: str | Path) -> Path:
    """A name beside ``path`` that no other thread or process uses; it names this process, see :func:`leftovers`."""
    path = Path(path)
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary name to write a file or folder under; it becomes ``path`` when the block succeeds.

    Args:
        path: replaced as a whole; its parent folders are made.

    Yields:
        A new name in the same folder, which ends in ``.tmp`` whatever ``path`` ends in. It is removed when the block
        fails, and ``path`` is then as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        if temporary.is_dir():
            replace_folder(temporary, path)
        else:
            temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write a whole file so that a reader finds the old content or the new; text as UTF-8, as it is."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data if isinstance(data, bytes) else data.encode())


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as :func:`atomic_write` does, indented."""
    atomic_write(path, json.dumps(content, indent=2))


def replace_folder(new: Path, path: Path) -> None:
    """Put the folder ``new`` where ``path`` is; :func:`recover_folder` undoes what a kill in between leaves."""
    old = _aside(path)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Bring a folder back that was moved aside by a :func:`replace_folder` that never ended."""
    if _aside(path).is_dir() and not path.exists():
        _aside(path).rename(path)


def leftovers(root: Path) -> Iterator[Path]:
    """Temporary files and folders below ``root`` whose process on this machine is no more."""
    for path in root.rglob(".*.tmp"):
        match = _TEMPORARY.match(path.name)
        if match is None:
            continue
        try:
            os.kill(int(match[1]), 0)  # signal 0 only asks whether the process lives
        except (ProcessLookupError, OverflowError):
            yield path
        except PermissionError:
            continue


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
