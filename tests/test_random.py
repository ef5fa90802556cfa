"""Philox and the normal numbers made of it: known answers, moments, the same for any threads."""

import numpy as np
import pytest
from subspan import _core
from subspan.errors import DtypeError, InvalidArgumentError

ONES = 0xFFFFFFFF


def philox_in_python(counter, key):
    """Philox4x32-10 from its definition (Salmon, Moraes, Dror, Shaw 2011, section 3.2)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & ONES, (a >> 32) ^ c[3] ^ k[1], a & ONES]
        k = [(k[0] + 0x9E3779B9) & ONES, (k[1] + 0xBB67AE85) & ONES]
    return c


def normal(n, seed, stream, dtype=np.float64):
    out = np.empty(n, dtype)
    _core.fill_normal(out, seed, stream)
    return out


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ONES] * 4, [ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers_of_random123(counter, key, wanted):
    assert list(_core.philox(counter, key)) == wanted
    assert philox_in_python(counter, key) == wanted


def test_random_blocks_against_python(rng):
    for _ in range(50):
        words = [int(w) for w in rng.integers(0, 2**32, 6)]
        assert list(_core.philox(words[:4], words[4:])) == philox_in_python(words[:4], words[4:])


def test_normals_are_box_and_muller_of_the_words():
    seed, stream = 0x0123456789ABCDEF, 0xFEDCBA9876543210
    got = normal(20, seed, stream)
    for i in range(20):
        w = philox_in_python([i, 0, stream & ONES, stream >> 32], [seed & ONES, seed >> 32])
        u = (((w[0] << 32 | w[1]) >> 11) + 1) * 2.0**-53
        v = ((w[2] << 32 | w[3]) >> 11) * 2.0**-53
        wanted = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)
        np.testing.assert_allclose(got[i], wanted, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(normal(20, seed, stream, np.float32), got.astype(np.float32))


def test_distribution():
    n = 400_000
    z = normal(n, 1, 2)
    for power, (mean, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        assert abs(np.mean(z**power) - mean) < 5 * np.sqrt(variance / n)
    counts, edges = np.histogram(z, np.linspace(-3, 3, 25))
    from math import erf

    share = np.diff([0.5 * (1 + erf(e / np.sqrt(2))) for e in edges])
    statistic = np.sum((counts - n * share) ** 2 / (n * share))
    assert statistic < 60  # chi-square with 24 degrees of freedom: 1e-4 at 58
    other = normal(n, 1, 3)
    for a, b in ((z[:-1], z[1:]), (z, other)):
        assert abs(np.mean(a * b)) < 5 / np.sqrt(n)


def test_bits_do_not_depend_on_threads_or_length(threads):
    whole = normal(20011, 5, 0)
    for n in (1, 2, 3, 5):
        threads(n)
        np.testing.assert_array_equal(normal(20011, 5, 0), whole)
    np.testing.assert_array_equal(normal(77, 5, 0), whole[:77])
    strided = np.zeros(60)
    _core.fill_normal(strided[::-3], 5, 0)
    np.testing.assert_array_equal(strided[::-3], whole[:20])
    assert np.count_nonzero(strided) == 20
    assert not np.array_equal(normal(77, 6, 0), whole[:77])
    assert not np.array_equal(normal(77, 5, 1), whole[:77])
    assert normal(0, 5, 0).size == 0


def test_refusals():
    for out, kind, text in (
        (np.zeros(3, np.int64), DtypeError, "out must be float32 or float64, got int64"),
        (np.zeros((2, 2)), InvalidArgumentError, "out must have 1 axes, got 2"),
        ([0.0], DtypeError, "out must be an array"),
    ):
        with pytest.raises(kind, match=rf"\[fill_normal\] {text}"):
            _core.fill_normal(out, 0, 0)
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    with pytest.raises(InvalidArgumentError, match="must be writable"):
        _core.fill_normal(frozen, 0, 0)
