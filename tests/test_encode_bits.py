"""Sparse encoders: the same bits for any threads, batch, level and precision."""

import numpy as np
import pytest
import subspan
from encode_oracle import ACTIVATIONS, FLOATS, LEVELS, codes_of, same_code
from matrices import same_bits
from subspan import SparseCode, threshold_encode, topk_encode

# ---- threads, batches, levels ----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 200, 3000), (5, 64, 777), (300, 40, 500), (2000, 9, 100)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_do_not_depend_on_the_threads(shape, dtype, threads, rng):
    rows, d, n = shape
    given = [rng.standard_normal(s).astype(dtype) for s in ((rows, d), (d, n), (n,), (d,))]
    given[1][:, 1::3] = given[1][:, ::3][:, : n // 3 + (n % 3 > 1)]  # ties
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        results.append(list(codes_of(*given)))
    for other in results[1:]:
        for got, wanted in zip(other, results[0], strict=True):
            same_code(got, wanted)


def test_a_row_does_not_see_its_batch(rng):
    x = rng.standard_normal((300, 50)).astype(np.float32)
    w_enc = rng.standard_normal((50, 200)).astype(np.float32)
    whole = topk_encode(x, w_enc, k=9)
    above = threshold_encode(x, w_enc, threshold=5.0)
    for cuts in ([1], [129, 130], [8, 16, 299], [150]):
        parts = [topk_encode(part, w_enc, k=9) for part in np.split(x, cuts)]
        same_code(SparseCode(*map(np.concatenate, zip(*parts, strict=True))), whole)
        parts = [threshold_encode(part, w_enc, threshold=5.0) for part in np.split(x, cuts)]
        same_bits(
            (np.concatenate([p.values for p in parts]), above.values),
            (np.concatenate([p.indices for p in parts]), above.indices),
        )


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [*FLOATS, "bfloat16"])
@pytest.mark.parametrize(("d", "n"), [(1, 3), (16, 480), (67, 1000), (300, 4321), (1100, 97)])
def test_few_rows_have_the_bits_of_many(order, dtype, d, n, rng):
    """Up to eight rows read w_enc where it lies, in either order; more have it packed."""
    shapes = ((140, d), (d, n), (n,), (d,))
    x, w_enc, b_enc, b_pre = (rng.standard_normal(s).astype("f4") for s in shapes)
    x[3, -1], x[6, 0] = np.nan, np.inf
    w_enc = np.asarray(w_enc, order=order)
    given = [x, w_enc, b_enc, b_pre]
    if dtype == "bfloat16":
        ml_dtypes = pytest.importorskip("ml_dtypes")
        given = [a.astype(ml_dtypes.bfloat16) for a in given]
    else:
        given = [a.astype(dtype) for a in given]
    x, w_enc, b_enc, b_pre = given
    k = min(n, 21)
    for activation in ACTIVATIONS:
        options = {"k": k, "b_pre": b_pre, "activation": activation}
        many = topk_encode(x, w_enc, b_enc, **options)
        for rows in range(1, 10):
            few = topk_encode(x[:rows], w_enc, b_enc, **options)
            assert few.values.tobytes() == many.values[:rows].tobytes()
            assert (few.indices == many.indices[:rows]).all()
    many = threshold_encode(x, w_enc, b_enc, threshold=1.0, b_pre=b_pre)
    for rows in range(1, 10):
        few = threshold_encode(x[:rows], w_enc, b_enc, threshold=1.0, b_pre=b_pre)
        end = many.offsets[rows]
        assert few.values.tobytes() == many.values[:end].tobytes()
        assert (few.indices == many.indices[:end]).all()


REPORT = """
import hashlib
import numpy as np, subspan
rng = np.random.default_rng(5)
digest = hashlib.sha256()
for dtype in ("float16", "float32", "float64"):
    for rows, d, n in ((1, 7, 100), (33, 100, 333), (200, 1300, 97)):
        x, w, b, p = (rng.standard_normal(s).astype(dtype) for s in ((rows, d), (d, n), (n,), (d,)))
        for code in (
            subspan.topk_encode(x, w, b, k=20, b_pre=p),
            subspan.topk_encode(x, w, k=20, activation="identity"),
            subspan.batch_topk_encode(x, w, b, k=3.5, b_pre=p),
            subspan.threshold_encode(x, w, b, threshold=3.0, b_pre=p),
        ):
            for part in code:
                digest.update(part.tobytes())
print(subspan.cpu_level(), digest.hexdigest())
"""


def test_levels_with_fused_products_give_the_same_bits(run_python):
    cpu = run_python("import subspan; print(subspan.cpu_level())", SUBSPAN_CPU_LEVEL=None)
    levels = LEVELS[: LEVELS.index(cpu.stdout.strip()) + 1]
    lines = [run_python(REPORT, SUBSPAN_CPU_LEVEL=level).stdout.split() for level in levels]
    assert [line[0] for line in lines] == list(levels)
    assert len({line[1] for line in lines if line[0] != "baseline"}) <= 1


EXACT = """
import sys
sys.path.insert(0, {folder!r})
import numpy as np, encode_oracle
rng = np.random.default_rng(1)
for dtype in ("float32", "float64"):
    for rows, d, n in ((1, 5, 40), (6, 37, 101), (13, 30, 333), (130, 1100, 50)):
        x, w_enc, *biases = encode_oracle.problem(rng, rows, d, n, dtype)
        for order in "CF":
            encode_oracle.check_all(x, np.asarray(w_enc, order=order), *biases, [1, 33])
"""


@pytest.mark.parametrize("level", LEVELS[:2])
def test_lower_levels_are_right(level, run_python):
    from pathlib import Path

    run_python(EXACT.format(folder=str(Path(__file__).parent)), SUBSPAN_CPU_LEVEL=level)


MEMORY = """
import resource
import numpy as np, subspan
rng = np.random.default_rng(0)
x = rng.standard_normal((2048, 16), dtype=np.float32)
w = rng.standard_normal((16, 65536), dtype=np.float32)
subspan.topk_encode(x[:2], w[:, :64], k=3)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
subspan.topk_encode(x, w, k=32)
subspan.batch_topk_encode(x, w, k=32)
subspan.threshold_encode(x, w, threshold=15.0)
print(peak() - before)
"""


def test_z_is_never_stored(run_python):
    """It would take 512 MiB."""
    pytest.importorskip("resource")
    grown = int(run_python(MEMORY).stdout)
    assert 0 <= grown < 64 * 1024


# ---- precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("activation", ["relu", "relu_first", "identity"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_certified_code_is_the_code(dtype, activation, order, threads, rng):
    x = rng.standard_normal((513, 261)).astype(dtype)
    w = np.asarray(rng.standard_normal((261, 4100)).astype(dtype), order=order)
    b, b_pre = rng.standard_normal(4100).astype(dtype), rng.standard_normal(261).astype(dtype)
    arguments = {"k": 8, "b_pre": b_pre, "activation": activation}
    exact = subspan.topk_encode(x, w, b, **arguments)
    for count in (1, 2, 3):
        threads(count)
        certified = subspan.topk_encode(x, w, b, **arguments, precision="certified")
        np.testing.assert_array_equal(certified.values, exact.values)
        np.testing.assert_array_equal(certified.indices, exact.indices)


@pytest.mark.parametrize(
    "case",
    [
        *("ties", "nan row", "inf row", "nan latent", "inf latent", "nan bias", "inf bias"),
        *("huge", "tiny", "zeros", "far"),
    ],
)
def test_what_low_precision_cannot_tell_apart_is_computed_again(case, rng):
    """Rows that the first pass leaves in doubt, and numbers that bfloat16 has no room for."""
    x = rng.standard_normal((600, 300)).astype("float32")
    w = rng.standard_normal((300, 3000)).astype("float32")
    b = np.zeros(3000, np.float32)
    if case == "ties":
        w[:, 1:] = w[:, :1] * (1 + 1e-6 * rng.standard_normal((1, 2999)).astype("float32"))
    elif case == "nan row":
        x[7, 3] = np.nan
    elif case == "inf row":
        x[7, 3] = np.inf
    elif case == "nan latent":
        w[5, 11] = np.nan
    elif case == "inf latent":
        w[5, 11] = np.inf
    elif case == "nan bias":
        b[:-3] = np.nan  # fewer are left than k asks for
    elif case == "inf bias":
        b[11] = np.inf
    elif case == "huge":
        x *= 3e18
        w *= 1e18
        w[:, 17] = 3e38
    elif case == "tiny":
        x *= 1e-20
        w *= 1e-20
    elif case == "zeros":
        x[:100] = 0
    else:
        x += 1000
    with np.errstate(all="ignore"):
        exact = subspan.topk_encode(x, w, b, k=5)
        certified = subspan.topk_encode(x, w, b, k=5, precision="certified")
    np.testing.assert_array_equal(certified.values, exact.values)
    np.testing.assert_array_equal(certified.indices, exact.indices)


def test_a_precision_that_there_is_not():
    with pytest.raises(subspan.errors.InvalidArgumentError, match="precision must be one of"):
        subspan.topk_encode(np.ones((1, 2)), np.ones((2, 3)), k=1, precision="fast")
