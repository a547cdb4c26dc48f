"""The relative error that the first-order model multiplies, worked by hand."""

import numpy as np

import theory


def test_error_is_over_what_varies_inside_a_tile() -> None:
    x = np.zeros((128, 2))
    x[4:64, 0] = 5.0 + np.tile([1.0, -1.0], 30)  # a mean of 5 that is not counted
    x[64:, 1] = np.tile([2.0, -2.0], 32)
    served = x.copy()
    served[:4] += 100.0  # pinned tokens are raw: what stands there does not count
    served[4:64, 0] -= 0.5
    # 60 x .25 of error over 60 x 1 + 64 x 4 of variance.
    assert np.isclose(theory.relative_error(x, served), 15 / 316)


def test_forward_matrices_are_read_from_their_places() -> None:
    d, heads = 2, 2
    body = b"".join(
        np.array([1, 2, *range(10 * h, 10 * h + 4)], np.float16).tobytes() + bytes(20)
        for h in range(heads)
    )
    found = theory.forward_matrices(bytes(64) + body, heads, d)
    np.testing.assert_array_equal(found[1][0], [1, 2])
    np.testing.assert_array_equal(found[1][1], [[10, 11], [12, 13]])
