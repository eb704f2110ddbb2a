"""Renewing the checksums of containers whose readers would refuse any change."""

from __future__ import annotations

import struct
import zlib
from functools import cache

TAR_BLOCK = 512
OGG_POLYNOMIAL = 0x04C11DB7


def mend_tar(data: bytes) -> bytes:
    """Every block that looks like a header gets the sum of its bytes."""
    changed = bytearray(data)
    for start in range(0, len(changed) - TAR_BLOCK + 1, TAR_BLOCK):
        if changed[start + 257 : start + 262] == b"ustar":
            changed[start + 148 : start + 156] = b" " * 8
            changed[start + 148 : start + 156] = b"%06o\0 " % sum(changed[start : start + TAR_BLOCK])
    return bytes(changed)


def mend_ogg(data: bytes) -> bytes:
    """Every page gets its CRC."""
    changed = bytearray(data)
    start = changed.find(b"OggS")
    while 0 <= start <= len(changed) - 27:
        num_segments = changed[start + 26]
        end = start + 27 + num_segments + sum(changed[start + 27 : start + 27 + num_segments])
        changed[start + 22 : start + 26] = bytes(4)
        struct.pack_into("<I", changed, start + 22, _ogg_crc(bytes(changed[start:end])))
        start = changed.find(b"OggS", start + 4)
    return bytes(changed)


def mend_zip(data: bytes) -> bytes:
    """Stored entries get their CRC, in the local header and in the directory."""
    changed = bytearray(data)
    start = changed.find(b"PK\1\2")
    while 0 <= start <= len(changed) - 46:
        (size,) = struct.unpack_from("<I", changed, start + 20)
        (local,) = struct.unpack_from("<I", changed, start + 42)
        if changed[local : local + 4] == b"PK\3\4" and local + 30 <= len(changed):
            name, extra = struct.unpack_from("<HH", changed, local + 26)
            content = changed[local + 30 + name + extra :][:size]
            struct.pack_into("<I", changed, start + 16, zlib.crc32(content))
            struct.pack_into("<I", changed, local + 14, zlib.crc32(content))
        start = changed.find(b"PK\1\2", start + 4)
    return bytes(changed)


@cache
def _ogg_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (OGG_POLYNOMIAL if value & 0x8000_0000 else 0)
        table.append(value & 0xFFFF_FFFF)
    return table


def _ogg_crc(page: bytes) -> int:
    table, value = _ogg_table(), 0
    for byte in page:
        value = ((value << 8) & 0xFFFF_FFFF) ^ table[(value >> 24) ^ byte]
    return value
