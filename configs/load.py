"""Presets: a YAML file holds only what differs from the defaults; ``a.b=c`` overrides come on top. No interpolation.

Truth is the frozen class beside what it configures: a dataclass or pydantic model, nested as deep as they are.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from imagine.types import ImagineError, first_fault

Config = TypeVar("Config")

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


def _keys_of(kind: type) -> dict[str, Any]:
    """Names of a configuration class's fields and their types."""
    if issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(cast(Any, kind)) if field.init}


def make(kind: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """Build a configuration from the values that differ from its defaults.

    Args:
        kind: a frozen dataclass or pydantic model.
        values: nested mappings, as YAML gives them.
        source: where the values come from, for the error message.

    Raises:
        ImagineError: a key is unknown or missing, or a value has the wrong type or range.
    """
    _refuse_unknown(kind, values, source)
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        (where, what), first = first_fault(error), error.errors()[0]
        got = "" if first["type"] == "missing" else f", got {first['input']!r}"
        raise ImagineError(f"{source}: {where or kind.__name__}: {what}{got}") from None


def _refuse_unknown(kind: type, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
    """Raise ImagineError, with a suggestion, at the first key that ``kind`` does not have."""
    keys = _keys_of(kind)
    for key, value in values.items():
        if key not in keys:
            raise ImagineError(f"{source}: unknown key {prefix + str(key)!r}{did_you_mean(str(key), keys)}")
        inner = _nested(keys[key])
        if inner is not None and isinstance(value, Mapping):
            _refuse_unknown(inner, value, source, f"{prefix}{key}.")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion and, failing one, everything that is known."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(known)}"


def _nested(annotation: Any) -> type | None:
    """The configuration class inside a type such as ``Optional[Inner]``, if there is one."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel)):
            return kind
    return None
