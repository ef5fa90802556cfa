"""subspan.spectrum: planted spectra, brute-force references and invariances."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from subspan import spectrum
from subspan.errors import DtypeError, InvalidArgumentError

SINGLE = {
    "effective_rank": spectrum.effective_rank,
    "effective_rank_variance": lambda s: spectrum.effective_rank(s, on="variance"),
    "rankme": spectrum.rankme,
    "participation_ratio": spectrum.participation_ratio,
    "stable_rank": spectrum.stable_rank,
    "dim_90": lambda s: spectrum.dimension_for(s, 0.9),
    "dim_99": lambda s: spectrum.dimension_for(s, 0.99),
    "top_share": lambda s: 1.0 - spectrum.tail_energy(s, 1),
    "tail_energy": lambda s: spectrum.tail_energy(s, 10),
    "decay_exponent": spectrum.decay_exponent,
}

spectra = hnp.arrays(
    np.float64,
    st.integers(1, 30),
    elements=st.one_of(st.just(0.0), st.floats(1e-3, 1e3)),
).filter(lambda s: s.max() > 0)


def entropy_rank(p):
    """Exponential of the entropy, term by term with math.fsum."""
    total = math.fsum(p)
    return math.exp(-math.fsum(x / total * math.log(x / total) for x in p if x > 0))


def brute_force(s):
    """Reference for one spectrum of singular values, plain Python."""
    s = sorted((float(x) for x in s), reverse=True)
    lam = [x * x for x in s]
    total = math.fsum(lam)
    p = [x / math.fsum(s) + 1e-7 for x in s]

    def dimension(share):
        return next(
            k for k in range(1, len(s) + 1) if math.fsum(lam[:k]) >= share * total * (1 - 1e-14)
        )

    return {
        "effective_rank": entropy_rank(s),
        "effective_rank_variance": entropy_rank(lam),
        "rankme": math.exp(-math.fsum(x * math.log(x) for x in p)),
        "participation_ratio": total**2 / math.fsum(x * x for x in lam),
        "stable_rank": total / lam[0],
        "dim_90": dimension(0.9),
        "dim_99": dimension(0.99),
        "top_share": lam[0] / total,
        "tail_energy": math.fsum(lam[10:]) / total,
    }


@pytest.mark.parametrize("r", [1, 2, 7, 64, 2048])
def test_equal_values_give_their_number(r):
    padded = np.concatenate([np.full(r, 3.7), np.zeros(5)])
    result = spectrum.stats(padded)
    for name in ("effective_rank", "effective_rank_variance", "participation_ratio", "stable_rank"):
        assert getattr(result, name) == pytest.approx(r, rel=1e-12)
    assert result.dim_99 == math.ceil(0.99 * r - 1e-9)
    assert result.dim_90 == math.ceil(0.9 * r - 1e-9)
    assert result.top_share == pytest.approx(1 / r)


def test_rankme_of_rank_ten_in_2048():
    s = np.concatenate([np.ones(10), np.zeros(2038)])
    assert spectrum.rankme(s) == pytest.approx(10.033, abs=5e-4)
    assert spectrum.rankme(s, eps=0.0) == pytest.approx(10.0, rel=1e-12)


def test_random_spectra_agree_with_brute_force():
    rng = np.random.default_rng(1)
    for r in (1, 2, 11, 50):
        s = rng.lognormal(sigma=2.0, size=r)
        result = spectrum.stats(s)
        for name, value in brute_force(s).items():
            assert getattr(result, name) == pytest.approx(value, rel=1e-11, abs=1e-14), name


@given(spectra)
def test_bounds(s):
    result = spectrum.stats(s)
    rank = np.count_nonzero(s)
    slack = 1e-9
    assert 1 - slack <= result.effective_rank_variance <= result.effective_rank + slack
    assert result.effective_rank <= rank + slack
    assert 1 - slack <= result.stable_rank <= result.participation_ratio * rank
    assert 1 - slack <= result.participation_ratio <= rank + slack
    assert result.stable_rank <= rank + slack
    assert 1 <= result.dim_90 <= result.dim_99 <= rank
    assert result.rankme >= result.effective_rank * (1 - 1e-5)


@given(spectra, st.floats(1e-6, 1e6), st.randoms(use_true_random=False))
def test_scale_and_order_do_not_matter(s, scale, random):
    order = list(range(len(s)))
    random.shuffle(order)
    want, got = spectrum.stats(s), spectrum.stats(scale * s[order])
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=5),
        elements=st.floats(0, 10, allow_subnormal=False),
    )
)
def test_batch_equals_loop(s):
    result = spectrum.stats(s, shares=(0.5,))
    for index in np.ndindex(*s.shape[:-1]):
        one = spectrum.stats(s[index], shares=(0.5,))
        for batch, single in zip(result, one, strict=True):
            np.testing.assert_array_equal(batch[index], single)


def test_single_functions_are_the_fields():
    s = np.random.default_rng(2).lognormal(size=(3, 4, 25))
    result = spectrum.stats(s, shares=(0.5, 0.999))
    for name, function in SINGLE.items():
        np.testing.assert_allclose(getattr(result, name), function(s), rtol=1e-13, err_msg=name)
        assert getattr(result, name).shape == (3, 4)
    assert result.dimensions.shape == (3, 4, 2)
    np.testing.assert_array_equal(result.dimensions[..., 0], spectrum.dimension_for(s, 0.5))
    np.testing.assert_array_equal(result.dimensions[..., 1], spectrum.dimension_for(s, 0.999))
    assert spectrum.stats(s, shares=()).dimensions.shape == (3, 4, 0)


def test_kind_variance_is_the_square():
    s = np.random.default_rng(3).lognormal(size=(4, 9))
    for a, b in zip(spectrum.stats(s), spectrum.stats(s**2, kind="variance"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_zero_spectra_and_empty_batches():
    result = spectrum.stats(np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    for name, values in result._asdict().items():
        if name == "decay_exponent":
            assert np.isnan(values).all()
        else:
            assert not np.any(values[0]), name
    assert result.effective_rank[1] == 1.0
    assert spectrum.stats(np.empty((0, 3))).rankme.shape == (0,)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("window", [(1, None), (3, 40)])
def test_decay_exponent_of_a_power_law(exponent, window):
    variances = 5.0 * np.arange(1, 201) ** -exponent
    first, last = window
    got = spectrum.decay_exponent(variances, first=first, last=last, kind="variance")
    assert got == pytest.approx(exponent, abs=1e-10)
    assert spectrum.decay_exponent(np.sqrt(variances), first=first, last=last) == pytest.approx(
        exponent, abs=1e-10
    )


def test_decay_exponent_matches_polyfit_and_ignores_rounding():
    s = np.sort(np.random.default_rng(4).lognormal(size=30))[::-1]
    slope = np.polyfit(np.log(np.arange(1, 31)), np.log(s), 1)[0]
    assert spectrum.decay_exponent(s, kind="variance") == pytest.approx(-slope, rel=1e-10)
    padded = np.concatenate([np.arange(1, 21.0) ** -1, np.full(10, 1e-18)])
    assert spectrum.decay_exponent(padded, kind="variance") == pytest.approx(1.0, rel=1e-10)


def test_extreme_scales():
    for scale in (1e-300, 1e300):
        assert spectrum.effective_rank(np.full(4, scale)) == pytest.approx(4.0)
        assert spectrum.stable_rank(np.full(4, scale)) == pytest.approx(4.0)
    assert spectrum.effective_rank(np.full(3, 5e-324)) == pytest.approx(3.0)


def test_inputs_of_any_library_and_dtype():
    torch = pytest.importorskip("torch")
    assert spectrum.effective_rank([2, 2, 0]) == pytest.approx(2.0)
    assert spectrum.effective_rank(np.array([2, 2, 0], dtype=np.uint8)) == pytest.approx(2.0)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        got = spectrum.effective_rank(torch.tensor([[2.0, 2.0, 0.0]], dtype=dtype))
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, [2.0])


def test_negative_values_within_rounding_are_zero():
    variances = np.array([1.0, 0.5, -2e-16])
    assert spectrum.stats(variances, kind="variance").effective_rank > 1
    assert spectrum.effective_rank(np.array([1.0, 1.0, -1e-7], dtype=np.float32)) == pytest.approx(
        2.0
    )


@pytest.mark.parametrize(
    ("s", "error", "match"),
    [
        (np.array([1.0, np.nan]), InvalidArgumentError, "finite"),
        (np.array([1.0, np.inf]), InvalidArgumentError, "finite"),
        (np.array([1.0, -1e-7]), InvalidArgumentError, "negative"),
        (np.array([-1.0, -2.0]), InvalidArgumentError, "negative"),
        (np.array([[1.0, 1.0], [0.0, -1.0]]), InvalidArgumentError, "negative"),
        (np.empty((3, 0)), InvalidArgumentError, "at least one value"),
        (np.float64(3.0), InvalidArgumentError, "at least one value"),
        (np.array([1.0 + 1j]), DtypeError, "real"),
        (np.array([True]), DtypeError, "real"),
        (np.array(["a"]), DtypeError, "real"),
    ],
)
def test_bad_spectra_are_refused(s, error, match):
    for function in (spectrum.stats, *SINGLE.values()):
        with pytest.raises(error, match=match):
            function(s)


@pytest.mark.parametrize(
    "call",
    [
        lambda s: spectrum.stats(s, kind="eigen"),
        lambda s: spectrum.stats(s, shares=(0.0,)),
        lambda s: spectrum.stats(s, tail=-1),
        lambda s: spectrum.effective_rank(s, on="both"),
        lambda s: spectrum.rankme(s, eps=-1.0),
        lambda s: spectrum.dimension_for(s, 1.5),
        lambda s: spectrum.tail_energy(s, 1.5),
        lambda s: spectrum.tail_energy(s, True),
        lambda s: spectrum.decay_exponent(s, first=0),
        lambda s: spectrum.decay_exponent(s, first=2, last=9),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises((InvalidArgumentError, DtypeError), match=r"^\[\w+\] .* must .*, got "):
        call(np.ones(3))
