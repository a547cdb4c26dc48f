"""Segment bytes of formats.md 6, and what a reader must get back from them."""
import struct

import numpy as np

import reference_pack as pack
import reference_quant as quant
from reference_basis import crc32c, pad16

RAW, FP8, PLAIN8, PLAIN4, NONE, LEVEL0, VBITS0 = 1, 2, 3, 4, 7, 16, 16
DTYPE_F16 = 2


def hadamard(d):
    """Orthonormal, natural order, block-diagonal with the largest power of two that divides d."""
    n = d & -d
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return np.kron(np.eye(d // n), h / np.sqrt(n))


def half(x):
    return np.asarray(x).astype(np.float16).view(np.uint16)


def double(bits):
    return bits.view(np.float16).astype(np.float64)


class Head:
    """One kv head: kinds, live mask, its part of the basis (mu, A, B) and its levels; `position` of token 0."""

    def __init__(self, k_kind, v_kind, live, basis, levels, run, rope, position):
        self.k_kind, self.v_kind, self.live, self.run = k_kind, v_kind, live, run
        self.mu, self.a, self.b = (np.asarray(p).astype(np.float16).astype(np.float64) for p in basis)
        self.levels, self.rope, self.position = levels, rope, position

    def code(self, k, v, pins):
        """f16 bits [64][d] of K and V -> (K tile, V tile, v_exp, decoded K and V in double by logical token)."""
        d = k.shape[1]
        tokens = [t for t in range(64) if self.live >> t & 1]
        unpinned = [not (pins >> t & 1) for t in tokens]
        k_out, v_out = double(k), double(v)
        if self.k_kind >= LEVEL0:
            widths, run = self.levels[self.k_kind - LEVEL0], self.run
            x = self.rope.turn(double(k), -(self.position + np.arange(64)))
            y = half((x - self.mu) @ self.a.T)
        else:
            run = 16
            widths, y = [8 if self.k_kind == PLAIN8 else 4] * (d // run), k
        codes, scales, offsets = quant.quantise_k(y, widths, run, self.live, pins)
        k_tile = pack.pack_k(codes, scales, offsets, widths, run)
        y_back = double(quant.dequantise_k(codes, scales, offsets, widths, run))[:len(tokens)]
        if self.k_kind >= LEVEL0:
            y_back = self.rope.turn(y_back @ self.b.T + self.mu, self.position + np.array(tokens))
        k_out[:] = y_back[unpinned].mean(0)    # dropped tokens: the mean of the live ones
        k_out[tokens] = y_back

        bits = self.v_kind - VBITS0
        h = hadamard(d) if bits else np.eye(d)
        codes, gains, v_exp = quant.quantise_v(half(double(v) @ h), bits, self.live, pins)
        v_tile = pack.pack_v(codes, gains, bits)
        z_back = double(quant.dequantise_v(codes, gains, bits, v_exp))[:len(tokens)] @ h
        v_out[:] = z_back[unpinned].mean(0)
        v_out[tokens] = z_back
        for t in range(64):                   # a pinned row is the row itself, live or not
            if pins >> t & 1:
                k_out[t], v_out[t] = double(k[t]), double(v[t])
        return k_tile, v_tile, v_exp, k_out, v_out


def segment(k, v, heads, pins, fingerprint, basis_name, block_hash, block_index, layer, head0):
    """k, v: f16 bits [heads][64][d]. -> bytes, decoded [heads][K, V][64][d] in double."""
    d = k.shape[2]
    coded = [head.code(k[h], v[h], pins) for h, head in enumerate(heads)]
    body = b"".join(np.stack([k[h][t], v[h][t]]).astype("<u2").tobytes()
                    for t in range(64) if pins >> t & 1 for h in range(len(heads)))
    start = 128 + 16 * len(heads)
    directory = b""
    for head, (k_tile, v_tile, v_exp, _, _) in zip(heads, coded):
        body = pad16(body)
        live = bin(head.live).count("1")
        flags = ((live + 15) // 16) | (16 if head.live != 2 ** 64 - 1 else 0)
        directory += struct.pack("<IBBbBQ", (start + len(body)) // 16, head.k_kind, head.v_kind, v_exp, flags, head.live)
        body += k_tile + v_tile
    size = -(-(start + len(body)) // 256) * 256
    decoded = np.array([[c[3], c[4]] for c in coded])
    source = np.array([[double(k[h]), double(v[h])] for h in range(len(heads))])
    nmse = np.sum((decoded - source) ** 2) / np.sum(source ** 2)
    header = struct.pack("<4sHH8s8s32sIHHHHBBHQIf", b"DYNS", 2, 128, fingerprint, basis_name, block_hash, block_index,
                         layer, head0, len(heads), d, DTYPE_F16, 0, 1, pins, size, nmse).ljust(124, b"\0")
    data = (header + bytes(4) + directory + body).ljust(size, b"\0")
    return data[:124] + struct.pack("<I", crc32c(data)) + data[128:], decoded
