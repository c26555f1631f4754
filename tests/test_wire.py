"""The wire: arrays survive it in both layouts that robots speak, and no message makes more than its own size."""

from __future__ import annotations

import pickle
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagine.policy import wire


def openpis(value: Any) -> bytes:
    """As openpi's client packs, written from its description."""

    def default(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return {b"__ndarray__": True, b"data": x.tobytes(), b"dtype": x.dtype.str, b"shape": x.shape}
        return {b"__npgeneric__": True, b"data": x.item(), b"dtype": x.dtype.str}

    return msgpack.packb(value, default=default)


def msgpack_numpys(value: Any) -> bytes:
    """As the package msgpack-numpy packs, written from its description."""

    def default(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return {b"nd": True, b"type": x.dtype.str, b"kind": b"", b"shape": x.shape, b"data": x.tobytes()}
        return {b"nd": False, b"type": x.dtype.str, b"data": x.tobytes()}

    return msgpack.packb(value, default=default)


def array(**changed: Any) -> dict[bytes, Any]:
    plain = {b"__ndarray__": True, b"data": b"\0" * 4, b"dtype": "<f4", b"shape": [1]}
    return plain | {name.encode(): value for name, value in changed.items()}


@pytest.mark.parametrize("packed", [wire.pack, openpis, msgpack_numpys])
@pytest.mark.parametrize(
    "value",
    [np.arange(6.0).reshape(2, 3), np.zeros((0, 4), np.uint8), np.array(3), np.array([True]), np.array([1], ">i2")],
)
def test_arrays_survive_the_wire_in_either_layout(packed: Any, value: np.ndarray) -> None:
    back = wire.unpack(packed({"x": value}))["x"]
    np.testing.assert_array_equal(back, value)
    assert back.dtype == value.dtype and back.shape == value.shape and back.flags.writeable


def test_what_is_sent_is_laid_out_as_openpi_does() -> None:
    message = {"x": np.arange(6.0).reshape(2, 3), "n": np.float32(0.5), "prompt": np.str_("push"), "seed": 7}
    assert wire.pack(message) == openpis(message)


@pytest.mark.parametrize("packed", [wire.pack, openpis, msgpack_numpys])
def test_scalars_and_text_survive_the_wire(packed: Any) -> None:
    message = {
        "seed": np.int64(7),
        "prompt": np.str_("push"),
        "nested": [{"x": np.float32(0.5)}, None, 1.5, "ä", np.True_],
    }
    assert wire.unpack(packed(message)) == message  # fmt: skip


TEXTS = np.array(["a", "b"])


@pytest.mark.parametrize("value", [np.array([{}]), np.zeros(2, "i4,f4"), np.zeros(2, complex), {1, 2}, object(), TEXTS])
def test_what_could_hold_anything_is_not_sent(value: Any) -> None:
    with pytest.raises(wire.WireError):
        wire.pack({"x": value})


MALFORMED = [
    array(dtype="|O", data=pickle.dumps([1])),
    array(dtype="i4,f4", data=b"\0" * 8),
    array(dtype="<U1", data=b"\xff" * 4),
    array(dtype=["<f4"]),
    array(shape=[2]),
    array(shape=[-1]),
    array(shape=[True]),
    array(shape=[1.0]),
    array(shape="one"),
    array(data="text"),
    array(dtype="<f7", data=b"", shape=[0]),
    array(data=b"", shape=[0, 2**40]),
    array(data=b"", shape=[2**63] * 8),
    array(data=b"", shape=[1] * 33),
    {b"__ndarray__": True, b"data": b""},
    {b"nd": True, b"type": "<f4", b"data": b"\0" * 4},
    {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": pickle.dumps(1)},
    {b"nd": True, b"type": [["x", "<f4"]], b"kind": b"V", b"shape": [1], b"data": b"\0" * 4},
    {b"nd": False, b"type": "<f4", b"data": b"\0" * 8},
    {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"},
    {b"__npgeneric__": True, b"data": True, b"dtype": "<f4"},
    {b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"},
    {b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"},
]


@pytest.mark.parametrize("value", MALFORMED)
def test_a_malformed_array_is_refused(value: dict) -> None:
    with pytest.raises(wire.WireError) as refused:
        wire.unpack(msgpack.packb({"x": value}))
    assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)


def nested(levels: int) -> bytes:
    return b"\x91" * levels + b"\x01"


BOMBS = {
    "a scalar that is made of its size": msgpack.packb({b"__npgeneric__": True, b"data": 2**32, b"dtype": "S4"}),
    "a name of zeros": msgpack.packb({b"__npgeneric__": True, b"data": 2**31, b"dtype": "|V9"}),
    "many dimensions": msgpack.packb(array(shape=[2**63 + 1] * 50_000)),
    "empty maps": b"\xdd" + (2**22).to_bytes(4, "big") + b"\x80" * 2**22,
    "empty lists": b"\xdd" + (2**22).to_bytes(4, "big") + b"\x90" * 2**22,
    "nothing after a count": b"\xdd\xff\xff\xff\xff",
    "counts in counts": b"\xdd\x00\x10\x00\x00" * 500,
    "lists of lists": (b"\xdc\x0f\x00" + b"\xc0" * 0xEFF) * 500,
    "levels": nested(100_000),
    "text that grows": msgpack.packb("😀" + "a" * 2**22),
    "a type of its own": msgpack.packb(msgpack.ExtType(3, b"\0" * 2**22)),
    "a time": msgpack.packb(msgpack.Timestamp(2**33)),
    "two messages": msgpack.packb(1) * 2,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_anything_is_made_of_it(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(wire.WireError) as refused:
            wire.unpack(BOMBS[name])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**20 and len(str(refused.value)) < 300


def test_as_much_as_a_robot_may_ever_send_is_read() -> None:
    deep: Any = "x" * wire.LONGEST_TEXT
    for _ in range(wire.DEEPEST):
        deep = [deep]
    many = [0] * (wire.MOST_VALUES - 1)
    large = {"film": np.zeros((8, 720, 1280, 3), np.uint8)}
    assert wire.unpack(wire.pack(deep)) == deep and wire.unpack(wire.pack(many)) == many
    assert wire.unpack(wire.pack(large))["film"].shape == (8, 720, 1280, 3)
    for more in ([deep], [*many, 0]):
        with pytest.raises(wire.WireError, match="values or"):
            wire.unpack(wire.pack(more))


VALID = wire.pack(
    {"head": np.zeros((4, 4, 3), np.uint8), "proprio": np.zeros(3), "prompt": "push", "seed": np.int64(3)}
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=8), st.integers(0, len(VALID)))
def test_whatever_becomes_of_a_message_it_is_read_or_refused(changes: list[tuple[int, int]], end: int) -> None:
    spoilt = bytearray(VALID)
    for place, byte in changes:
        spoilt[place] = byte
    for data in (bytes(spoilt), bytes(spoilt[:end])):
        try:
            wire.unpack(data)
        except wire.WireError as refused:
            assert len(str(refused)) < 400
