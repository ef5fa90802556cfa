"""Distances: properties generated from their table, definitions by projectors, tiny distances."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from subspace_oracle import EPS, frame, mixing, planted, projector
from subspan.subspaces import (
    METRICS,
    Subspaces,
    distance,
    from_angles,
    geodesic,
    log,
    metrics_table,
    principal_angles,
    span,
)

N, K = 12, 3
ALL = list(METRICS)
TRUE_METRICS = [name for name in ALL if METRICS[name].is_metric]

BY_DEFINITION = {
    "geodesic": lambda a, b: np.linalg.norm(log(a, b)),
    "asimov": lambda a, b: np.arcsin(min(np.linalg.norm(projector(a) - projector(b), 2), 1)),
    "chordal": lambda a, b: np.linalg.norm(projector(a) - projector(b)) / np.sqrt(2),
    "projection": lambda a, b: np.linalg.norm(projector(a) - projector(b), 2),
    "procrustes": lambda a, b: np.linalg.norm(a - b @ closest(a, b)),
    "spectral": lambda a, b: np.linalg.norm(a - b @ closest(a, b), 2),
    "fubini_study": lambda a, b: np.arccos(abs(np.linalg.det(a.T @ b))),
    "binet_cauchy": lambda a, b: np.sqrt(1 - np.linalg.det(a.T @ b) ** 2),
    "martin": lambda a, b: np.sqrt(-np.log(np.linalg.det(a.T @ b) ** 2)),
}


def closest(a, b):
    return scipy.linalg.orthogonal_procrustes(b, a)[0]


def spaces_of_all_dimensions(rng, count=40):
    dims = rng.integers(0, 6, count)
    shared = frame(rng, N, 3)
    mixed = [
        np.linalg.qr(
            np.concatenate([shared, rng.standard_normal((N, 3))], axis=1)[:, :: (-1) ** i][:, :k]
            + 0.3 * rng.standard_normal((N, k))
        )[0]
        for i, k in enumerate(dims)
    ]
    return mixed, dims


@pytest.mark.parametrize("name", ALL)
def test_definition_by_projectors(name, rng):
    a, b = frame(rng, N, K, (6,)), frame(rng, N, K, (6,))
    b[3:] = np.linalg.qr(a[3:] + 0.1 * b[3:])[0]
    found = distance(a, b, name)
    truth = [BY_DEFINITION[name](x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(found, truth, rtol=1e-9, atol=1e-12)
    for alias in METRICS[name].aliases:
        assert np.array_equal(distance(a, b, alias), found)


@pytest.mark.parametrize("dims", ["metric", "schubert"])
@pytest.mark.parametrize("name", ALL)
def test_symmetry_identity_range_invariance(name, dims, rng):
    spaces, k = spaces_of_all_dimensions(rng, 16)
    d = distance(spaces, spaces, name, dims=dims, pairs="all")
    finite = np.isfinite(d)
    np.testing.assert_allclose(d[finite], d.T[finite], rtol=1e-11, atol=1e-12)
    assert np.array_equal(finite, finite.T)
    assert (np.diagonal(d) <= 1e-14).all()
    largest = from_angles(np.full(5, np.pi / 2), name)  # all angles right, and as many as can be
    assert (d >= 0).all()
    assert (d <= largest * (1 + 4 * EPS)).all()
    turn = frame(rng, N, N)
    moved = [turn @ space @ mixing(rng, space.shape[1]) for space in spaces]
    np.testing.assert_allclose(
        distance(moved, moved, name, dims=dims, pairs="all")[finite], d[finite], atol=1e-12
    )
    apart = k[:, None] != k
    if dims == "metric":
        assert (d[apart] > 0.5).all()


@pytest.mark.parametrize("name", TRUE_METRICS)
def test_triangle_inequality_over_all_dimensions(name, rng):
    spaces, _ = spaces_of_all_dimensions(rng)
    d = distance(spaces, spaces, name, pairs="all")
    assert (d[:, None, :] <= d[:, :, None] + d[None, :, :] + 1e-12).all()


def test_those_without_a_triangle_inequality_really_have_none():
    line = np.array([[np.cos(t), np.sin(t)] for t in (0.0, 0.7, 1.4)])[..., None]
    d = distance(line, line, "martin", pairs="all")
    assert d[0, 2] > d[0, 1] + d[1, 2] + 0.1
    a, plane, b = np.eye(3)[:, :1], np.eye(3)[:, :2], np.eye(3)[:, 1:2]
    sides = [distance(x, y, dims="schubert") for x, y in ((a, plane), (plane, b), (a, b))]
    assert sides[0] + sides[1] < sides[2] - 1


@pytest.mark.parametrize("name", ALL)
def test_one_scale(name):
    """For one small angle, every distance is that angle; relatively right down to 1e-9."""
    theta = np.geomspace(1e-9, 1e-2, 15)
    np.testing.assert_allclose(from_angles(theta[:, None], name), theta, rtol=5e-5)
    assert abs(from_angles([1e-9], name) / 1e-9 - 1) <= 4 * EPS
    assert float(from_angles([0.0], name)) == 0.0
    assert not np.signbit(from_angles([0.0, 0.0], name))


def test_tiny_distances_of_bases(rng):
    a, b = planted(rng, 20, 3, 3, np.array([1e-9, 2e-9, 2e-9]))
    for name in ALL:
        expected = 2e-9 if not METRICS[name].summed else 3e-9
        assert abs(distance(a, b, name) - expected) <= 30 * EPS


def test_order_of_the_distances(rng):
    a, b = rng.standard_normal((50, N, K)), rng.standard_normal((50, N, K))
    b[25:] = a[25:] + 0.2 * b[25:]
    d = distance(a, b, ["asimov", "geodesic", "projection", "chordal", "procrustes"])
    slack = 1 + 1e-12
    assert (d["asimov"] <= d["geodesic"] * slack).all()
    assert (d["projection"] <= d["chordal"] * slack).all()
    assert (d["chordal"] <= d["procrustes"] * slack).all()
    assert (d["procrustes"] <= d["geodesic"] * slack).all()
    assert np.array_equal(d["asimov"], distance(a, b, "asimov"))


def test_lines_in_the_plane():
    t = np.array([1e-9, 0.3, 1.0, np.pi / 2])
    lines = np.stack([np.cos(t), np.sin(t)], axis=-1)[..., None]
    axis = np.eye(2)[:, :1]
    expected = {
        **dict.fromkeys(("geodesic", "asimov", "fubini_study"), t),
        **dict.fromkeys(("chordal", "projection", "binet_cauchy"), np.sin(t)),
        **dict.fromkeys(("procrustes", "spectral"), 2 * np.sin(t / 2)),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(distance(axis, lines, name), values, rtol=1e-6, atol=4 * EPS)
    assert np.isinf(distance(axis, lines, "martin")[-1])


def test_different_dimensions(rng):
    a, b = frame(rng, N, 2), frame(rng, N, 5)
    difference = np.linalg.norm(projector(a) - projector(b))
    ambient = distance(a, b, "chordal", dims="ambient")
    assert ambient == pytest.approx(difference / np.sqrt(2), rel=1e-12)
    contained = b[:, :2] @ mixing(rng, 2)
    for name in ALL:
        assert distance(contained, b, name, dims="schubert") <= 1e-14
        theta = principal_angles(a, b).angles
        padded = np.concatenate([theta, np.full(3, np.pi / 2)])
        expected = from_angles(padded, name)
        assert distance(a, b, name) == pytest.approx(float(expected), rel=1e-12)
        assert from_angles(theta, name, gap=3) == pytest.approx(float(expected), rel=1e-12)
    # the nearest plane inside b is at the Schubert distance
    x = principal_angles(a, b, vectors=True).vectors_b
    assert distance(a, x) == pytest.approx(float(distance(a, b, dims="schubert")), rel=1e-12)
    empty = Subspaces(np.zeros((N, 0)), np.array(0))
    assert float(distance(empty, empty)) == 0.0
    assert distance(empty, a) == pytest.approx(np.sqrt(2) * np.pi / 2)
    assert float(distance(empty, a, dims="schubert")) == 0.0


def test_geodesic_distance_is_that_of_the_angles_not_of_projectors(rng):
    """geomstats 2.8 takes the norm of projectors, which is sqrt(2) times this."""
    a, b = frame(rng, N, K), frame(rng, N, K)
    theta = principal_angles(a, b).angles
    assert distance(a, b) == pytest.approx(np.linalg.norm(theta), rel=1e-13)
    h = 1e-4
    step = projector(geodesic(a, b, h)) - projector(a)
    assert np.linalg.norm(step) / h == pytest.approx(np.sqrt(2) * float(distance(a, b)), rel=1e-6)


def test_libraries_and_dtypes(library, rng):
    a, b = rng.standard_normal((4, N, K)), rng.standard_normal((4, N, K))
    found = distance(library.put(a), library.put(b), "chordal")
    assert library.owns(found)
    assert np.array_equal(library.get(found), distance(a, b, "chordal"))
    low = distance(a.astype(np.float32), b.astype(np.float32), "chordal")
    assert low.dtype == np.float32
    assert np.abs(low - distance(a, b, "chordal")).max() <= 1e-5
    by_span = distance(span(a), span(b), "chordal")
    np.testing.assert_allclose(by_span, distance(a, b, "chordal"), rtol=1e-13)


def test_the_page_shows_the_table():
    page = Path(__file__).parent.parent / "docs" / "workflows" / "subspaces.md"
    if not page.is_file():
        pytest.skip("needs the source tree")
    assert metrics_table() in page.read_text()
