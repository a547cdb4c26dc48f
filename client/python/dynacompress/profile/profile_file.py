"""The profile file: bytes that a context is opened with.

Little-endian, each part padded to 16 bytes:
  header 64 B  "DYNF", version u16, header bytes u16, context fingerprint u64, layers u32,
               flags u32 (1: has omega), total bytes u64, reserved zeros, crc32c u32 of the file
               with this field 0
  per layer    basis bytes u32, cells u32 (0, or kv heads), 8 reserved; the basis object;
               cells x (omega of K, omega of V, K's relative error at L4, at L2) f32
The daemon is the judge of such a file: it verifies every field when a context is opened with it.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence

from .. import _core

_HEADER = struct.Struct("<4sHHQIIQ")
_LAYER = struct.Struct("<II8x")
_CELL = struct.Struct("<4f")
_CRC_AT = 60


@dataclasses.dataclass(frozen=True)
class Cell:
    """One (layer, kv head): nats of KL per unit of predicted relative error, and K's errors."""

    omega_k: float
    omega_v: float
    k_error_l4: float
    k_error_l2: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """Bases by layer (empty bytes: none) and cells by layer and head (empty: no omega)."""

    fingerprint: int
    bases: Sequence[bytes]
    cells: Sequence[Sequence[Cell]] = ()


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 16)


def serialise(profile: Profile) -> bytes:
    """The file."""
    body = b""
    for layer, basis in enumerate(profile.bases):
        cells = profile.cells[layer] if profile.cells else ()
        body += _LAYER.pack(len(basis), len(cells)) + _padded(basis)
        body += b"".join(_CELL.pack(*dataclasses.astuple(cell)) for cell in cells)
    size = 64 + len(body)
    head = _HEADER.pack(
        b"DYNF", 1, 64, profile.fingerprint, len(profile.bases), 1 if profile.cells else 0, size
    ).ljust(64, b"\0")
    data = bytearray(head + body)
    struct.pack_into("<I", data, _CRC_AT, _core.crc32c(bytes(data)))
    return bytes(data)


def parse(data: bytes) -> Profile:
    """Reads a file back, for pictures and tools. ValueError where it is not a whole profile."""
    if len(data) < 64 or data[:4] != b"DYNF":
        raise ValueError("not a profile")
    _, version, header, fingerprint, layers, flags, size = _HEADER.unpack_from(data)
    blank = bytearray(data)
    struct.pack_into("<I", blank, _CRC_AT, 0)
    if version != 1 or header != 64 or size != len(data):
        raise ValueError(f"a profile of version {version} with {len(data)} of {size} bytes")
    if struct.unpack_from("<I", data, _CRC_AT)[0] != _core.crc32c(bytes(blank)):
        raise ValueError("a damaged profile: its checksum differs")
    bases, cells, at = [], [], 64
    for _ in range(layers):
        basis_bytes, count = _LAYER.unpack_from(data, at)
        at += 16
        bases.append(data[at : at + basis_bytes])
        at += basis_bytes + -basis_bytes % 16
        cells.append([Cell(*_CELL.unpack_from(data, at + 16 * i)) for i in range(count)])
        at += 16 * count
    return Profile(fingerprint, bases, cells if flags & 1 else ())
