"""Deterministic inputs of the golden tests: integers only, so that every language makes the same bytes.

A value is an integer of at most 11 bits times a power of two that is at least 2^-24: exact in f16.
golden_inputs.h is the same in C++; the hash of every input stands in goldens.txt.
"""
import numpy as np

MASK = (1 << 64) - 1
NAMES = ["decay", "outlier", "constant", "zero_rows", "subnormal", "ties", "peaky", "any"]


def splitmix64(seed, count):
    """The first `count` outputs of splitmix64 as uint64."""
    with np.errstate(over="ignore"):
        i = np.arange(1, count + 1, dtype=np.uint64)
        z = np.uint64(seed & MASK) + i * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def make(name, seed, d):
    """f16 bits [64][d] as uint16."""
    r = splitmix64(seed * 1000003 + NAMES.index(name) * 7919 + d, 64 * d).reshape(64, d)
    field = lambda shift, bits: ((r >> np.uint64(shift)) & np.uint64((1 << bits) - 1)).astype(np.int64)
    t = np.arange(64, dtype=np.int64)[:, None]
    c = np.arange(d, dtype=np.int64)[None, :]
    bell = field(0, 10) + field(10, 10) + field(20, 10) + field(30, 10) - 2046  # |bell| < 2048
    if name == "decay":        # standard deviations that fall by 2^-10 from the first to the last channel
        return f16(bell, -10 - 10 * c // d + 0 * t)
    if name == "outlier":      # one value in 64 is 32 times larger, channel means differ
        return f16(bell + 0 * t, np.where(field(40, 6) == 0, -5, -10))
    if name == "constant":     # two channels in three are constant (0, -0, 1, ...), or constant but for one token
        i = np.where(c % 3 == 0, bell, (c * 37) % 2048)
        i = np.where((c % 3 == 2) & (t == 17), i + 1 - (i == 2047) * 2, i)
        return f16(i, -10 + 0 * i) | np.where((c % 12 == 7) & (c % 3 == 1), 0x8000, 0).astype(np.uint16)
    if name == "zero_rows":    # every third row is 0 (or -0); values of one binade elsewhere
        i = np.where(t % 3 == 0, 0, 1024 + field(0, 10))
        return f16(i, -10 + 0 * i) | (field(50, 1) << 15).astype(np.uint16)
    if name == "subnormal":    # multiples of the smallest f16
        return f16(field(0, 8) - 128, -24 + 0 * c)
    if name == "ties":         # halves of the steps of widths 8 and 4: round to even matters
        top = np.where(c % 2 == 0, 30, 510)
        i = field(0, 32) % (top + 1)
        i = np.where(t == 5, 0, np.where(t == 9, top, i))
        return f16(i, -1 + 0 * i)
    if name == "peaky":        # rows of nearly only one value
        i = np.where(field(40, 6) == 0, bell, field(0, 3) - 4)
        return f16(i, -8 + 0 * i)
    # "any": every f16 bit pattern below 2^13, so that nothing decodes to infinity
    bits = field(0, 16)
    return np.where((bits & 0x7000) == 0x7000, bits ^ 0x4000, bits).astype(np.uint16)


def f16(integer, exponent):
    value = np.ldexp(integer.astype(np.float64), exponent)
    half = value.astype(np.float16)
    assert np.array_equal(half.astype(np.float64), value)
    return half.view(np.uint16)
