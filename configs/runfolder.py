"""One folder per run: the resolved configuration, the seed, the metrics; each file is whole or absent."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import yaml

from imagine.files import FolderLock, atomic_write, leftovers, remove

UNRECORDED = ("out", "json", "workers", "stages")
"""Options that say where and how fast, not what to do; they do not tell two runs apart."""
_locks: WeakValueDictionary[Path, FolderLock] = WeakValueDictionary()


class RunFolder:
    """Where one command writes. The same command finds the same folder again and can resume; two at once cannot.

    Attributes:
        path: the folder, created when missing.
        config: what ``config.yaml`` holds.
    """

    def __init__(self, path: str | Path, config: Any) -> None:
        """Create or reopen a run folder.

        Args:
            path: the folder.
            config: a mapping, dataclass or pydantic model; its ``seed`` is recorded with it.

        Raises:
            ImagineError: the folder holds results of another configuration, is a file, or another process writes it.
            OSError: it cannot be written.
        """
        self.path, self.config = Path(path), _recorded(config)
        if self.path.exists() and not self.path.is_dir():
            raise _imagine_error(f"run folder {self.path} is a file; choose another --out")
        self._refuse_another_run()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        self.write_text("config.yaml", yaml.safe_dump(self.config, sort_keys=False))

    @classmethod
    def of(cls, command: str, args: Any) -> RunFolder:
        """The folder of a command: ``args.out``, or ``runs/<command>-<six digits that stand for its options>``."""
        digest = hashlib.sha256(json.dumps(_recorded(args), sort_keys=True).encode()).hexdigest()[:6]
        return cls(args.out or Path("runs") / f"{command}-{digest}", args)

    def __truediv__(self, name: str) -> Path:
        """Path of a file in the folder."""
        return self.path / name

    @property
    def metrics(self) -> dict[str, Any]:
        """What was last saved with :meth:`save_metrics`; empty at first."""
        return _mapping(self / "metrics.json", json.loads) or {}

    def save_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Replace ``metrics.json``; NaN and infinity become null."""
        self.write_text("metrics.json", json.dumps(plain(metrics), indent=2, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole: under a temporary name first, then renamed."""
        atomic_write(self / name, text)

    def keep(self, name: str, content: Any, what: str) -> None:
        """Record what results are made from in a YAML file, or refuse to go on with something else.

        Keys that only one of two versions of the program knows do not count.

        Args:
            name: the file.
            content: nested mappings, or a configuration.
            what: names it in the error message.

        Raises:
            ImagineError: results were made from another content; names the keys.
        """
        file, content = self / name, plain(content)
        before = _mapping(file, yaml.safe_load)
        if before is not None and any(path.is_dir() for path in self.path.iterdir()):
            changed = list(_changes(before, content))
            if changed:
                raise _imagine_error(
                    f"{what} is not the one that run folder {self.path} was started with: {'; '.join(changed[:3])}; "
                    "choose another --out"
                )
        self.write_text(name, yaml.safe_dump(content, sort_keys=False))

    def _locked(self) -> FolderLock:
        """Keep other processes out for as long as this object or another of the same folder lives."""
        place = self.path.resolve()
        if (held := _locks.get(place)) is not None:
            return held
        lock = _locks[place] = FolderLock(place)
        if not lock.taken:
            raise _imagine_error(
                f"run folder {self.path} is being written by another process; wait for it, or choose another --out"
            )
        for path in list(leftovers(self.path)):
            remove(path)
        return lock

    def _refuse_another_run(self) -> None:
        file = self / "config.yaml"
        before = _mapping(file, yaml.safe_load)
        has_results = self.path.is_dir() and any(path != file for path in self.path.iterdir())
        if before is None or before == self.config or not has_results:
            return
        changed = [k for k in {**before, **self.config} if before.get(k) != self.config.get(k)]
        was, now = ({k: c.get(k) for k in changed} for c in (before, self.config))
        raise _imagine_error(f"run folder {self.path} holds results of {was}, not {now}; choose another --out")


def _mapping(file: Path, parse: Callable[[str], Any]) -> dict[str, Any] | None:
    """What a file of a run folder holds; None where there is none."""
    if not file.is_file():
        return None
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        raise _imagine_error(f"{file} is damaged; delete it to go on with what else is there, or choose another --out")
    return content


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """``a.b was 1, is 2`` for every key that both have."""
    for key in before.keys() & now.keys():
        was, is_ = before[key], now[key]
        if isinstance(was, Mapping) and isinstance(is_, Mapping):
            yield from _changes(was, is_, f"{prefix}{key}.")
        elif was != is_:
            yield f"{prefix}{key} was {was!r}, is {is_!r}"


def plain(value: Any) -> Any:
    """Reduce configs, arrays and tensors to what JSON and YAML can hold; NaN and infinity become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _recorded(config: Any) -> dict[str, Any]:
    return {key: value for key, value in plain(config).items() if key not in UNRECORDED}


def _imagine_error(message: str) -> Exception:
    from imagine.types import ImagineError  # torch comes with it; not wanted before something is wrong

    return ImagineError(message)
