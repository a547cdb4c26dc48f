"""RoPE (formats.md 7), averaged moments (policy.md 2) and the basis object (formats.md 1), in double."""
import functools
import hashlib
import struct

import numpy as np

TARGETS = [0, .5, .75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5]
ERROR = {0: 1.0, 2: .125, 4: .0085, 8: 3e-5}
STEPS = [0, 2, 4, 8]


def crc32c(data):
    table = []
    for i in range(256):
        for _ in range(8):
            i = (i >> 1) ^ (0x82F63B78 if i & 1 else 0)
        table.append(i)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class Rope:
    """Pairs of channels and their frequencies; channels beyond rotary_dim have frequency 0."""

    def __init__(self, kind, d, rotary_dim, inv_freq):
        r = rotary_dim if kind != "none" else 0
        first = np.arange(r // 2) if kind == "half" else 2 * np.arange(r // 2)
        second = first + r // 2 if kind == "half" else first + 1
        rest = np.arange(r, d, 2)
        self.x, self.y = np.concatenate([first, rest]).astype(int), np.concatenate([second, rest + 1]).astype(int)
        self.w = np.concatenate([np.asarray(inv_freq, np.float32).astype(np.float64)[:r // 2], np.zeros(len(rest))])

    def turn(self, v, position):
        """R(position) v for rows v[..., d]; a negative position undoes it."""
        angle = np.asarray(position, np.float64)[..., None] * self.w
        c, s, x, y = np.cos(angle), np.sin(angle), v[..., self.x], v[..., self.y]
        out = np.empty_like(v)
        out[..., self.x], out[..., self.y] = x * c - y * s, x * s + y * c
        return out

    @functools.cache
    def _phi(self, length):
        """phi(w_i + w_j) and phi(w_i - w_j), the mean of e^(iDt) over D < length."""
        phi = lambda t: np.mean(np.exp(1j * np.arange(length)[:, None, None] * t), axis=0)
        return phi(self.w[:, None] + self.w), phi(self.w[:, None] - self.w)

    def average(self, m, length):
        """E over D < length of R(D) m R(D)'."""
        plus, minus = self._phi(length)
        xx, yy = m[np.ix_(self.x, self.x)], m[np.ix_(self.y, self.y)]
        xy, yx = m[np.ix_(self.x, self.y)], m[np.ix_(self.y, self.x)]
        p = (xx + yy + 1j * (yx - xy)) * minus
        q = (xx - yy + 1j * (yx + xy)) * plus
        out = np.empty_like(m)
        out[np.ix_(self.x, self.x)], out[np.ix_(self.y, self.y)] = (p + q).real / 2, (p - q).real / 2
        out[np.ix_(self.x, self.y)] = (q - p).imag / 2
        out[np.ix_(self.y, self.x)] = (q - p).imag.T / 2
        return out


def basis(c, m):
    """-> A, B (double) and the variances of y's channels, largest first and 1."""
    d = len(c)
    m = m + np.eye(d) * 0.01 * np.trace(m) / d
    values, vectors = np.linalg.eigh(m)
    root, inverse = vectors * np.sqrt(values) @ vectors.T, vectors / np.sqrt(values) @ vectors.T
    variance, u = np.linalg.eigh(root @ c @ root)
    order = np.argsort(-variance)
    variance, u = variance[order], u[:, order]
    scale = np.sqrt(variance[0])
    return u.T @ root / scale, inverse @ u * scale, np.maximum(variance / variance[0], 0)


def ladder(variances, run):
    """One widths list per target, duplicates and all."""
    runs = len(variances) // run
    power = np.asarray(variances, np.float64).reshape(runs, run).sum(1)
    steps = []
    for low, high in zip(STEPS, STEPS[1:]):
        gain = (ERROR[low] - ERROR[high]) / (high - low)
        steps += [(-power[r] * gain, r, high) for r in range(runs)]
    steps.sort()
    levels = []
    for target in TARGETS:
        widths = [0] * runs
        for _, r, high in steps:
            before, widths[r] = widths[r], high
            if sum(widths) > target * runs:
                widths[r] = before
                break
        levels.append(widths)
    return levels


def ladders(variances_of_heads, run):
    """A level is dropped when it is the one before it for every head: all heads have the same levels."""
    of_heads = [ladder(v, run) for v in variances_of_heads]
    keep = [i for i in range(len(TARGETS)) if i == 0 or any(h[i] != h[i - 1] for h in of_heads)]
    return [[h[i] for i in keep] for h in of_heads], [TARGETS[i] for i in keep]


def pad16(b):
    return b + bytes(-len(b) % 16)


def basis_object(heads, levels, fingerprint, layer, head0, frame, run, source, tokens, queries):
    """heads: (mu, A, B, variances) each. -> bytes and the name."""
    d = len(heads[0][0])
    body = b""
    for (mu, a, b, variances), widths in zip(heads, levels):
        for part in (mu, a, b):
            body += pad16(np.asarray(part).astype(np.float16).astype("<f2").tobytes())
        body += pad16(np.asarray(variances).astype("<f4").tobytes())
        body += pad16(bytes(w for level in widths for w in level))
    head = struct.pack("<4sHH8sHHHHBBBBII", b"DYNB", 1, 64, fingerprint, layer, head0, len(heads), d,
                       frame, run, len(levels[0]), source, tokens, queries).ljust(60, b"\0")
    crc = crc32c(head + bytes(4) + body)
    data = head + struct.pack("<I", crc) + body
    return data, hashlib.sha256(data).digest()[:8]
