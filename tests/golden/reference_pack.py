"""Packing orders of formats.md 3 (K) and 4 (V), one element at a time: slow and plain on purpose."""
import struct

import numpy as np


def pad16(b):
    return b + bytes(-len(b) % 16)


def slot(t):
    return (t & 7) * 8 + (t >> 3)


def pack_k(codes, scales, offsets, widths, run):
    out = offsets.astype("<u2").tobytes()
    listed = b""
    for r, w in enumerate(widths):
        part = scales[r * run:(r + 1) * run]
        if w:
            listed += part.astype("u1" if w == 2 else "<u2").tobytes()
    out += pad16(listed)
    for r, w in enumerate(int(w) for w in widths):
        if w == 0:
            continue
        n = min(run, 32 // w)
        for j in range(run // n):
            plane = np.zeros(64, np.uint64)
            for k in range(n):
                bit = 8 * k if w == 8 else (n * w // 2) * (k & 1) + w * (k >> 1)
                for t in range(64):
                    plane[slot(t)] |= np.uint64(int(codes[t, r * run + j * n + k]) << bit)
            out += plane.astype("<u2" if n * w == 16 else "<u4").tobytes()
    return out


def pack_v(codes, gains, b):
    if b == 0:
        return codes.astype("<u2").tobytes()
    d = codes.shape[1]
    ordered = np.zeros(64, np.int64)
    for t in range(64):
        ordered[slot(t)] = gains[t]
    words = np.zeros(64 * d * b // 32, np.uint32)
    per_word = 16 // b
    for t in range(64):
        for c in range(d):
            byte = (((t >> 3) * (d // 16) + c // 16) * 4 + ((t >> 1) & 3)) * 4 * b + 4 * ((c % 16) // per_word)
            words[byte // 4] |= np.uint32(int(codes[t, c]) << (16 * (t & 1) + b * ((c % 16) % per_word)))
    return ordered.astype("u1" if b < 8 else "<u2").tobytes() + words.astype("<u4").tobytes()


def pack_raw(bits):
    return bits.astype("<u2").tobytes()


def e4m3(x):
    """Nearest even, saturating, by search over the 127 finite magnitudes (0 .. 0x7e)."""
    code = np.arange(0x7F)
    exponent, mantissa = code >> 3, code & 7
    value = np.where(exponent == 0, mantissa * 2.0 ** -9, (8 + mantissa) * 2.0 ** (exponent - 10))
    a = np.minimum(np.abs(x.astype(np.float64)), value[-1])
    above = np.minimum(np.searchsorted(value, a), 0x7E)
    below = np.maximum(above - 1, 0)
    up, down = value[above] - a, a - value[below]
    pick = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    pick = np.where(value[above] == a, above, pick)
    return (pick | np.where(np.signbit(x), 0x80, 0)).astype(np.uint8)


def pack_fp8(x):
    """f32 rows -> scale padded to 16 bytes, then the rows."""
    amax = np.float32(np.abs(x).max())
    scale = np.float32(1) if amax == 0 else np.float32(amax / np.float32(448))
    return pad16(struct.pack("<f", scale)) + e4m3((x / scale).astype(np.float32)).tobytes()
