"""Every refusal of subspan.subspaces, with its message; and what an import costs."""

import numpy as np
import pytest
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError
from subspan.subspaces import (
    Subspaces,
    chordal_flag_mean,
    chordal_flag_median,
    difference_magnitudes,
    difference_subspace,
    distance,
    exp,
    flag_distance,
    flag_mean,
    flag_median,
    from_angles,
    geodesic,
    karcher_mean,
    log,
    principal_angles,
    second_difference_subspace,
    span,
    transport,
)

A = np.linalg.qr(np.random.default_rng(3).standard_normal((4, 6, 2)))[0]
LOW = np.concatenate([A[..., :1], A[..., :1]], axis=-1)
SIDE = A[1] - A[0] @ (A[0].T @ A[1])

REFUSED = [
    (lambda: span(A, rtol=1.0), r"\[span\] rtol must be in \[0.0, 0.99.*\], got 1.0"),
    (lambda: span(A, dims=[1, 2]), r"dims of a must have shape \(4,\) and values in 0..2"),
    (lambda: span(A, dims=[1, 2, 3, 0]), r"values in 0..2, got shape \(4,\) and values 0 to 3"),
    (lambda: span([]), r"\[span\] a must have a matrix, got an empty list"),
    (lambda: span([A[0], A[0, :3]]), r"\[span\] a\[1\] must have 6 rows as a\[0\], got 3"),
    (lambda: span([A[0], A]), r"\[span\] a\[1\] must have 2 axes, got 3"),
    (lambda: span([A[0]], dims=[1]), r"\[span\] dims must be None for a list, got list"),
    (lambda: span(A[0, 0]), r"\[span\] a must have 2 or more axes, got 1"),
    (lambda: span(with_nan(A)), r"\[span\] a must be finite, got NaN or infinity in matrix \[2\]"),
    (lambda: span(with_nan(A)[2]), r"a must be finite, got NaN or infinity in matrix 0"),
    (
        lambda: distance(A, Subspaces(with_nan(A), np.full(4, 2))),
        r"\[distance\] b must be finite, got NaN or infinity in matrix \[2\]",
    ),
    (lambda: principal_angles(A, A[:, :5]), r"b must have 6 rows as a, got 5. Both must lie in"),
    (lambda: principal_angles(A, A[:3]), r"axes that broadcast, got \(4,\) and \(3,\). Where all"),
    (lambda: principal_angles(A, A, pairs="some"), r"pairs must be one of 'broadcast', 'all'"),
    (lambda: distance(A, A, "euclidean"), r"\[distance\] metric must be one of 'geodesic'"),
    (lambda: distance(A, A, dims="pad"), r"\[distance\] dims must be one of 'metric', 'schubert'"),
    (lambda: distance(A, A, dims="ambient"), r'metric must be "chordal" for dims="ambient"'),
    (lambda: from_angles([0.1], "x"), r"\[from_angles\] metric must be one of"),
    (lambda: from_angles([0.1], gap=-1), r"\[from_angles\] gap must be integers >= 0, got -1"),
    (lambda: log(A, A[..., :1]), r"\[log\] a and b must have one dimension, got dimensions 1, 2"),
    (lambda: geodesic(LOW, A, 0.5), r"must have one dimension, got dimensions 1, 2 \(dependent"),
    (lambda: log(A, A[:3]), r"\[log\] a and b must have leading axes that broadcast"),
    (lambda: exp(A[0], A[0]), r"\[exp\] delta must be tangent, A\^T delta = 0, got a part of 1"),
    (lambda: exp(A[0], SIDE[:, :1]), r"delta must have shape \(\.\.\., 6, 2\) as the basis of a"),
    (lambda: exp(A, np.zeros((3, 6, 2))), r"delta must have leading axes that broadcast with"),
    (lambda: exp(A[0], SIDE * np.nan), r"\[exp\] delta must be finite"),
    (lambda: transport(A[0], SIDE, A[0]), r"\[transport\] w must be tangent"),
    (lambda: geodesic(A, A, np.inf), r"\[geodesic\] t must be finite, got NaN or infinity"),
    (lambda: geodesic(A, A, [0.0, np.nan]), r"\[geodesic\] t must be finite"),
    (lambda: karcher_mean(A[0]), r"\[karcher_mean\] subspaces must have 3 or more axes, got 2"),
    (lambda: karcher_mean(A[:0]), r"subspaces must be at least one, got shape \(0, 6, 2\)"),
    (lambda: karcher_mean([A[0], A[1, :, :1]]), r"subspaces must have one dimension, got dim"),
    (lambda: karcher_mean(A, weights=[1, 2]), r"weights must have shape \(4,\) or \(4,\), got"),
    (lambda: karcher_mean(A, weights=[1, 0, 0, -1]), r"weights must be finite, >= 0 and not all"),
    (lambda: flag_mean(A, weights=np.zeros(4)), r"\[flag_mean\] weights must be finite"),
    (lambda: karcher_mean(A, tol=-1), r"\[karcher_mean\] tol must be in \[0.0, inf\], got -1"),
    (lambda: karcher_mean(A, max_iter=-1), r"\[karcher_mean\] max_iter must be >= 0, got -1"),
    (lambda: karcher_mean(A, errors="no"), r"\[karcher_mean\] errors must be one of 'raise'"),
    (lambda: flag_mean(A, r=7), r"\[flag_mean\] r must be in 0..6, got 7"),
    (lambda: flag_median(A, eps=0), r"\[flag_median\] eps must be in"),
    (lambda: chordal_flag_mean(A, [2, 1]), r"dims must ascend and end at the number of columns, 2"),
    (lambda: chordal_flag_mean(A, [1]), r"\[chordal_flag_mean\] dims must ascend and end at"),
    (lambda: chordal_flag_mean(LOW, [1, 2]), r"frames must have independent columns, got rank 1"),
    (lambda: chordal_flag_mean(A[:0], [2]), r"\[chordal_flag_mean\] frames must be at least one"),
    (lambda: chordal_flag_mean(A[0], [2]), r"\[chordal_flag_mean\] frames must have 3 or more"),
    (lambda: chordal_flag_mean(A, [2], starts=0), r"starts must be >= 1, got 0"),
    (lambda: chordal_flag_median(A, [2], eps=2.0), r"\[chordal_flag_median\] eps must be in"),
    (lambda: flag_distance(A, LOW, [1, 2]), r"\[flag_distance\] b must have independent columns"),
    (lambda: flag_distance(A, A, [0, 2]), r"\[flag_distance\] dims must be >= 1, got 0"),
    (lambda: difference_subspace(A, A, residual="x"), r"residual must be one of 'drop'"),
    (lambda: difference_subspace(A, A, tol=2.0), r"tol must be in \[0.0, 1.57"),
    (lambda: second_difference_subspace(A, A[:3], A), r"leading axes that broadcast"),
    (lambda: difference_magnitudes(A, stride=0), r"stride must be >= 1, got 0"),
    (lambda: difference_magnitudes(A[0]), r"series must have 3 or more axes, got 2"),
]

OF_WRONG_TYPE = [
    (lambda: span("a"), r"\[span\] a must be an array"),
    (lambda: span(A.astype(int)), r"a must be float16, bfloat16, float32 or float64, got int64"),
    (lambda: span(A + 0j), r"or float64, got complex128. Convert it first"),
    (lambda: span(A, dims=np.ones(4)), r"dims of a must be integers, got float64"),
    (lambda: from_angles([0.1], gap=1, metric=3), None),
    (lambda: geodesic(A, A, ["x"]), r"\[geodesic\] t must be real numbers, got dtype <U1"),
    (lambda: geodesic(A, A, "x"), r"\[geodesic\] t must be a number, got 'x'"),
    (lambda: karcher_mean(A, max_iter=1.5), r"max_iter must be an integer"),
    (lambda: karcher_mean(A, tol="x"), r"tol must be a number"),
    (lambda: span([A[0], "b"]), r"\[span\] a\[1\] must be an array"),
]


def with_nan(x):
    x = x.copy()
    x[2, 3, 1] = np.nan
    return x


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(InvalidArgumentError, match=message):
        call()


@pytest.mark.parametrize("case", range(len(OF_WRONG_TYPE)))
def test_of_wrong_type(case):
    call, message = OF_WRONG_TYPE[case]
    with pytest.raises((DtypeError, InvalidArgumentError), match=message):
        call()


def test_mixed_libraries_and_gradients():
    torch = pytest.importorskip("torch")
    t = torch.from_numpy(A)
    with pytest.raises(DtypeError, match="b must be of the library and on the device of a"):
        principal_angles(A, t)
    with pytest.raises(DtypeError, match="must be of the library"):
        exp(A[0], t[0])
    with pytest.raises(UnsupportedError, match="a must not require a gradient"):
        distance(t.clone().requires_grad_(), t)


def test_an_import_is_light(run_python):
    code = "import sys\nimport subspan.subspaces\nprint({'torch', 'scipy'} & {*sys.modules})"
    assert run_python(code).stdout.strip() == "set()"


def test_no_projector_is_ever_made(run_python):
    """40 subspaces of R^30000: one projector alone would take 7 GB."""
    code = (
        "import resource\n"
        "import numpy as np\n"
        "from subspan import subspaces as s\n"
        "x = np.random.default_rng(0).standard_normal((40, 30000, 2))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "s.distance(x, x, ['geodesic', 'martin'], pairs='all')\n"
        "s.geodesic(x[0], x[1], 0.5), s.difference_magnitudes(x[:4]), s.flag_mean(x[:4])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    assert int(run_python(code).stdout) < 300_000  # KiB; the bases take 19 MB
