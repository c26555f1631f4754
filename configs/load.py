"""Presets: a YAML file holds only what differs from the defaults; ``a.b=c`` overrides come on top. No interpolation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from imagine.configs.schema import Config, did_you_mean, make
from imagine.types import ImagineError

PRESETS = Path(__file__).parent


def load(kind: type[Config], preset: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Resolve a configuration: defaults, then the preset, then the overrides.

    Args:
        kind: the frozen dataclass or pydantic model to build.
        preset: a YAML file, the name of one beside this module, or None for the defaults.
        overrides: ``a.b=c``, where c is read as YAML.

    Raises:
        ImagineError: the preset is missing or no YAML mapping, or a key or value is not what ``kind`` takes.
    """
    values = read(preset) if preset is not None else {}
    for override in overrides:
        values = merge(values, parse_override(override))
    return make(kind, values, " and ".join(str(part) for part in (preset, *overrides) if part) or "defaults")


def read(preset: str | Path) -> dict[str, Any]:
    """Read a preset as nested mappings; an empty file changes nothing.

    Raises:
        ImagineError: there is no such file, or it is not a YAML mapping.
    """
    path = Path(preset)
    if path.suffix != ".yaml":
        path = PRESETS / f"{preset}.yaml"
    if not path.is_file():
        names = sorted(file.stem for file in PRESETS.glob("*.yaml"))
        hint = did_you_mean(str(preset), names) if names else ""
        raise ImagineError(f"there is no preset {str(preset)!r}{hint}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ImagineError(f"preset {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict | None):
        raise ImagineError(f"preset {path} holds {type(values).__name__}, expected keys and values")
    return values or {}


def parse_override(text: str) -> dict[str, Any]:
    """``a.b=c`` as ``{"a": {"b": c}}``.

    Raises:
        ImagineError: there is no ``=``, a part of the key is empty, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ImagineError(f"override {text!r} is not of the form a.b=c")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ImagineError(f"override {text!r}: {value!r} is not YAML; put quotes around it") from None
    for part in reversed(parts):
        nested = {part: nested}
    return nested


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested mapping over another; neither is changed."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = merge(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged
