"""Finds what a user names as ``package.module:object``."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any


def import_object(text: str, what: str, working_directory: str | None = None) -> Any:
    """What ``package.module:object`` names; the working directory can be imported from.

    Raises:
        ImagineError: it cannot be imported; ``what`` says what it should have been.
    """
    from imagine.types import ImagineError

    module, _, attribute = text.partition(":")
    here = working_directory or os.getcwd()
    known = here in sys.path
    if not known:
        sys.path.insert(0, here)
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImagineError(f"{what} {text!r} cannot be imported ({error}), expected package.module:object.") from None
    finally:
        if not known:
            sys.path.remove(here)
