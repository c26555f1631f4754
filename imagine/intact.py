"""Files that somebody may have damaged: whatever goes wrong in reading one is its fault, and told in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagine.types import CheckpointMismatch, ImagineError, first_fault


@contextmanager
def intact(
    path: str | Path, remedy: str = "copy it again", kind: type[ImagineError] = CheckpointMismatch
) -> Iterator[None]:
    """Put around what reads one file or folder and makes sense of it, and around nothing else.

    Args:
        path: named in the message.
        remedy: what to do, as "delete it".
        kind: of error.

    Raises:
        ImagineError: of that kind, whatever went wrong; one of ours passes as it is.
    """
    try:
        yield
    except ImagineError:
        raise
    except Exception as error:  # parsers of foreign bytes raise all kinds
        raise kind(f"{path} is damaged ({said(error)}); {remedy}.") from None


def said(error: Exception) -> str:
    """What an error says, on one line of at most 200 characters; of pydantic's only the first fault."""
    if hasattr(error, "errors"):
        where, what = first_fault(error)
        return f"{where}: {what}"[:200] if where else what[:200]
    text = getattr(error, "strerror", None) or " ".join(str(error).split()).rstrip(".")[:200]
    return f"no {text}" if isinstance(error, KeyError) else text or type(error).__name__
