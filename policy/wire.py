"""What goes over the wire between a robot and a policy: msgpack with numpy arrays, laid out as openpi does.

No pickle, and no dtype that could hold one. It needs numpy and msgpack only, so that a robot's computer does too.
A message is measured before anything of it is decoded: its values, their depth and their text are counted from the
headers alone, so that no message makes more than a few times its own length, and none keeps a decoder busy.

Source: openpi (Physical Intelligence), ``openpi_client.msgpack_numpy``, and msgpack-numpy (Lev Givon), which GR00T's
servers speak; the layouts, not the code. Both are read, openpi's is written.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np

LARGEST = 256 * 2**20
"""Bytes of the largest message taken: dozens of full-size camera images, yet nothing that fills a memory."""
MOST_VALUES = 4096
"""Values in one message, keys and containers among them. An array is some fifteen, however large."""
DEEPEST = 16
"""Containers within each other."""
LONGEST_TEXT = 2**16
"""Bytes of one text."""
MOST_DIMENSIONS = 8
"""Of an array."""

DTYPES = {
    dtype.str: dtype
    for kind in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
    for dtype in (np.dtype("<" + kind), np.dtype(">" + kind))
}
"""All that an array may hold, by its spelling on the wire: booleans and numbers."""

_CONTAINERS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # width of the count, values per entry
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}  # width of the length
_TEXT = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_NUMBERS = dict(zip([0xC0, 0xC2, 0xC3, *range(0xCA, 0xD4)], [0, 0, 0, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8], strict=True))


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
    """Inverse of :func:`pack`, which reads msgpack-numpy's layout as well; arrays come back writable.

    Raises:
        WireError: not msgpack, larger or deeper than any robot's message, or an array in it is malformed or of a
            refused dtype.
    """
    try:
        _measure(data)
        return msgpack.unpackb(data, object_hook=_decode)
    except WireError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, msgpack.UnpackException) as error:
        said = (str(error) or type(error).__name__)[:200]
        raise WireError(f"got {len(data)} bytes that are not msgpack with numpy arrays ({said}).") from None


def _measure(data: bytes) -> None:
    """Walk over the headers of a message and refuse what is too large, before any of it is made."""
    if len(data) > LARGEST:
        raise WireError(f"got a message of {len(data)} bytes, expected at most {LARGEST}.")
    at, values, ahead = 0, 0, [1]  # ahead: values still to come, by depth
    while ahead:
        if not ahead[-1]:
            ahead.pop()
            continue
        if at >= len(data):
            raise ValueError("it ends early")
        ahead[-1] -= 1
        values += 1
        inside, length, at = _header(data, at)
        if inside:
            ahead.append(inside)
        if values + inside > MOST_VALUES or len(ahead) > DEEPEST + 1:
            raise WireError(
                f"got a message of more than {MOST_VALUES} values or {DEEPEST} levels; send numbers as numpy arrays."
            )
        at += length


def _header(data: bytes, at: int) -> tuple[int, int, int]:
    """Of the value at a place: how many values are in it, bytes that follow its header, and where that ends."""
    head = data[at]
    if head <= 0x7F or head >= 0xE0:
        return 0, 0, at + 1
    if head <= 0x8F:
        return 2 * (head & 0x0F), 0, at + 1
    if head <= 0x9F:
        return head & 0x0F, 0, at + 1
    if head <= 0xBF:
        return 0, head & 0x1F, at + 1
    if head in _NUMBERS:
        return 0, _NUMBERS[head], at + 1
    width, entry = _CONTAINERS.get(head, (_BYTES.get(head) or _TEXT.get(head, 0), 0))
    if not width:
        raise ValueError(f"a value of type 0x{head:02x} is not taken")
    count = int.from_bytes(data[at + 1 : at + 1 + width], "big")
    if head in _TEXT and count > LONGEST_TEXT:
        raise WireError(f"got a text of {count} bytes, expected at most {LONGEST_TEXT}.")
    return count * entry, 0 if entry else count, at + 1 + width


def _encode(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise WireError(f"cannot send a {type(value).__name__}, expected numpy arrays, numbers, text, lists and dicts.")
    dtype = _plain(value.dtype.str)
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": dtype.str}


def _decode(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" in found:
        return _array(found[b"data"], found[b"dtype"], found[b"shape"])
    if b"__npgeneric__" in found:
        return _scalar(found[b"data"], _plain(found[b"dtype"]))
    if b"nd" in found:  # msgpack-numpy, where a scalar is sent as its bytes
        made = _array(found[b"data"], found[b"type"], found[b"shape"] if found[b"nd"] else [])
        return made if found[b"nd"] else made[()]
    return found


def _array(data: Any, kind: Any, shape: Any) -> np.ndarray:
    dtype = _plain(kind)
    if not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS:
        raise WireError(f"got an array without its bytes or of more than {MOST_DIMENSIONS} dimensions.")
    if not all(type(n) is int and 0 <= n <= LARGEST for n in shape):
        raise WireError(
            "got an array with a dimension that is no whole number of at least 0, or larger than a message."
        )
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise WireError(f"got an array of {len(data)} bytes, expected shape {shape} of {dtype}; was it cut short?")
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _scalar(value: Any, dtype: np.dtype) -> np.generic:
    wanted = {"b": bool, "f": int | float}.get(dtype.kind, int)
    if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
        raise WireError(f"got a numpy scalar of {dtype} that holds a {type(value).__name__}, expected a number.")
    with np.errstate(over="ignore"):
        return dtype.type(value)


def _plain(kind: Any) -> np.dtype:
    if not isinstance(kind, str) or kind not in DTYPES:
        raise WireError(
            f"dtype {str(kind)[:40]!r} is not sent, expected booleans or numbers, as '<f4'; text goes as it is."
        )
    return DTYPES[kind]
