"""Files and folders that are there whole or not at all: written under a temporary name beside, then renamed.

What goes wrong meanwhile (a full disk, a folder that may not be written) is an ``OSError`` that names the file.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with named_errors(path):
            yield temporary
            if temporary.is_dir():
                replace_folder(temporary, path)
            else:
                temporary.replace(path)
    finally:
        remove(temporary)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Have a write that fails raise the system's error about ``path``, whatever the library that writes makes of it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # numpy's, of a file that was written in part
            _try_to_write(path, error)
        if error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        if not isinstance(error, ValueError):  # torch's and safetensors' own; ours would say what is wrong
            _try_to_write(path, error)
        raise


def _try_to_write(path: Path, cause: Exception) -> None:
    """Raise what the system says to a file beside ``path``, if it says anything."""
    temporary = temporary_path(path)
    try:
        temporary.write_bytes(bytes(2**20))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from cause
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there and that is allowed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


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


class FolderLock:
    """Says that a folder is being written, for as long as the object lives; a killed process holds none.

    Attributes:
        taken: whether this process has it. Where a file system knows no locks, it does.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock of an existing folder, without waiting."""
        self.taken = True
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            from fcntl import LOCK_EX, LOCK_NB, flock  # not on Windows

            flock(self._descriptor, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            self.taken = False
        except (ImportError, OSError):
            pass

    def __del__(self) -> None:
        os.close(self._descriptor)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
