"""What keys a configuration has, and how plain values become one. Truth is the frozen class beside what it configures.

Works on dataclasses and pydantic models alike, nested as deep as they are.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast, get_args, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError

from imagine.types import ImagineError, first_fault

Config = TypeVar("Config")


def keys_of(kind: type) -> dict[str, Any]:
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
    refuse_unknown(kind, values, source)
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        (where, what), first = first_fault(error), error.errors()[0]
        got = "" if first["type"] == "missing" else f", got {first['input']!r}"
        raise ImagineError(f"{source}: {where or kind.__name__}: {what}{got}") from None


def refuse_unknown(kind: type, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
    """Raise ImagineError, with a suggestion, at the first key that ``kind`` does not have."""
    keys = keys_of(kind)
    for key, value in values.items():
        if key not in keys:
            raise ImagineError(f"{source}: unknown key {prefix + str(key)!r}{did_you_mean(str(key), keys)}")
        inner = _nested(keys[key])
        if inner is not None and isinstance(value, Mapping):
            refuse_unknown(inner, value, source, f"{prefix}{key}.")


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
