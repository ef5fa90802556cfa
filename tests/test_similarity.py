"""What every measure promises in its table, and `compare`: pairs, nulls, refusals."""

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
from subspan import similarity
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.similarity import MEASURES, compare

NAMES = sorted(MEASURES)
SINGLE = {
    "cca": lambda x, y: similarity.cca(x, y).value,
    "svcca": lambda x, y: similarity.svcca(x, y).value,
    "pwcca": lambda x, y: similarity.pwcca(x, y).value,
    "cka": similarity.cka,
    "cka-unbiased": lambda x, y: similarity.cka(x, y, unbiased=True),
    "cka-rbf": lambda x, y: similarity.cka(x, y, kernel="rbf"),
    "procrustes": similarity.procrustes,
    "procrustes-size": lambda x, y: similarity.procrustes(x, y, kind="size"),
    "shape": lambda x, y: similarity.procrustes(x, y, alpha=0.5),
    "rsa": similarity.rsa,
    "rsa-euclidean": lambda x, y: similarity.rsa(x, y, rdm="euclidean"),
}


def layers(rng, n=60, widths=(5, 8, 3)):
    """Layers that share something, with means and units of their own."""
    hidden = rng.normal(size=(n, 4))
    return [
        np.tanh(hidden @ rng.normal(size=(4, d))) * rng.uniform(0.5, 3) + rng.normal(size=d)
        for d in widths
    ]


def value(name, x, y):
    return compare([x], [y], name).matrix[0, 0]


def tolerance(name):
    return 1e-6 if MEASURES[name].is_distance else 1e-9  # a root of a difference


# ---- what the table says ---------------------------------------------------------------------


def transforms(rng, d):
    rotation, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return {
        "translation": lambda x: x + 7 * rng.normal(size=d),
        "orthogonal": lambda x: x @ rotation,
        "scale": lambda x: 0.01 * x,
        "linear": lambda x: x @ (rotation @ np.diag(rng.uniform(0.2, 5, d)) @ rotation + 0.1),
    }


@pytest.mark.parametrize("kind", ["translation", "orthogonal", "scale", "linear"])
@pytest.mark.parametrize("name", NAMES)
def test_invariant_to_what_the_table_says_and_to_nothing_else(name, kind, rng):
    x, y, _ = layers(rng)
    known = value(name, x, y)
    moved = [
        value(name, transforms(rng, x.shape[1])[kind](x), y),
        value(name, x, transforms(rng, y.shape[1])[kind](y)),
    ]
    if kind in MEASURES[name].invariances:
        assert moved == pytest.approx([known] * 2, abs=tolerance(name))
    else:
        assert max(abs(m - known) for m in moved) > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_identity_symmetry_and_range(name, rng):
    measure = MEASURES[name]
    found = layers(rng)
    for x in found:
        assert value(name, x, x) == pytest.approx(measure.identity, abs=tolerance(name))
    for x, y in itertools.combinations(found, 2):
        there, back = value(name, x, y), value(name, y, x)
        assert measure.low - 1e-12 <= there <= measure.high + 1e-12
        if measure.symmetric:
            assert there == pytest.approx(back, abs=1e-12)
    equal_ranks = layers(rng, widths=(5, 5))
    if not measure.symmetric:
        assert abs(value(name, *equal_ranks) - value(name, *equal_ranks[::-1])) > 1e-6


@pytest.mark.parametrize("name", [name for name in NAMES if MEASURES[name].is_metric])
def test_metrics_obey_the_triangle_inequality(name, rng):
    for _ in range(5):
        matrix = compare(layers(rng, n=12, widths=(4, 3, 5, 4, 2)), measure=name).matrix
        around = matrix[:, :, None] + matrix[None]  # i to j to k
        assert (matrix[:, None] <= around.transpose(0, 1, 2) + 1e-6).all()


@pytest.mark.parametrize("name", NAMES)
def test_planted_likeness_is_found(name, rng):
    x = rng.normal(size=(200, 6))
    near, far = x + 0.1 * rng.normal(size=x.shape), rng.normal(size=x.shape)
    closer = value(name, x, near) < value(name, x, far)
    assert closer == MEASURES[name].is_distance


def table():
    """Return the table of measures as the page shows it."""
    lines = ["| measure | formula | range | metric | invariant to |", "|---|---|---|---|---|"]
    for measure in MEASURES.values():
        low, high = (
            {0.0: "0", 1.0: "1", -1.0: "-1", np.inf: "inf", np.pi / 2: "pi/2"}[bound]
            for bound in (measure.low, measure.high)
        )
        order = ("translation", "scale", "orthogonal", "linear")
        kinds = ", ".join(kind for kind in order if kind in measure.invariances)
        formula = measure.formula.replace("|", "\\|")
        metric = "yes" if measure.is_metric else "no" if measure.symmetric else "no, not symmetric"
        lines.append(f"| `{measure.name}` | {formula} | {low} to {high} | {metric} | {kinds} |")
    return "\n".join(lines)


def test_the_page_shows_the_table():
    page = Path(__file__).parent.parent / "docs" / "workflows" / "similarity.md"
    if not page.is_file():
        pytest.skip("needs the source tree")
    shown = page.read_text().partition("<!-- measures -->")[2].partition("<!-- /measures -->")[0]
    assert shown.strip() == table()


def test_every_measure_is_tested_alone():
    assert set(SINGLE) == set(MEASURES)


# ---- compare ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_all_pairs_are_the_pairs_one_by_one(name, rng):
    xs, ys = layers(rng), layers(rng, widths=(4, 20))
    wanted = [[SINGLE[name](x, y) for y in ys] for x in xs]
    found = compare(xs, ys, name)
    assert found.measure == name
    assert found.matrix == pytest.approx(np.array(wanted), abs=1e-10)
    itself = compare(xs, measure=name).matrix
    wanted = [[SINGLE[name](x, y) for y in xs] for x in xs]
    assert itself == pytest.approx(np.array(wanted), abs=1e-6)
    if MEASURES[name].symmetric:
        assert np.array_equal(itself, itself.T)


@pytest.mark.parametrize("name", NAMES)
def test_libraries_dtypes_and_strides(name, rng, library):
    xs = [x.astype(np.float32) for x in layers(rng)]
    wanted = compare([x.astype(np.float64) for x in xs], measure=name).matrix
    rough = 2e-3 if MEASURES[name].is_distance else 1e-5
    found = compare([library.put(x) for x in xs], measure=name).matrix
    assert found == pytest.approx(wanted, abs=rough)
    assert np.array_equal(np.diag(found), np.full(3, MEASURES[name].identity))
    doubles = compare([library.put(x.astype(np.float64)) for x in xs], measure=name).matrix
    assert doubles == pytest.approx(wanted, abs=1e-7)
    turned = [np.asfortranarray(x)[::-1] for x in xs]
    assert compare(turned, measure=name).matrix == pytest.approx(wanted, abs=rough)


def test_half_precision_counts_as_what_it_holds(rng):
    torch = pytest.importorskip("torch")
    xs = [
        torch.from_numpy(x).to(kind) for x in layers(rng) for kind in (torch.half, torch.bfloat16)
    ]
    wanted = compare([x.double() for x in xs]).matrix
    assert compare(xs).matrix == pytest.approx(wanted, abs=1e-5)
    # A copy of a column that was rounded anew is no direction of its own.
    x = rng.normal(size=(500, 4))
    twice = np.concatenate([x, (x[:, :1] * 3.1).astype(np.float16)], axis=1).astype(np.float16)
    assert similarity.cca(twice, x.astype(np.float16)).rank_x == 4


@pytest.mark.parametrize("name", NAMES)
def test_far_from_the_origin_and_in_any_unit(name, rng):
    if name == "rsa":
        pytest.skip("is not centred over samples, by definition")
    x, y, _ = (x.astype(np.float32) for x in layers(rng))
    far = (x + 1000).astype(np.float32)  # rounds x, so that is the reference
    wanted = value(name, far.astype(np.float64), y.astype(np.float64))
    assert value(name, far, y) == pytest.approx(wanted, abs=1e-4)
    if name != "procrustes-size":
        huge = value(name, x * np.float32(2.0**100), y * np.float32(2.0**-100))
        assert huge == pytest.approx(value(name, x, y), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_constant_neurons_do_not_count(name, rng):
    if name == "rsa":
        pytest.skip("correlates over neurons")
    x, y, _ = layers(rng)
    padded = np.insert(x, [0, 2, 5], [0.1, 0.0, -1e6], axis=1)
    assert value(name, padded, y) == pytest.approx(value(name, x, y), abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_that_does_not_vary_gives_nan_and_a_warning(name, rng):
    if name == "rsa":
        pytest.skip("such rows may well differ over neurons")
    x, y, _ = layers(rng)
    with pytest.warns(UserWarning, match=r"xs\[1\].*all rows are equal"):
        found = compare([x, np.full_like(x, 0.1)], [y], name, n_permutations=3).matrix
    assert np.isfinite(found[0, 0])
    if name == "procrustes-size":
        assert found[1, 0] == pytest.approx(np.linalg.norm(y - y.mean(axis=0)))
    else:
        assert np.isnan(found[1, 0])


def test_one_array_of_layers(rng):
    stack = rng.normal(size=(3, 30, 4))
    assert np.array_equal(compare(stack).matrix, compare(list(stack)).matrix)


def test_progress_counts_up_to_the_end(rng):
    for name in NAMES:
        said = []
        compare(
            layers(rng),
            measure=name,
            n_permutations=3,
            progress=lambda *now, said=said: said.append(now),
        )
        stages = {stage: (done, total) for stage, done, total in said}
        assert stages["layers"] == (3, 3)
        assert stages["permutations"] == (3, 3)
        assert all(done == total for done, total in stages.values()), name


# ---- permutation nulls -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_nulls_are_what_permuted_layers_give(name, rng):
    xs, ys = layers(rng), layers(rng, widths=(4, 9))
    found = compare(xs, ys, name, n_permutations=20, seed=5)
    orders = np.random.default_rng(5)
    slow = []
    for _ in range(20):
        order = orders.permutation(60)
        slow.append(compare(xs, [y[order] for y in ys], name).matrix)
    exact = 1e-9
    if name.startswith("cka") and name != "cka-rbf":  # leading scores, and the mean of the rest
        exact = 0.2 * np.std(slow, axis=0).max()
    assert found.null_mean == pytest.approx(np.mean(slow, axis=0), abs=exact)
    level = 0.05 if MEASURES[name].is_distance else 0.95
    assert found.null_quantile == pytest.approx(np.quantile(slow, level, axis=0), abs=exact)
    if exact == 1e-9:
        beaten = np.array(slow) <= found.matrix + (1e-12 if level < 0.5 else -1e-12)
        beaten = beaten if level < 0.5 else ~beaten
        assert np.array_equal(found.p_value, (1 + beaten.sum(axis=0)) / 21)
    again = compare(xs, ys, name, n_permutations=20, seed=5)
    assert np.array_equal(again.null_mean, found.null_mean)
    assert (compare(xs, ys, name, n_permutations=20, seed=6).null_mean != found.null_mean).any()


def test_the_null_of_linear_cka_has_the_mean_of_theory(rng):
    """E |X^T P Y|^2 = tr K tr L / (N - 1) over all permutations P."""
    x, y = (rng.normal(size=(80, d)) * np.geomspace(1, 0.1, d) for d in (30, 40))
    found = compare([x], [y], n_permutations=400)
    k, m = (a @ a.T for a in (x - x.mean(axis=0), y - y.mean(axis=0)))
    wanted = np.trace(k) * np.trace(m) / 79 / (np.linalg.norm(k) * np.linalg.norm(m))
    assert found.null_mean[0, 0] == pytest.approx(wanted, rel=0.02)
    slow = []
    for _ in range(400):
        order = rng.permutation(80)
        slow.append(similarity.cka(x, y[order]))
    assert found.null_quantile[0, 0] == pytest.approx(np.quantile(slow, 0.95), rel=0.03)


@pytest.mark.parametrize("name", ["cka", "cka-unbiased", "svcca", "procrustes", "rsa"])
def test_p_values_of_unrelated_layers_are_uniform(name, rng):
    xs, ys = (list(rng.normal(size=(8, 40, 3))) for _ in range(2))
    p = compare(xs, ys, name, n_permutations=99).p_value
    assert p.min() >= 0.01
    assert 0.35 < p.mean() < 0.65
    assert np.mean(p <= 0.1) < 0.3


def test_nulls_of_a_set_with_itself_are_mirrored(rng):
    for name in NAMES:
        found = compare(layers(rng), measure=name, n_permutations=9)
        if MEASURES[name].symmetric:
            assert np.array_equal(found.null_mean, found.null_mean.T), name
        assert found.p_value.shape == (3, 3)
        assert np.diag(found.p_value) == pytest.approx(0.1)


# ---- refusals --------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(10, 3))


def with_value(value, row=4, column=1):
    bad = X.copy()
    bad[row, column] = value
    return bad


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (([X, X[:9]],), {}, InvalidArgumentError, r"xs\[1\] must have 10 rows as xs\[0\], got 9"),
        (([X], [X, X[:9]]), {}, InvalidArgumentError, r"ys\[1\] must have 10 rows"),
        (([X, with_value(np.nan)],), {}, InvalidArgumentError, r"xs\[1\].*NaN in row 4, column 1"),
        (([X], [with_value(np.inf)]), {}, InvalidArgumentError, r"ys\[0\].*infinity in row 4"),
        (([X, X.astype(int)],), {}, DtypeError, r"xs\[1\] must be of floating point, got int"),
        (([X, X[0]],), {}, InvalidArgumentError, r"xs\[1\] must have 2 axes"),
        (([X, X[:, :0]],), {}, InvalidArgumentError, r"xs\[1\] must have at least"),
        (([X[:1]],), {}, InvalidArgumentError, r"xs\[0\] must have at least 2 rows"),
        (([X, [[1.0]]],), {}, DtypeError, r"xs\[1\] must be an array"),
        (([],), {}, InvalidArgumentError, "xs must have at least one layer"),
        ((X,), {}, InvalidArgumentError, r"xs must be a sequence.*write \[xs\]"),
        ((3,), {}, DtypeError, "xs must be a sequence of arrays, got int"),
        (([X], [np.sign(X) * 1.7e308]), {}, InvalidArgumentError, r"ys\[0\] must have sums"),
        (([X], None, "ckaa"), {}, InvalidArgumentError, "measure must be one of"),
        (([X],), {"share": 0.9}, InvalidArgumentError, "options of 'cka' must be among kernel"),
        (([X],), {"kernel": "cubic"}, InvalidArgumentError, "kernel must be one of"),
        (([X],), {"bandwidth": 0.0}, InvalidArgumentError, "bandwidth must be in"),
        (([X],), {"n_permutations": -1}, InvalidArgumentError, "n_permutations must be >= 0"),
        (([X],), {"n_permutations": 1.5}, DtypeError, "n_permutations must be an integer"),
        (([X],), {"seed": -1}, InvalidArgumentError, "seed must be >= 0"),
        (([X],), {"level": 1.1}, InvalidArgumentError, "level must be in"),
        (([X[:3]], None, "cka-unbiased"), {}, InvalidArgumentError, "at least 4 rows"),
        (([X[:2]], None, "rsa"), {}, InvalidArgumentError, "at least 3 rows"),
        (([X], None, "rsa"), {"rdm": "cosine"}, InvalidArgumentError, "rdm must be one of"),
        (([X], None, "rsa"), {"method": "tau"}, InvalidArgumentError, "method must be one of"),
        (([X[:, :1]], None, "rsa"), {}, InvalidArgumentError, "constant row 0"),
        (([X], None, "svcca"), {"share": 1.5}, InvalidArgumentError, "share must be in"),
        (([X], None, "cca"), {"rtol": -1}, InvalidArgumentError, "rtol must be in"),
        (([X], None, "procrustes"), {"kind": "x"}, InvalidArgumentError, "kind must be one of"),
        (([X], None, "procrustes"), {"alpha": 2}, InvalidArgumentError, "alpha must be in"),
    ],
)
def test_refusals(arguments, options, error, text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(error, match=rf"\[compare\] .*{text}|\[compare\] {text}"):
            compare(*arguments, **options)


@pytest.mark.parametrize("name", ["cca", "svcca", "pwcca", "cka", "procrustes", "rsa"])
def test_single_functions_name_themselves_and_the_side(name):
    function = getattr(similarity, name)
    with pytest.raises(InvalidArgumentError, match=rf"\[{name}\] y must have 10 rows as x, got 8"):
        function(X, X[:8])
    with pytest.raises(InvalidArgumentError, match=rf"\[{name}\] y must be finite, got NaN"):
        function(X, with_value(np.nan))
