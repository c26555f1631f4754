"""Somebody else's world model, by name."""

from __future__ import annotations

from imagine.imports import import_object
from imagine.types import ImagineError
from imagine.world.foreign import ForeignModel


def load_foreign(model: str | ForeignModel) -> ForeignModel:
    """A world model, or ``module:name`` of one or of what makes it without arguments.

    Raises:
        ImagineError: there is no such thing, or it lacks one of the three methods.
    """
    found = import_object(model, "foreign model") if isinstance(model, str) else model
    if isinstance(found, type) or not isinstance(found, ForeignModel):
        found = found() if callable(found) else found
    if not isinstance(found, ForeignModel):
        raise ImagineError(
            f"foreign model {model!r} is a {type(found).__name__}, expected encode, predict and decode; see "
            "imagine.world.foreign.ForeignModel."
        )
    return found
