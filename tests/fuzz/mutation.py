"""Changes to sound bytes that readers stumble over. Equal seeds give equal changes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    Change = Callable[[bytes, random.Random, Sequence[bytes]], bytes]

MAX_BYTES = 16 << 20
MAX_STRUCTURED = 1 << 20
"""JSON over this is changed as bytes only."""
DEPTH = 20_000
NUMBERS = (0, 1, -1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 0x8000_0000, 1 << 40, (1 << 63) - 1)
WORDS = (
    *("../../../outside/secret", "..\\..\\outside", "/outside/secret", "C:\\x", "~/x", "file:///x", "a\0b", "con", "."),
    *("9" * 400, "-" + "9" * 400, "-1", "0", "1e999", "-1e308", "NaN", "Infinity", "0x7f", "1_000", "true", "null"),
    *(
        '"',
        "'",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\t",
        "\n",
        "\r",
        "|",
        "{a|b",
        "&a",
        "*a",
        "!!python/object/apply:os.x []",
    ),
    *("\ufeff", "\u202e", "и\u0306", "𝕏" * 50, "\\ud800", "x" * 70_000, "[" * DEPTH, '{"a":' * DEPTH, "- " * 2_000),
    *("<script>", "${oc.env:HOME}", "nemo:../x", "[bold]", "%s", "<|ru|>"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, 1e308, -(10**30), 10**400, float("nan"), float("inf"), [], {}, "", [[]]),
    *("x" * 70_000, "../../../outside/secret", "/outside/secret", "a\0b", "\ud800", "9" * 400, [None] * 3_000),
    *({"": {"": {}}}, {"path": "../../../outside/secret"}, ["../x", 1, None]),
)


def mutate(data: bytes, *, rng: random.Random, others: Sequence[bytes], places: Sequence[int] = ()) -> bytes:
    """A few changes to one input.

    others: sound inputs of the same kind, to take pieces from. places: offsets of what says how the rest is to be
    read, such as sizes and names; three quarters of all changes of bytes happen there.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if rng.random() < 0.5 and len(data) < MAX_STRUCTURED and data.lstrip()[:1] in {b"{", b"["}:
            data = _change_json(data, rng)
        else:
            place = rng.choice(places) if places and rng.random() < 0.75 else rng.randrange(len(data) + 1)
            data = rng.choice(CHANGES)(data, rng, others, min(place, len(data)))
    return data[:MAX_BYTES]


def _flip(data: bytes, rng: random.Random, others: Sequence[bytes], place: int) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 16))):
        at = min(place + rng.randrange(8), len(changed) - 1)
        if at >= 0:
            changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, rng: random.Random, others: Sequence[bytes], place: int) -> bytes:
    noise = rng.randbytes(rng.choice((1, 2, 4, 8, 64)))
    return data[:place] + noise + data[place + len(noise) :]


def _number(data: bytes, rng: random.Random, others: Sequence[bytes], place: int) -> bytes:
    """A huge, negative or zero number in what may be a length."""
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice(NUMBERS) & ((1 << 8 * size) - 1)
    number = value.to_bytes(size, rng.choice(("little", "big")))
    return data[:place] + number + data[place + size :]


def _truncate(data: bytes, rng: random.Random, others: Sequence[bytes], place: int) -> bytes:
    return data[:place]


def _delete(data: bytes, rng: random.Random, others: Sequence[bytes], place: int) -> bytes:
    return data[:place] + data[place + rng.choice((1, 4, 32, 512, 4096)) :]


def _repeat(data: bytes, rng: random.Random, others: Sequence[bytes], place: int) -> bytes:
    span = data[place : place + rng.choice((1, 4, 32, 512, 4096))]
    return data[:place] + span * rng.choice((2, 3, 50)) + data[place + len(span) :]


def _splice(data: bytes, rng: random.Random, others: Sequence[bytes], place: int) -> bytes:
    other = rng.choice(others)
    return data[:place] + other[rng.randrange(len(other) + 1) :]


def _insert(data: bytes, rng: random.Random, others: Sequence[bytes], place: int) -> bytes:
    return data[:place] + _word(rng) + data[place:]


def _replace_word(data: bytes, rng: random.Random, others: Sequence[bytes], place: int) -> bytes:
    """Another word, path or number in the place of one; in a binary file without moving what follows."""
    found = re.compile(rb"[A-Za-z0-9_./+-]{1,100}").search(data, place)
    if found is None:
        return _insert(data, rng, others, place)
    word = _word(rng)
    if b"\0" in data and rng.random() < 0.8:
        word = word[: len(found[0])].ljust(len(found[0]), b"\0")
    return data[: found.start()] + word + data[found.end() :]


def _not_utf8(data: bytes, rng: random.Random, others: Sequence[bytes], place: int) -> bytes:
    return (
        data[:place] + rng.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88", b"\x00", b"\xff\xfe")) + data[place:]
    )


def _noise(data: bytes, rng: random.Random, others: Sequence[bytes], place: int) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 16, 300))) if rng.random() < 0.2 else _overwrite(data, rng, others, place)


CHANGES = (
    *(_flip, _overwrite, _number, _number, _truncate, _delete, _repeat, _splice, _insert, _replace_word, _replace_word),
    *(_not_utf8, _noise),
)


def _word(rng: random.Random) -> bytes:
    return rng.choice(WORDS).encode("utf-8", "surrogatepass")


def _change_json(data: bytes, rng: random.Random) -> bytes:
    """A value of another kind, or a name that is gone, somewhere in JSON or in one line of JSON lines."""
    lines = data.split(b"\n")
    try:
        json.loads(data)
        number, text = 0, data
        lines = [data]
    except (ValueError, RecursionError):
        number = rng.randrange(len(lines))
        text = lines[number]
    try:
        value = json.loads(text)
        lines[number] = json.dumps(_changed(value, rng), ensure_ascii=rng.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    except (ValueError, RecursionError):
        return data
    return b"\n".join(lines)


def _changed(value: Any, rng: random.Random) -> Any:
    """Goes down at random, and changes one thing where it stops."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        if rng.random() < 0.12:
            return {other: item for other, item in value.items() if other != name}
        if rng.random() < 0.05:
            return {(rng.choice(WORDS) if other == name else other): item for other, item in value.items()}
        return {**value, name: _changed(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        return [*value[:place], _changed(value[place], rng), *value[place + 1 :]]
    return rng.choice(VALUES)
