#!/usr/bin/env python3
"""Writes goldens.txt and the binary goldens beside it; needs numpy. Run again only when formats.md changes.

Lines of goldens.txt (hashes are the first 8 bytes of SHA-256, in hex):
  K d run widths input seed live pins input_hash packed_hash decoded_hash     widths: one digit a run
  V d bits input seed live pins input_hash packed_hash v_exp decoded_hash
"""
import hashlib
import os

import numpy as np

import inputs
import reference_basis as rb
import reference_pack as pack
import reference_quant as quant
import reference_segment as rs

HERE = os.path.dirname(os.path.abspath(__file__))
ALL = 2 ** 64 - 1
SPARSE = int(inputs.splitmix64(99, 1)[0])
MASKS = [(ALL, 0), (ALL, 0xF), (SPARSE, 0), (SPARSE, 0x8000000000000111), (ALL, ALL), (1 << 40, 0)]


def short_hash(data):
    return hashlib.sha256(data).hexdigest()[:16]


def widths_patterns(runs):
    """What ladders look like (wide to narrow), uniform ones, and one in no order."""
    falling = [(8, 4, 2, 0)[min(4 * r // runs, 3)] for r in range(runs)]
    mostly2 = [4 if r == 0 else 2 if r < runs - runs // 4 else 0 for r in range(runs)]
    mixed = [(0, 2, 8, 4, 2)[(r * 7 + runs) % 5] for r in range(runs)]
    return [[8] * runs, [4] * runs, [2] * runs, [0] * runs, falling, mostly2, mixed]


def k_lines():
    seed = 0
    for d in range(16, 257, 16):
        for run in (8, 16):
            for p, widths in enumerate(widths_patterns(d // run)):
                for extra in range(2 if p < 3 or p == 6 else 1):
                    seed += 1
                    allowed = [n for n in inputs.NAMES if 2 not in widths or n not in ("ties", "any")]
                    name = allowed[seed % len(allowed)]
                    live, pins = MASKS[0] if seed % 2 else MASKS[seed // 2 % len(MASKS)]
                    bits = inputs.make(name, seed, d)
                    coded = quant.quantise_k(bits, widths, run, live, pins)
                    packed = pack.pack_k(*coded, widths, run)
                    decoded = quant.dequantise_k(*coded, widths, run)
                    yield (f"K {d} {run} {''.join(map(str, widths))} {name} {seed} {live:016x} {pins:016x} "
                           f"{short_hash(bits.tobytes())} {short_hash(packed)} {short_hash(decoded.tobytes())}")


def v_lines():
    seed = 5000
    for d in range(16, 257, 16):
        for b in (0, 1, 2, 4, 8):
            for _ in range(5):
                seed += 1
                name = inputs.NAMES[seed % len(inputs.NAMES)]
                live, pins = MASKS[0] if seed % 2 else MASKS[seed // 2 % len(MASKS)]
                bits = inputs.make(name, seed, d)
                codes, gains, v_exp = quant.quantise_v(bits, b, live, pins)
                decoded = quant.dequantise_v(codes, gains, b, v_exp)
                yield (f"V {d} {b} {name} {seed} {live:016x} {pins:016x} {short_hash(bits.tobytes())} "
                       f"{short_hash(pack.pack_v(codes, gains, b))} {v_exp} {short_hash(decoded.tobytes())}")


def synthetic_model(d, heads, tiles, rope):
    """x and q as a model would make them: shared directions of falling strength, a mean, a few loud channels."""
    r = lambda seed, *shape: inputs.make("decay", seed, 16 * -(-int(np.prod(shape)) // 1024)).view(
        np.float16).astype(np.float64).ravel()[:int(np.prod(shape))].reshape(shape)
    for h in range(heads):
        mix = r(900 + h, d, d) + 0.1 * np.eye(d)
        x = r(910 + h, tiles * 64, d) * np.linspace(2, 0.05, d) @ mix + 0.5 * r(920 + h, d)
        q = r(930 + h, 512, d) @ r(940 + h, d, d)
        yield x.reshape(tiles, 64, d), q


def binary_goldens():
    d, heads, run, layer, head0, length, index = 64, 3, 8, 5, 2, 1024, 3
    rope = rb.Rope("half", d, d, 10000.0 ** (-2 * np.arange(d // 2) / d))
    fingerprint = bytes(range(0xA0, 0xA8))
    cells, x_last = [], []
    for x, q in synthetic_model(d, heads, 16, rope):
        centred = x - x.mean(1, keepdims=True)
        c = np.einsum("atc,ate->ce", centred, centred) / (x.shape[0] * 64)
        a, b, variances = rb.basis(c, rope.average(q.T @ q / len(q), length))
        cells.append((x.mean((0, 1)), a, b, variances))
        x_last.append(rope.turn(x[-1], index * 64 + np.arange(64)))
    levels, targets = rb.ladders([cell[3] for cell in cells], run)
    basis, name = rb.basis_object(cells, levels, fingerprint, layer, head0, 0, run, 1, 1024, 512)

    k = rs.half(np.array(x_last))
    v = np.array([inputs.make("outlier", 950 + h, d) for h in range(heads)])
    level = lambda target: rs.LEVEL0 + targets.index(target)
    plans = [(level(2), 2, ALL), (rs.PLAIN8, 8, SPARSE), (level(4), 4, ALL)]
    of_heads = [rs.Head(kk, rs.VBITS0 + vb, live, cells[h][:3], levels[h], run, rope, index * 64)
                for h, (kk, vb, live) in enumerate(plans)]
    data, decoded = rs.segment(k, v, of_heads, 0x8000000000000011, fingerprint, name, bytes(range(32)), index, layer, head0)
    return {"basis_d64.bin": basis, "segment_d64.bin": data,
            "segment_d64_source.bin": np.stack([k, v], 1).astype("<u2").tobytes(),
            "segment_d64_decoded.bin": rs.half(decoded).astype("<u2").tobytes()}


def main():
    with open(os.path.join(HERE, "goldens.txt"), "w") as out:
        for line in list(k_lines()) + list(v_lines()):
            out.write(line + "\n")
    for name, data in binary_goldens().items():
        with open(os.path.join(HERE, name), "wb") as out:
            out.write(data)


if __name__ == "__main__":
    main()
