"""The quantisers of formats.md 2, written from that page alone. f32 throughout, one rounding per operation.

A tile is 64 rows. Row r holds the r-th live token; `use` marks the rows that count (live and not pinned).
"""
import numpy as np

F = np.float32
POWERS = np.array([2.0 ** (i / 16) for i in range(16)]).astype(F)
THRESHOLDS = np.array([2.0 ** ((i + 0.5) / 16) for i in range(16)]).astype(F)


def tree(x, axis):
    """Pairwise sum: padded with +0 to a power of two, then halves n/2 .. 1 are added."""
    x = np.moveaxis(np.asarray(x, F), axis, 0)
    n = 1
    while n < x.shape[0]:
        n *= 2
    x = np.concatenate([x, np.zeros((n - x.shape[0],) + x.shape[1:], F)])
    while n > 1:
        n //= 2
        x = x[:n] + x[n:2 * n]
    return x[0]


def to_rows(x, live, pins):
    """Logical tokens [64][d] -> rows in order of the live tokens, and the mask of rows that count."""
    tokens = [t for t in range(64) if live >> t & 1]
    rows = np.zeros_like(x)
    use = np.zeros(64, bool)
    for r, t in enumerate(tokens):
        rows[r] = x[t]
        use[r] = not (pins >> t & 1)
    return rows, use


def log2_sixteenths(g):
    """16 log2(g), rounded, from the exponent and the sixteen thresholds."""
    mantissa, exponent = np.frexp(g)
    mantissa, exponent = mantissa * F(2), exponent - 1          # mantissa in [1, 2)
    return 16 * exponent + np.sum(THRESHOLDS[:, None] <= mantissa.reshape(1, -1), axis=0).reshape(g.shape)


def power(sixteenths):
    return np.ldexp(POWERS[sixteenths % 16], sixteenths // 16).astype(F)


def log8(g):
    """e of each positive g; above 255 is for the caller to refuse."""
    return np.maximum(log2_sixteenths(g) + 160, 1)


def log8_value(e):
    e = np.asarray(e, np.int64)
    return np.where(e == 0, F(0), power(e - 160)).astype(F)


def log8e_value(e, v_exp):
    e = np.asarray(e, np.int64)
    return np.where(e == 0, F(0), power(16 * v_exp + e - 255)).astype(F)


class Overflow(Exception):
    """A width-2 scale above LOG8's top: the tile stays plain8."""


def quantise_k(bits, widths, run, live, pins):
    """-> codes int[64][d], scales (f16 bits, or the byte e for width 2) int[d], m f16 bits [d]."""
    d = bits.shape[1]
    rows, use = to_rows(bits.view(np.float16).astype(F), live, pins)
    codes, scales, offsets = np.zeros((64, d), np.int64), np.zeros(d, np.int64), np.zeros(d, np.uint16)
    count = int(use.sum())
    if count == 0:
        return codes, scales, offsets
    mask = use[:, None]
    y = np.where(mask, rows, F(0))
    mean = (tree(y, 0) / F(count)).astype(F)
    lo = np.where(mask, rows, F(np.inf)).min(0) + F(0)          # -0 + 0 = 0: which zero a minimum finds is not defined
    hi = np.where(mask, rows, F(-np.inf)).max(0) + F(0)
    mean_m = (mean + F(0)).astype(np.float16)
    for c in range(d):
        w = int(widths[c // run])
        offsets[c] = mean_m[c].view(np.uint16)
        if w == 0 or hi[c] == lo[c]:
            continue
        if w in (4, 8):
            s16 = ((hi[c] - lo[c]) / F(2 ** w - 1)).astype(np.float16)
            if s16 == 0:
                continue
            m16 = lo[c].astype(np.float16)
            code = np.clip(np.rint((y[:, c] - F(m16)) / F(s16)), 0, 2 ** w - 1)
            scales[c], offsets[c] = s16.view(np.uint16), m16.view(np.uint16)
        else:
            s0 = (hi[c] - lo[c]) / F(4)
            code = np.clip(np.floor((y[:, c] - lo[c]) / s0), 0, 3).astype(F)
            code = np.where(use, code, F(0))
            mean_code = tree(code, 0) / F(count)
            dy = np.where(use, y[:, c] - mean[c], F(0))
            dc = np.where(use, code - mean_code, F(0))
            e = int(log8(np.array([tree(dy * dy, 0) / tree(dy * dc, 0)], F))[0])
            if e > 255:
                raise Overflow
            s = log8_value(e)
            scales[c] = e
            offsets[c] = F(mean[c] - s * mean_code + F(0)).astype(np.float16).view(np.uint16)
        codes[:, c] = np.where(use, code, 0).astype(np.int64)
    return codes, scales, offsets


def dequantise_k(codes, scales, offsets, widths, run):
    """-> y' f16 bits [64][d] by row."""
    d = codes.shape[1]
    w = np.repeat(np.asarray(widths), run)[:d]
    as_f16 = scales.astype(np.uint16).view(np.float16).astype(F)
    s = np.where(w == 2, log8_value(np.where(w == 2, scales, 0)), np.where(w == 0, F(0), as_f16)).astype(F)
    m = offsets.view(np.float16).astype(F)
    return (s[None, :] * codes.astype(F) + m[None, :]).astype(F).astype(np.float16).view(np.uint16)


# Upper halves of the levels of the 1- and the 2-bit trellis, as multiples of the row's rms.
LEVELS = {1: np.array([6, 19]) / 16, 2: np.array([3, 10, 17, 30]) / 16}


def trellis_units(codes, b):
    """What codes [rows][d] stand for before the gain: the level of a channel is 4 w + 2 (x ^ x before the last) + last x."""
    x, w = codes & 1, codes >> 1
    last = np.pad(x, ((0, 0), (1, 0)))[:, :-1]
    before = np.pad(x, ((0, 0), (2, 0)))[:, :-2]
    return np.concatenate([-LEVELS[b][::-1], LEVELS[b]]).astype(F)[4 * w + 2 * (x ^ before) + last]


def trellis(z, energy, b):
    """-> stored codes [rows][d] of the path with the least error, and their units. A state is x + 2 * the x before."""
    n, d = z.shape
    rms = np.sqrt(energy / F(d)).astype(F)
    scaled = (LEVELS[b].astype(F)[None, :] * rms[:, None]).astype(F)
    square, double = scaled * scaled, scaled + scaled
    cost = np.full((n, 4), F(1e30), F)
    cost[:, 0] = 0
    came, high = np.zeros((d, n, 4), np.int64), np.zeros((d, n, 4), np.int64)
    for c in range(d):
        p = (double * z[:, c, None]).astype(F)
        metric = np.concatenate([(square + p)[:, ::-1], square - p], 1)
        if b == 2:
            high[c] = metric[:, 4:] < metric[:, :4]
            metric = np.where(high[c] == 1, metric[:, 4:], metric[:, :4])
        new = np.empty_like(cost)
        for state in range(4):
            x, last = state & 1, state >> 1
            zero = cost[:, last] + metric[:, 2 * x + last]
            one = cost[:, last + 2] + metric[:, 2 * (1 - x) + last]
            came[c, :, state] = one < zero
            new[:, state] = np.minimum(zero, one)
        cost = new
    state, rows = cost.argmin(1), np.arange(n)
    codes = np.zeros((n, d), np.int64)
    for c in range(d - 1, -1, -1):
        x, last, before = state & 1, state >> 1, came[c, rows, state]
        codes[:, c] = x + 2 * high[c, rows, 2 * (x ^ before) + last]
        state = last + 2 * before
    return codes, trellis_units(codes, b)


def quantise_v(bits, b, live, pins):
    """-> codes int[64][d] as stored, gains (byte e, or f16 bits for b = 8) int[64], v_exp; b = 0: the mean row."""
    d = bits.shape[1]
    rows, use = to_rows(bits.view(np.float16).astype(F), live, pins)
    z = np.where(use[:, None], rows, F(0))
    if b == 0:
        mean = tree(z, 0) / F(max(int(use.sum()), 1))
        return (mean + F(0)).astype(np.float16).view(np.uint16), None, 0
    half = 2 ** (b - 1)
    energy = tree(z * z, 1)
    used = use & (energy > 0)
    if b <= 2:
        stored, u = trellis(z, energy, b)
    else:
        s0 = np.where(used, F(2) * np.abs(z).max(1) / F(2 ** b), F(1)).astype(F)
        code = np.clip(np.floor(z / s0[:, None]), -half, half - 1).astype(F)
        stored, u = code + half, (code + F(0.5)).astype(F)
    zu, uu = tree(z * u, 1), tree(u * u, 1)
    safe = np.where(used & (zu > 0), zu, F(1)).astype(F)
    g = np.where(used & (zu > 0), np.minimum(energy / safe, F(2) * safe / uu), F(0)).astype(F)
    v_exp = 0
    if used.any():
        mantissa, exponent = np.frexp(g.max())
        v_exp = int(exponent) - (1 if mantissa == 0.5 else 0)
    if b == 8:
        gains = np.ldexp(g, -v_exp).astype(np.float16).view(np.uint16).astype(np.int64)
    else:
        e = np.clip(log2_sixteenths(np.where(used, g, F(1)).astype(F)) - 16 * v_exp + 255, 1, 255)
        gains = np.where(used, e, 0)
    return np.where(used[:, None], stored, 0).astype(np.int64), gains, v_exp


def dequantise_v(codes, gains, b, v_exp):
    """-> z' f16 bits [64][d] by row (b = 0: the mean row at every one)."""
    if b == 0:
        return np.tile(codes, (64, 1))
    if b == 8:
        g = np.ldexp(gains.astype(np.uint16).view(np.float16).astype(F), v_exp)
    else:
        g = log8e_value(gains, v_exp)
    u = trellis_units(codes, b) if b <= 2 else (codes - 2 ** (b - 1)).astype(F) + F(0.5)
    return (g[:, None] * u).astype(F).astype(np.float16).view(np.uint16)
