"""Patterns of kernel_matvec: the bits of the product without the other pairs, and every refusal."""

import numpy as np
import pytest
from kernel_oracle import KERNELS, matrix
from subspan import kernel_logsumexp, kernel_matvec
from subspan.errors import DtypeError, InvalidArgumentError


def pattern(rng, n, m, rows, columns, kept=0.5):
    """Random bounds and pairs of tiles; the first tile of rows meets nothing."""

    def bounds(count, parts):
        inner = rng.choice(np.arange(1, count), parts - 1, replace=False)
        return np.concatenate([[0], np.sort(inner), [count]])

    met = rng.uniform(size=(rows, columns)) < kept
    met[0] = False
    offsets = np.concatenate([[0], np.cumsum(met.sum(1))])
    return (bounds(n, rows), bounds(m, columns), offsets, np.nonzero(met)[1]), met


def mask_of(ranges, met):
    return np.repeat(np.repeat(met, np.diff(ranges[0]), 0), np.diff(ranges[1]), 1)


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "softmax"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_bits_are_those_of_a_product_with_zeros(kernel, dtype, rng):
    for n, m, d, e in ((70, 300, 3, 1), (300, 1500, 2, 5), (40, 260, 20, 1)):
        x, y = (rng.standard_normal((k, d)).astype(dtype) / d**0.5 for k in (n, m))
        v = rng.standard_normal((m, e)).astype(dtype)
        ranges, met = pattern(rng, n, m, 5, 7)
        out = kernel_matvec(x, y, v, kernel=kernel, ranges=ranges)
        for tile in range(5):
            rows = slice(ranges[0][tile], ranges[0][tile + 1])
            kept = np.repeat(met[tile], np.diff(ranges[1]))
            if kernel == "linear":  # which is a product of its own where all pairs count
                wanted = matrix(x[rows], y[kept], kernel) @ v[kept].astype(np.float64)
                np.testing.assert_allclose(out[rows], wanted, atol=1e3 * np.finfo(dtype).eps)
                continue
            wanted = kernel_matvec(x[rows], y, v * kept[:, None].astype(dtype), kernel=kernel)
            np.testing.assert_array_equal(out[rows], wanted)


@pytest.mark.parametrize("kernel", ["softmax", "gaussian"])
def test_a_row_that_meets_nothing_is_zero(kernel, rng):
    x, y, v = (rng.standard_normal((k, 4)) for k in (50, 90, 90))
    ranges, met = pattern(rng, 50, 90, 4, 3, kept=0.7)
    mask = mask_of(ranges, met)
    out = kernel_matvec(x, y, v, kernel=kernel, ranges=ranges)
    k = matrix(x, y, "exp_dot" if kernel == "softmax" else kernel) * mask
    sums = k.sum(1, keepdims=True) if kernel == "softmax" else 1
    with np.errstate(invalid="ignore"):
        wanted = np.where(mask.any(1, keepdims=True), k @ v / sums, 0)
    np.testing.assert_allclose(out, wanted, rtol=1e-11, atol=1e-13)
    assert (out[: ranges[0][1]] == 0).all()


def test_all_tiles_are_the_whole_product(rng):
    x, y, v = (rng.standard_normal((k, 3)) for k in (300, 700, 700))
    whole = ([0, 300], [0, 128, 700], [0, 2], [0, 1])
    np.testing.assert_array_equal(kernel_matvec(x, y, v, ranges=whole), kernel_matvec(x, y, v))
    itself = ([0, 100, 300], [0, 300], [0, 1, 2], [0, 0])
    np.testing.assert_array_equal(
        kernel_matvec(x, None, ranges=itself), kernel_matvec(x, x.copy(), np.ones(300))
    )


def test_points_outside_do_not_count_whatever_they_are(rng):
    x, y = rng.standard_normal((40, 3)), rng.standard_normal((60, 3))
    y[31:] = np.nan
    ranges = ([0, 40], [0, 31, 60], [0, 1], [0])
    np.testing.assert_allclose(
        kernel_matvec(x, y, ranges=ranges), matrix(x, y[:31], "gaussian").sum(1)
    )


def test_bits_do_not_depend_on_threads(rng, threads):
    x, v = rng.standard_normal((2000, 2)), rng.standard_normal((2000, 2))
    ranges, _ = pattern(rng, 2000, 2000, 9, 11)
    threads(1)
    out = kernel_matvec(x, None, v, kernel="laplacian", ranges=ranges)
    threads(3)
    np.testing.assert_array_equal(kernel_matvec(x, None, v, kernel="laplacian", ranges=ranges), out)


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "linear", "softmax", "exp_dot"])
def test_gradients_are_those_of_the_masked_matrix(kernel, rng):
    torch = pytest.importorskip("torch")
    ranges, met = pattern(rng, 30, 50, 4, 5, kept=0.6)
    mask = torch.from_numpy(mask_of(ranges, met))
    tensors = [
        torch.from_numpy(rng.standard_normal(shape)).requires_grad_()
        for shape in ((30, 3), (50, 3), (50, 2))
    ]
    width = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    weight = torch.from_numpy(rng.standard_normal((30, 2)))
    x, y, v = tensors
    ours = kernel_matvec(x, y, v, kernel=kernel, bandwidth=width, ranges=ranges)
    p, square = x @ y.mT / width, ((x[:, None] - y[None]) / width).square().sum(-1)
    k = {
        "gaussian": (-square / 2).exp,
        "laplacian": (-square.sqrt()).exp,
        "linear": lambda: p,
        "exp_dot": p.exp,
        "softmax": lambda: p.exp() / (p.exp() * mask).sum(1, keepdim=True).clamp(min=1e-300),
    }[kernel]()
    dense = (k * mask) @ v
    torch.testing.assert_close(ours, dense)
    for got, wanted in zip(
        torch.autograd.grad((ours * weight).sum(), (*tensors, width)),
        torch.autograd.grad((dense * weight).sum(), (*tensors, width)),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9)


GOOD = ([0, 4], [0, 3], [0, 1], [0])


@pytest.mark.parametrize(
    ("ranges", "raised", "text"),
    [
        (3, DtypeError, r"ranges must be the four arrays .*, got 3"),
        (GOOD[:3], DtypeError, r"ranges must be the four arrays .*, got 3 of them"),
        (
            ([0.5, 4], *GOOD[1:]),
            DtypeError,
            r"ranges.rows must be integers with one axis, got float",
        ),
        ((*GOOD[:3], [[0]]), DtypeError, r"ranges.tiles must be integers .* shape \(1, 1\)"),
        (([0, 3], *GOOD[1:]), InvalidArgumentError, r"ranges.rows must begin .* end with 4, got"),
        (([1, 4], *GOOD[1:]), InvalidArgumentError, r"ranges.rows must begin with 0"),
        (([], *GOOD[1:]), InvalidArgumentError, r"ranges.rows must begin .* got 0 elements"),
        (
            ([0, 2, 2, 4], *GOOD[1:]),
            InvalidArgumentError,
            r"ranges.rows must ascend, got 2 after 2",
        ),
        ((GOOD[0], [0, 9], *GOOD[2:]), InvalidArgumentError, r"ranges.columns must .* end with 3"),
        ((*GOOD[:2], [0, 2], [0]), InvalidArgumentError, r"ranges.offsets must .* end with 1"),
        ((*GOOD[:2], [0, 0, 1], [0]), InvalidArgumentError, r"ranges.offsets must have 2 elements"),
        ((*GOOD[:3], [1]), InvalidArgumentError, r"ranges.tiles must be in \[0, 1\), got 1"),
        ((*GOOD[:3], [-1]), InvalidArgumentError, r"ranges.tiles must be in \[0, 1\), got -1"),
        ((*GOOD[:2], [0, 2], [0, 0]), InvalidArgumentError, r"ranges.tiles must ascend .* got 0"),
    ],
)
@pytest.mark.parametrize("function", [kernel_matvec, kernel_logsumexp])
def test_refusals(function, ranges, raised, text):
    with pytest.raises(raised, match=rf"^\[{function.__name__}\] " + text) as caught:
        function(np.ones((4, 2)), np.ones((3, 2)), np.ones(3), ranges=ranges)
    assert "got" in str(caught.value)


def test_a_cutoff_and_ranges_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"cutoff must be 0 with ranges, got 0\.1"):
        kernel_matvec(np.ones((4, 2)), np.ones((3, 2)), ranges=GOOD, cutoff=0.1)
