"""What goes over the wire between a robot and a policy: msgpack with numpy arrays, laid out as openpi does.

No pickle, and no dtype that could hold one. It needs numpy and msgpack only, so that a robot's computer does too.

Source: openpi (Physical Intelligence), ``openpi_client.msgpack_numpy``; the layout, not the code.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack
import numpy as np

LARGEST = 256 * 2**20
"""Bytes of the largest message taken: dozens of full-size camera images, yet nothing that fills a memory."""
_PLAIN = re.compile(r"[<>|=]?[biufSU]\d{1,6}")  # booleans, numbers and text; neither objects nor records nor complex


class WireError(ValueError):
    """A message cannot be read, or holds what may not be sent; one sentence says which."""


def pack(message: Any) -> bytes:
    """Encode dicts, lists, numbers, text, and numpy arrays and scalars of a plain dtype.

    Raises:
        WireError: something else is in it.
    """
    try:
        return msgpack.packb(message, default=_encode)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"message cannot be sent: {error}.") from None


def unpack(data: bytes) -> Any:
    """Inverse of :func:`pack`; arrays come back writable.

    Raises:
        WireError: not msgpack, or an array in it is malformed or of a refused dtype.
    """
    try:
        return msgpack.unpackb(data, object_hook=_decode)
    except WireError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException) as error:
        said = str(error) or type(error).__name__
        raise WireError(f"got {len(data)} bytes that are not msgpack with numpy arrays ({said}).") from None


def _encode(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise WireError(f"cannot send a {type(value).__name__}, expected numpy arrays, numbers, text, lists and dicts.")
    dtype = _plain(value.dtype.str)
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": dtype.str}


def _decode(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" in found:
        dtype, data, shape = _plain(found[b"dtype"]), found[b"data"], tuple(found[b"shape"])
        whole = all(isinstance(n, int) and n >= 0 for n in shape)
        if not whole or not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
            raise WireError(f"got an array of {len(data)} bytes, expected shape {shape} of {dtype}; was it cut short?")
        return np.frombuffer(data, dtype).reshape(shape).copy()
    if b"__npgeneric__" in found:
        value = found[b"data"]
        if not isinstance(value, bool | int | float | str | bytes):
            raise WireError(f"got a numpy scalar that holds a {type(value).__name__}, expected a number or text.")
        return _plain(found[b"dtype"]).type(value)
    return found


def _plain(dtype: Any) -> np.dtype:
    if not isinstance(dtype, str) or not _PLAIN.fullmatch(dtype):
        raise WireError(f"dtype {str(dtype)[:40]!r} is not sent, expected booleans, numbers or text, as '<f4'.")
    return np.dtype(dtype)
