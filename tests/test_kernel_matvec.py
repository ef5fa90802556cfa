"""kernel_matvec: every kernel against its definition, shapes, shifts, bits, and refusals."""

import numpy as np
import pytest
import subspan
from kernel_oracle import KERNELS, RADIAL, error, matrix
from subspan import kernel_matvec
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

DTYPES = (np.float32, np.float64)
OPTIONS = {
    "rational_quadratic": {"alpha": 0.7},
    "polynomial": {"degree": 4, "offset": 0.5},
}
# Around the tiles of all levels, a run of 128 and a segment of 1024 points.
SIZES = ((1, 1), (3, 7), (8, 129), (31, 128), (33, 127), (97, 1025), (260, 1024), (2, 2100))
GATE = 8  # ulp of sums of |K v|: what rounded scores and values make of exponents up to a few


def points(rng, n, m, d, e, dtype):
    """Points whose distances and products are of the order of one."""
    shapes = ((n, d), (m, d), (m, e))
    x, y, v = (rng.standard_normal(shape) for shape in shapes)
    scale = max(d, 1) ** -0.5
    return (x * scale).astype(dtype), (y * scale).astype(dtype), v.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_products_are_the_definitions(kernel, dtype, rng):
    options = OPTIONS.get(kernel, {})
    for (n, m), d, e in zip(
        SIZES, (1, 3, 16, 17, 2, 40, 5, 64), (1, 2, 4, 9, 1, 3, 16, 1), strict=True
    ):
        x, y, v = points(rng, n, m, d, e, dtype)
        out = kernel_matvec(x, y, v, kernel=kernel, bandwidth=0.8, **options)
        assert out.dtype == dtype
        worst = error(out, x, y, v, kernel, bandwidth=0.8, **options)
        assert worst <= GATE * np.finfo(dtype).eps


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_width_of_the_points(kernel, rng):
    """Depths of both forms of distances, right-hand sides of all paths."""
    options = OPTIONS.get(kernel, {})
    for d in (0, 1, 2, 4, 7, 8, 15, 16, 17, 24, 33):
        x, y, v = points(rng, 37, 50, d, d % 11 + 1, np.float32)
        widths = rng.uniform(0.5, 2, d)
        out = kernel_matvec(x, y, v, kernel=kernel, bandwidth=widths, **options)
        worst = error(out, x, y, v, kernel, bandwidth=widths, **options)
        assert worst <= GATE * np.finfo(np.float32).eps


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("d", [1, 2, 3, 5, 20])
def test_right_hand_sides_do_not_know_each_other(kernel, d, rng):
    for dtype in DTYPES:
        x, y, v = points(rng, 70, 300, d, 10, dtype)
        whole = kernel_matvec(x, y, v, kernel=kernel)
        for e in (1, 2, 3, 4, 9):
            part = kernel_matvec(x, y, v[:, :e], kernel=kernel)
            np.testing.assert_array_equal(part, whole[:, :e])
        np.testing.assert_array_equal(kernel_matvec(x, y, v[:, 0], kernel=kernel), whole[:, 0])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("d", [3, 20])
def test_bits_do_not_depend_on_threads_rows_and_batch(kernel, d, rng, threads):
    x, y, v = points(rng, 300, 2500, d, 2, np.float32)
    threads(1)
    whole = kernel_matvec(x, y, v, kernel=kernel)
    threads(3)
    np.testing.assert_array_equal(kernel_matvec(x, y, v, kernel=kernel), whole)
    np.testing.assert_array_equal(kernel_matvec(x[5:9], y, v, kernel=kernel), whole[5:9])
    np.testing.assert_array_equal(kernel_matvec(x[::-3], y, v, kernel=kernel), whole[::-3])
    batch = kernel_matvec(x.reshape(10, 30, d), y, v[None], kernel=kernel)
    np.testing.assert_array_equal(batch.reshape(300, 2), whole)


@pytest.mark.parametrize("kernel", RADIAL)
@pytest.mark.parametrize("d", [2, 16, 17, 50])
def test_a_set_and_itself(kernel, d, rng):
    """None is x; and equal points have distance 0, so the diagonal is exact."""
    x = rng.standard_normal((90, d)).astype(np.float32) + 3
    np.testing.assert_array_equal(
        kernel_matvec(x, None, x, kernel=kernel), kernel_matvec(x, x.copy(), x, kernel=kernel)
    )
    dense = kernel_matvec(x, None, np.eye(90, dtype=np.float32), kernel=kernel)
    np.testing.assert_array_equal(np.diag(dense), np.float32(0 if "distance" in kernel else 1))
    np.testing.assert_allclose(dense, dense.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", [*RADIAL, "softmax"])
@pytest.mark.parametrize("d", [3, 64])
def test_a_common_offset_costs_nothing(kernel, d, rng):
    """Points on a grid that the offset does not round, so that only the sums could lose."""
    x, y = (np.round(rng.standard_normal((200, d)) * 4096) / 4096 for _ in range(2))
    v = rng.standard_normal(200).astype(np.float32)
    # float32 has 2^-17 at 100, so nothing is rounded there
    moved = [(a + (100 if kernel in RADIAL or a is y else 0)).astype(np.float32) for a in (x, y)]
    if kernel == "softmax":  # a product of x with what all of y have is the same for all of them
        x = x / d
        moved[0] = x.astype(np.float32)
    options = {"bandwidth": d**0.5} if kernel in RADIAL else {}
    out = kernel_matvec(*moved, v, kernel=kernel, **options)
    assert error(out, *moved, v, kernel, **options) <= 2e-6


def test_near_points_far_from_the_mean_keep_their_distances(rng):
    """Clusters whose expanded squares would have cancelled: errors are those of rounded points."""
    d, scale = 40, 1e-3
    centres = rng.standard_normal((6, d))
    x = (centres.repeat(20, 0) + scale * rng.standard_normal((120, d))).astype(np.float32)
    v = np.eye(120, dtype=np.float32)
    for kernel in ("distance", "laplacian", "gaussian"):
        out = kernel_matvec(x, None, v, kernel=kernel, bandwidth=scale * d**0.5)
        wanted = matrix(x, x, kernel, bandwidth=scale * d**0.5)
        if kernel == "distance":
            np.testing.assert_allclose(out, wanted, rtol=1e-4)
        else:
            np.testing.assert_allclose(out, wanted, atol=1e-4)


def test_wide_and_narrow_bandwidths(rng):
    x, y, v = points(rng, 40, 60, 4, 2, np.float64)
    total = np.broadcast_to(v.sum(0), (40, 2))
    for kernel in ("gaussian", "laplacian", "matern32", "matern52", "cauchy", "exp_dot"):
        out = kernel_matvec(x, y, v, kernel=kernel, bandwidth=np.inf)
        np.testing.assert_allclose(out, total, atol=1e-13)
    for dtype in DTYPES:
        for d in (4, 30):
            x = rng.standard_normal((50, d)).astype(dtype)
            out = kernel_matvec(x, None, x, bandwidth=1e-4)
            np.testing.assert_array_equal(out, x)  # the identity: all else underflows to 0
    left_out = kernel_matvec(x[:, :3], None, x, bandwidth=np.array([1.0, np.inf, 2.0]))
    kept = kernel_matvec(x[:, [0, 2]], None, x, bandwidth=np.array([1.0, 2.0]))
    np.testing.assert_array_equal(left_out, kept)


def test_softmax_is_attention(rng):
    """Weights sum to one, great scores do no harm, and one that towers takes all."""
    x, y, v = points(rng, 30, 1500, 8, 3, np.float32)
    np.testing.assert_allclose(
        kernel_matvec(x, y, np.ones(1500, np.float32), kernel="softmax"), 1, rtol=1e-6
    )
    out = kernel_matvec(x * 1e4, y, v, kernel="softmax")
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out, v[np.argmax(x @ y.T, axis=1)], atol=1e-2)
    assert error(out, x * np.float32(1e4), y, v, "softmax") < 2e-3  # scores of 1e4 have few digits


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_to_sum(kernel):
    x, v = np.ones((4, 2)), np.ones((3, 2))
    assert kernel_matvec(x[:0], v, v, kernel=kernel).shape == (0, 2)
    assert kernel_matvec(x, v, v[:, :0], kernel=kernel).shape == (4, 0)
    assert kernel_matvec(np.ones((0, 4, 2)), v, v[None], kernel=kernel).shape == (0, 4, 2)
    if kernel == "softmax":
        with pytest.raises(InvalidArgumentError, match=r"y must have a row for softmax"):
            kernel_matvec(x, v[:0], v[:0], kernel=kernel)
    else:
        np.testing.assert_array_equal(kernel_matvec(x, v[:0], v[:0], kernel=kernel), 0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("d", [3, 20])
def test_not_a_number_stays_in_its_row(kernel, d, rng):
    x, y, v = points(rng, 50, 60, d, 2, np.float32)
    good = kernel_matvec(x, y, v, kernel=kernel)
    payload = np.array([0x7FC00123], np.uint32).view(np.float32)[0]
    for value in (np.nan, np.inf, -np.inf, payload):
        bad = x.copy()
        bad[7, 1] = value
        with np.errstate(invalid="ignore"):
            out = kernel_matvec(bad, y, v, kernel=kernel)
        assert not np.isfinite(out[7]).any()
        np.testing.assert_array_equal(np.delete(out, 7, 0), np.delete(good, 7, 0))
        bad = y.copy()
        bad[3, 0] = value
        assert not np.isfinite(kernel_matvec(x, bad, v, kernel=kernel)).any()


def test_broadcasting_and_strides(rng):
    x = rng.standard_normal((2, 1, 9, 3))
    y, v = rng.standard_normal((5, 3, 7)).swapaxes(1, 2), rng.standard_normal((4, 7, 5)).T[..., ::2]
    k = matrix(x, y, "laplacian")
    out = kernel_matvec(x, y, v[None], kernel="laplacian")
    assert out.shape == (2, 5, 9, 2)
    np.testing.assert_allclose(out, k @ v, rtol=1e-12)
    shared = kernel_matvec(x, y, v[0, :, 0], kernel="laplacian")
    np.testing.assert_allclose(shared, k @ v[0, :, 0], rtol=1e-12)
    wanted = np.einsum("bij,bj->bi", matrix(x[0, 0], y, "gaussian"), v[..., 0])
    np.testing.assert_allclose(kernel_matvec(x[0, 0], y, v[..., 0]), wanted, rtol=1e-12)


def test_arrays_of_torch(rng):
    torch = pytest.importorskip("torch")
    x, y, v = points(rng, 20, 30, 3, 2, np.float32)
    wanted = kernel_matvec(x, y, v)
    for widths in (1.0, torch.ones(3), torch.tensor(1.0), np.ones(3)):
        out = kernel_matvec(*map(torch.from_numpy, (x, y, v)), bandwidth=widths)
        assert isinstance(out, torch.Tensor)
        np.testing.assert_array_equal(out.numpy(), wanted)


def test_memory_is_linear(run_python):
    code = (
        "import resource, numpy as np, subspan\n"
        "x = np.random.default_rng(0).standard_normal((40_000, 2), np.float32)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "subspan.kernel_matvec(x[:4000], x, x)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    kilobytes = int(run_python(code).stdout)
    assert kilobytes < 60_000  # the matrix would have 640 MB


@pytest.mark.parametrize(
    ("change", "raised", "text"),
    [
        ({"kernel": "rbf"}, InvalidArgumentError, r"kernel must be one of 'gaussian', .*'sqdist"),
        ({"bandwidth": 0.0}, InvalidArgumentError, r"bandwidth must be > 0, got 0\.0"),
        ({"bandwidth": -1}, InvalidArgumentError, r"bandwidth must be > 0, got -1\.0"),
        ({"bandwidth": np.nan}, InvalidArgumentError, r"bandwidth must be"),
        (
            {"bandwidth": np.array([1.0, -2.0])},
            InvalidArgumentError,
            r"bandwidth must be > 0, got -2\.0",
        ),
        (
            {"bandwidth": np.ones(3)},
            InvalidArgumentError,
            r"bandwidth .*shape \(2,\), .*got \(3,\)",
        ),
        ({"bandwidth": "wide"}, DtypeError, r"bandwidth must be a number"),
        ({"alpha": 0.0}, InvalidArgumentError, r"alpha must be > 0, got 0"),
        ({"alpha": np.inf}, InvalidArgumentError, r"alpha must be in"),
        ({"degree": 0}, InvalidArgumentError, r"degree must be in 1\.\."),
        ({"degree": 1.5}, DtypeError, r"degree must be an integer"),
        ({"offset": np.nan}, InvalidArgumentError, r"offset must be in"),
        ({"cutoff": -0.1}, InvalidArgumentError, r"cutoff must be in"),
        ({"cutoff": 1.0}, InvalidArgumentError, r"cutoff must be in \[0, 1\)"),
        ({"cutoff": 0.1, "kernel": "distance"}, InvalidArgumentError, r"cutoff .* for 'distance'"),
        ({"cutoff": 0.1, "kernel": "softmax"}, InvalidArgumentError, r"cutoff .* for 'softmax'"),
        ({"x": np.ones(4)}, InvalidArgumentError, r"x must have 2 or more axes"),
        ({"x": np.ones((4, 2), np.int64)}, DtypeError, r"x must be float32 or float64, got int64"),
        ({"x": [[1.0, 2.0]]}, DtypeError, r"x must be an array"),
        ({"y": np.ones((3, 2), np.float32)}, DtypeError, r"y must be float64 like x"),
        ({"y": np.ones((3, 5))}, InvalidArgumentError, r"y must have 2 columns like x, got 5"),
        (
            {"y": np.ones((5, 3, 2)), "x": np.ones((4, 2, 2))},
            InvalidArgumentError,
            r".*leading axes",
        ),
        ({"v": np.ones(4)}, InvalidArgumentError, r"v must be \(\.\.\., m\) with m = 3"),
        ({"v": np.ones((4, 2))}, InvalidArgumentError, r"v must be \(\.\.\., m, e\) with m = 3"),
        ({"v": np.float64(1)}, DtypeError, r"v must be an array"),
        ({"y": None}, InvalidArgumentError, r"v must be .*m = 4, the rows of x"),
    ],
)
def test_refusals(change, raised, text):
    arguments = {"x": np.ones((4, 2)), "y": np.ones((3, 2)), "v": np.ones(3), **change}
    with pytest.raises(raised, match=r"^\[kernel_matvec\] " + text) as caught:
        kernel_matvec(**arguments)
    assert "got" in str(caught.value)


@pytest.mark.parametrize(
    ("kernel", "factor", "dtype"),
    [("exp_dot", 60, np.float32), ("exp_dot", 900, np.float64), ("polynomial", 1e14, np.float32)],
)
def test_overflow_is_refused(kernel, factor, dtype):
    x = np.array([[0.0, 0.0], [1.0, 1.0]], dtype)
    with pytest.raises(InvalidArgumentError, match=r"got an overflow of float.* in row 1"):
        kernel_matvec(x, (x * dtype(factor)), np.ones(2, dtype), kernel=kernel)
    assert np.isfinite(kernel_matvec(x, x * dtype(factor), x, kernel="softmax")).all()


def test_a_masked_array_and_other_libraries_are_refused():
    x = np.ones((2, 2))
    with pytest.raises(DtypeError, match="no mask"):
        kernel_matvec(np.ma.masked_array(x), x, x)
    torch = pytest.importorskip("torch")
    with pytest.raises(DtypeError, match="of the library"):
        kernel_matvec(x, torch.ones(2, 2), x)
    with pytest.raises(UnsupportedError, match="dense tensor"):
        kernel_matvec(torch.ones(2, 2).to_sparse(), None, torch.ones(2))
    with pytest.raises(DtypeError, match="bandwidth must require no gradient"):
        kernel_matvec(x, x, x, bandwidth=torch.ones(2, requires_grad=True))


@pytest.mark.parametrize("level", ["baseline", "v3", "v4"])
def test_every_level_is_right(level, run_python):
    order = ("baseline", "v3", "v4")
    if order.index(level) > order.index(subspan.cpu_level()):
        pytest.skip("needs a CPU with this level")
    code = (
        "import numpy as np, subspan\n"
        "from kernel_oracle import KERNELS, error\n"
        f"assert subspan.cpu_level() == '{level}'\n"
        "rng = np.random.default_rng(0)\n"
        "for dtype in (np.float32, np.float64):\n"
        "    for n, m, d, e in ((70, 200, 5, 1), (33, 140, 20, 9)):\n"
        "        x, y = (rng.standard_normal((k, d)).astype(dtype) / d**0.5 for k in (n, m))\n"
        "        v = rng.standard_normal((m, e)).astype(dtype)\n"
        "        for kernel in KERNELS:\n"
        "            out = subspan.kernel_matvec(x, y, v, kernel=kernel)\n"
        "            assert error(out, x, y, v, kernel) < 10 * np.finfo(dtype).eps, (kernel, d)\n"
        "    for d in (3, 12):\n"
        "        x = rng.standard_normal((530, d)).astype(dtype)\n"
        "        v = rng.uniform(size=(530, 1)).astype(dtype)\n"
        "        for kernel in ('gaussian', 'rational_quadratic', 'matern52'):\n"
        "            out = subspan.kernel_matvec(x, None, v, kernel=kernel, bandwidth=d**0.5)\n"
        "            how = {'kernel': kernel, 'bandwidth': d**0.5}\n"
        "            assert error(out, x, x, v, **how) < 10 * np.finfo(dtype).eps, (kernel, d)\n"
        "            logs = subspan.kernel_logsumexp(x, x.copy(), v, **how)\n"
        "            assert abs(np.exp(logs) / out - 1).max() < 50 * np.finfo(dtype).eps, kernel\n"
    )
    from pathlib import Path

    here = str(Path(__file__).parent)
    run_python(f"import sys; sys.path.insert(0, {here!r})\n" + code, SUBSPAN_CPU_LEVEL=level)
