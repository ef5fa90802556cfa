"""joint_kernel_sums: against dense matrices, on lines, powers, bits, and refusals."""

import numpy as np
import pytest
import subspan
from kernel_oracle import RADIAL, matrix
from subspan import joint_kernel_sums
from subspan.errors import DtypeError, InvalidArgumentError

DTYPES = (np.float32, np.float64)
# Around the tiles of all levels, a run of 128 and a segment of 1024 points.
SIZES = ((1, 1), (3, 7), (31, 128), (33, 129), (97, 1025), (5, 2100))


def dense(x, z, y, w, kernels, bandwidths=(1.0, 1.0), alphas=(1.0, 1.0)):
    """Return both matrices, in float64."""
    sides = ((x, y), (z, w))
    out = []
    for (a, b), kernel, width, alpha in zip(sides, kernels, bandwidths, alphas, strict=True):
        k = matrix(a, b, kernel, bandwidth=width, alpha=alpha)
        out.append(k**alpha if kernel == "distance" else k)
    return out


def check(found, k, ls, eps):
    first = k.sum(-1)
    np.testing.assert_allclose(found.first, first, atol=eps * np.abs(first).max(), rtol=eps)
    for name, wanted in (("second", ls.sum(-1)), ("joint", (k * ls).sum(-1))):
        got = getattr(found, name)
        assert got.dtype == np.float64
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, atol=eps * np.abs(wanted).max(), rtol=eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", RADIAL)
def test_sums_are_those_of_the_matrices(kernel, dtype, rng):
    eps = 64 * np.finfo(dtype).eps
    kernels = (kernel, "distance" if kernel == "gaussian" else "gaussian")
    for (n, m), d, q in zip(SIZES, (1, 3, 9, 17, 2, 40), (1, 2, 12, 1, 3, 5), strict=True):
        x, z = rng.standard_normal((n, d)).astype(dtype), rng.standard_normal((n, q)).astype(dtype)
        y, w = rng.standard_normal((m, d)).astype(dtype), rng.standard_normal((m, q)).astype(dtype)
        how = {"kernels": kernels, "bandwidths": (0.8 * d**0.5, q**0.5), "alphas": (0.7, 1.0)}
        check(joint_kernel_sums(x, z, y, w, **how), *dense(x, z, y, w, **how), eps)
        own = joint_kernel_sums(x, z, **how)
        check(own, *dense(x, z, x, z, **how), eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_second_kernels_share_the_first(dtype, rng):
    x = rng.standard_normal((90, 5)).astype(dtype)
    z = rng.standard_normal((2, 3, 90, 2)).astype(dtype)
    found = joint_kernel_sums(x, z)
    assert found.joint.shape == found.second.shape == (2, 3, 90)
    for at in np.ndindex(2, 3):
        one = joint_kernel_sums(x, z[at])
        np.testing.assert_array_equal(one.first, found.first)
        np.testing.assert_array_equal(one.joint, found.joint[at])
        np.testing.assert_array_equal(one.second, found.second[at])
    check(found, matrix(x, x, "distance"), matrix(z, z, "distance"), 64 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [0.01, 0.5, 1.0, 1.3, 2.0, 3.9])
def test_powers_of_distances(alpha, dtype, rng):
    """Far and near, and equal points."""
    x = rng.standard_normal((200, 3)) * 10.0 ** rng.uniform(-1, 1, (200, 1))
    x[50:60] = x[40:50]
    x = x.astype(dtype)
    y = x[::7].copy()
    found = joint_kernel_sums(x, x, y, y, alphas=(alpha, 1.0))
    wanted = matrix(x, y, "distance") ** alpha
    # An exponent of s is known to s ulp.
    eps = 64 * np.finfo(dtype).eps
    np.testing.assert_allclose(found.first, wanted.sum(1), rtol=eps)
    one = joint_kernel_sums(x[:1], x[:1], x[:1].copy(), x[:1].copy(), alphas=(alpha, alpha))
    assert one.first == one.joint == 0


@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "heavy", "offset"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lines_by_sorting(kind, dtype, rng):
    """Single columns, plain distances: ties on either side, outliers, a common offset."""
    for n in (1, 2, 3, 5, 64, 333):
        x, z = rng.standard_normal((2, n, 1))
        if kind == "ties":
            x, z = np.round(2 * x), np.round(2 * z)
        elif kind == "equal":
            x = np.full((n, 1), 3.1)
        elif kind == "heavy":
            x, z = rng.standard_cauchy((2, n, 1))
        elif kind == "offset":
            x, z = x + 1e4, z - 1e4
        x, z = x.astype(dtype), z.astype(dtype)
        k, l_ = matrix(x, x, "distance"), matrix(z, z, "distance")
        check(joint_kernel_sums(x, z), k, l_, 1e-12)
        tiled = joint_kernel_sums(x, z, x.copy(), z.copy())
        check(tiled, k, l_, 2e-12 if dtype == np.float64 else 1e-5)
    found = joint_kernel_sums(x, z, bandwidths=(2.0, 0.25))
    np.testing.assert_allclose(found.joint, (k * l_).sum(1) * 2, rtol=1e-11)
    many = np.stack([z, -z, z[::-1]])
    sorted_ = joint_kernel_sums(x, many)
    np.testing.assert_array_equal(sorted_.joint[0], joint_kernel_sums(x, z).joint)
    np.testing.assert_allclose(sorted_.joint[1], sorted_.joint[0], rtol=1e-12)


@pytest.mark.parametrize("kernels", [("distance", "distance"), ("gaussian", "cauchy")])
@pytest.mark.parametrize(("d", "q"), [(1, 1), (2, 3), (20, 9)])
def test_bits_do_not_depend_on_threads_and_rows(kernels, d, q, rng, threads):
    x, z = (rng.standard_normal((700, width)).astype(np.float32) for width in (d, q))
    y, w = (rng.standard_normal((2500, width)).astype(np.float32) for width in (d, q))
    threads(1)
    whole = joint_kernel_sums(x, z, y, w, kernels=kernels)
    own = joint_kernel_sums(x, z, kernels=kernels)
    threads(3)
    for found, wanted in (
        (joint_kernel_sums(x, z, y, w, kernels=kernels), whole),
        (joint_kernel_sums(x, z, kernels=kernels), own),
    ):
        for got, expected in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(got, expected)
    part = joint_kernel_sums(x[5:9], z[5:9], y, w, kernels=kernels)
    for got, expected in zip(part, whole, strict=True):
        np.testing.assert_array_equal(got, expected[5:9])


def test_a_common_offset_costs_nothing(rng):
    x = np.round(rng.standard_normal((300, 20)) * 4096) / 4096
    near, far = (joint_kernel_sums(*[(x + shift).astype(np.float32)] * 2) for shift in (0, 64))
    np.testing.assert_allclose(far.joint, near.joint, rtol=1e-6)


def test_all_libraries_and_strides(library, rng):
    x, z = rng.standard_normal((40, 6)), rng.standard_normal((40, 4))
    wanted = joint_kernel_sums(x, z)
    found = joint_kernel_sums(library.put(x), library.put(z))
    for got, expected in zip(found, wanted, strict=True):
        assert library.owns(got)
        np.testing.assert_array_equal(library.get(got), expected)
    strided = joint_kernel_sums(np.asfortranarray(x), z[::-1][::-1])
    np.testing.assert_array_equal(strided.joint, wanted.joint)


def test_rows_that_are_not_finite_spoil_their_own_sums(rng):
    for columns in (1, 3):
        x, z = rng.standard_normal((2, 50, columns))
        y, w = x.copy(), z.copy()
        x[3, 0], z[5, 0] = np.nan, np.inf
        found = joint_kernel_sums(x, z, y, w)
        assert np.flatnonzero(np.isnan(found.joint)).tolist() == [3, 5]
        assert np.flatnonzero(np.isnan(found.first)).tolist() == [3]
        assert np.flatnonzero(np.isnan(found.second)).tolist() == [5]
        assert np.isnan(joint_kernel_sums(x, z).joint).all()


def test_nothing_to_sum(rng):
    x, z = rng.standard_normal((4, 2)), rng.standard_normal((4, 0))
    assert not joint_kernel_sums(x, z, x[:0], z[:0]).first.any()
    found = joint_kernel_sums(x, z, kernels=("distance", "gaussian"))
    np.testing.assert_array_equal(found.second, 4)
    np.testing.assert_array_equal(found.joint, found.first)
    assert joint_kernel_sums(x[:0], z[:0]).joint.shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": [[1.0]]}, DtypeError, "x must be an array"),
        ({"x": np.ones((5, 2), np.int64)}, DtypeError, "float32 or float64"),
        ({"z": np.ones((5, 2), np.float32)}, DtypeError, "z must be float64 like x"),
        ({"x": np.ones(5)}, InvalidArgumentError, "x must have 2 axes"),
        ({"z": np.ones((4, 2))}, InvalidArgumentError, "z must have 5 rows"),
        ({"z": np.ones((0, 5, 2))}, InvalidArgumentError, "axes without zeros"),
        ({"y": np.ones((5, 2))}, InvalidArgumentError, "w must be given"),
        ({"y": np.ones((5, 3)), "w": np.ones((5, 2))}, InvalidArgumentError, "y must have 2"),
        ({"y": np.ones((4, 2)), "w": np.ones((5, 2))}, InvalidArgumentError, r"w must have shape"),
        ({"kernels": ("distance", "linear")}, InvalidArgumentError, "one of 'distance'"),
        ({"kernels": "distance"}, InvalidArgumentError, "tuple of two names"),
        ({"alphas": (0.0, 1.0)}, InvalidArgumentError, "alphas must be > 0"),
        ({"alphas": (1.0, 4.5)}, InvalidArgumentError, "alphas must be in"),
        ({"bandwidths": (1.0, 0.0)}, InvalidArgumentError, "bandwidths must be > 0"),
        ({"bandwidths": (np.ones(3), 1.0)}, InvalidArgumentError, "one element per column"),
        ({"bandwidths": ("x", 1.0)}, DtypeError, "must be a number"),
    ],
)
def test_refusals(change, error, text):
    given = {"x": np.ones((5, 2)), "z": np.ones((5, 2))} | change
    with pytest.raises(error, match=r"^\[joint_kernel_sums\] ") as raised:
        joint_kernel_sums(**given)
    assert text in str(raised.value)


@pytest.mark.parametrize("kernel", RADIAL)
@pytest.mark.parametrize(("d", "q"), [(1, 1), (3, 2), (18, 9)])
def test_gradients_are_those_of_the_dense_sums(kernel, d, q):
    torch = pytest.importorskip("torch")
    torch.manual_seed(d)
    n, m = 40, 150
    kernels, alphas = (kernel, "distance"), (1.0 if kernel != "rational_quadratic" else 0.7, 1.5)

    def tensors(*shapes):
        return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]

    def gram(a, b, name, alpha):
        square = (a[..., :, None, :] - b[..., None, :, :]).square().sum(-1)
        if a is b:  # the root of 0 has no derivative
            square = square + torch.eye(a.shape[-2], dtype=a.dtype) * 1e-300
        distance = square.sqrt()
        t3, t5 = 3**0.5 * distance, 5**0.5 * distance
        return {
            "gaussian": (-square / 2).exp,
            "laplacian": (-distance).exp,
            "matern12": (-distance).exp,
            "matern32": lambda: (1 + t3) * (-t3).exp(),
            "matern52": lambda: (1 + t5 + t5.square() / 3) * (-t5).exp(),
            "cauchy": lambda: 1 / (1 + square),
            "rational_quadratic": lambda: (1 + square / (2 * alpha)) ** -alpha,
            "distance": lambda: square ** (alpha / 2),
            "sqdistance": lambda: square,
        }[name]()

    for given in (tensors((n, d), (n, q)), tensors((n, d), (2, n, q), (m, d), (2, m, q))):
        ours = joint_kernel_sums(*given, kernels=kernels, alphas=alphas)
        x, z, y, w = given if len(given) == 4 else (*given, *given)
        k, g = gram(x, y, kernels[0], alphas[0]), gram(z, w, kernels[1], alphas[1])
        dense = (k * g).sum(-1), k.sum(-1), g.sum(-1)
        weights = [torch.randn_like(a) for a in dense]
        losses = [
            sum((a * weight).sum() for a, weight in zip(sums, weights, strict=True))
            for sums in (ours, dense)
        ]
        found, wanted = (torch.autograd.grad(loss, given) for loss in losses)
        for got, expected in zip(found, wanted, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_gradients_have_the_same_bits_for_any_number_of_threads(threads):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    x, z = (torch.randn(900, width, requires_grad=True) for width in (12, 2))
    found = []
    for count in (1, 3):
        threads(count)
        sums = joint_kernel_sums(x, z)
        found.append(torch.autograd.grad((sums.joint * sums.first).sum(), (x, z)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_gradients_of_equal_points_are_none():
    torch = pytest.importorskip("torch")
    for columns in (1, 12):
        x = torch.ones(9, columns, requires_grad=True)
        for alpha in (0.5, 1.0, 1.5):
            sums = joint_kernel_sums(x, x.detach() * 2, alphas=(alpha, 1.0))
            (sums.joint.sum() + sums.first.sum()).backward()
            assert not x.grad.any()


@pytest.mark.parametrize("level", ["baseline", "v3", "v4"])
def test_every_level_adds_up(level, run_python):
    if level not in ("baseline", "v3", "v4")[: ["baseline", "v3", "v4"].index(best()) + 1]:
        pytest.skip("this CPU lacks it")
    code = (
        "import numpy as np, subspan\n"
        "x = np.sin(np.arange(900.0)).reshape(300, 3).astype(np.float32)\n"
        "z = np.cos(np.arange(600.0)).reshape(300, 2).astype(np.float32)\n"
        "found = subspan.joint_kernel_sums(x, z, alphas=(0.5, 1.0))\n"
        "k, l = (np.linalg.norm(a[:, None].astype(float) - a, axis=2) for a in (x, z))\n"
        "np.testing.assert_allclose(found.joint, (k**0.5 * l).sum(1), rtol=3e-6)\n"
        "print(subspan.cpu_level())"
    )
    assert run_python(code, SUBSPAN_CPU_LEVEL=level).stdout.strip() == level


def best():
    return subspan.cpu_level()
