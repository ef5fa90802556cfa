"""Sparse dictionaries: planted structure, monotone objectives, exactness, refusals."""

import numpy as np
import pytest
from subspan.compression import Dense, sparse_dictionary, truncated_svd, whitened_svd
from subspan.compression import dictionary as dictionaries
from subspan.compression._pursuit import damped_root, pursue
from subspan.errors import InvalidArgumentError

HOW = ["ksvd", "orthogonal"]


def union(rng, n=32, planes=8, dimension=3, each=32, noise=0.0):
    """Rows from several subspaces, shuffled."""
    parts = [rng.normal(size=(each, dimension)) @ rng.normal(size=(dimension, n)) / n**0.5
             for _ in range(planes)]  # fmt: skip
    rows = np.concatenate(parts)
    return rng.permutation(rows + noise * rng.normal(size=rows.shape))


def slow_pursuit(signal, atoms, sparsity):
    """Textbook matching pursuit with least squares, one signal at a time."""
    chosen, rest = [], signal
    for _ in range(sparsity):
        scores = np.abs(atoms @ rest)
        scores[chosen] = -1
        chosen.append(int(scores.argmax()))
        x, *_ = np.linalg.lstsq(atoms[chosen].T, signal, rcond=None)
        rest = signal - x @ atoms[chosen]
    return chosen, x, rest @ rest


@pytest.mark.parametrize(("m", "n", "k", "s"), [(9, 12, 30, 4), (5, 20, 20, 20), (7, 6, 3, 1)])
def test_pursuit_equals_the_textbook(rng, m, n, k, s):
    signals, atoms = rng.normal(size=(m, n)), rng.normal(size=(k, n))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    found = pursue(signals, atoms, s)
    for row, signal in enumerate(signals):
        chosen, values, error = slow_pursuit(signal, atoms, s)
        assert found.indices[row].tolist() == chosen
        assert np.allclose(found.values[row], values)
        assert found.errors[row] == pytest.approx(error, abs=1e-9)


def test_roots_of_matrices_without_full_rank(rng):
    a = rng.normal(size=(3, 5, 2))
    grams = np.concatenate([a @ a.mT, np.zeros((1, 5, 5)), -np.eye(5)[None]])
    root = damped_root(grams)
    assert np.allclose(root[:3] @ root[:3].mT, grams[:3], atol=1e-12)
    assert np.allclose(root[3], np.eye(5))
    assert np.allclose(root[4] @ root[4].T, 5 * np.eye(5))  # not semidefinite: a short step


@pytest.mark.parametrize("power", [1, 3])
def test_no_group_of_atoms_makes_the_error_larger(rng, monkeypatch, power):
    signals = rng.normal(size=(50, 20))
    for group in (1, 3, 16, 40):
        monkeypatch.setattr(dictionaries, "_GROUP", group)
        atoms = rng.normal(size=(30, 20))
        atoms[5:7] = atoms[4]  # twins
        atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
        codes = rng.normal(size=(50, 30)) * (rng.uniform(size=(50, 30)) < 0.2)
        codes[:, 9] = 0
        state = dictionaries._State(atoms, codes, None)
        new, fitted = dictionaries._updated(signals, state, power)
        before, after = (
            np.linalg.norm(signals - c @ a) for c, a in ((codes, atoms), (fitted, new))
        )
        assert after < 0.9 * before
        assert not (fitted != 0)[codes == 0].any()
        assert np.allclose(np.linalg.norm(new, axis=1), 1)
        assert np.allclose(new[9], atoms[9])


def test_groups_of_one_are_power_iterations(rng, monkeypatch):
    monkeypatch.setattr(dictionaries, "_GROUP", 1)
    signals, atom = rng.normal(size=(40, 9)), rng.normal(size=(1, 9))
    atom /= np.linalg.norm(atom)
    state = dictionaries._State(atom, signals @ atom.T, None)
    new, codes = dictionaries._updated(signals, state, 300)
    u, s, vh = np.linalg.svd(signals)
    assert abs(new[0] @ vh[0]) == pytest.approx(1, abs=1e-9)
    assert np.allclose(np.abs(codes[:, 0]), np.abs(u[:, 0] * s[0]), atol=1e-6)


def test_pivots_are_the_farthest_rows(rng):
    rows = rng.normal(size=(12, 30)) * np.arange(1, 13)[:, None]
    rest, wanted = rows.copy(), []
    for _ in range(7):
        wanted.append(int(np.square(rest).sum(1).argmax()))
        direction = rest[wanted[-1]] / np.linalg.norm(rest[wanted[-1]])
        rest -= np.outer(rest @ direction, direction)
    found = dictionaries._pivots(rows, 7, np.random.default_rng(0))
    unit = rows[wanted] / np.linalg.norm(rows[wanted], axis=1, keepdims=True)
    assert np.allclose(found, unit)


def test_pursuit_of_dependent_atoms_and_zero_signals():
    atoms = np.repeat(np.eye(4)[:2], 3, axis=0)
    signals = np.array([[1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = pursue(signals, atoms, 5)
    assert np.isfinite(found.values).all()
    codes = np.zeros((2, 6))
    np.put_along_axis(codes, found.indices, found.values, axis=1)
    assert np.allclose(codes @ atoms, [[1, 2, 0, 0], [0, 0, 0, 0]])
    assert found.errors.tolist() == pytest.approx([9.0, 0.0])
    assert all(len(set(row)) == 5 for row in found.indices.tolist())


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(3))
def test_a_union_of_subspaces_costs_half_of_low_rank(noise, seed):
    rng = np.random.default_rng(seed)
    w = union(rng, noise=noise)
    x = rng.normal(size=(200, 32)) @ (rng.normal(size=(32, 32)) * 10.0 ** -np.linspace(0, 1, 32))
    g = x.T @ x
    found = sparse_dictionary(w, g, kept=0.4, ratio=8.0, iterations=30)
    low = whitened_svd(w, g).cut(kept=0.4)
    assert found.storage().n_bytes <= 0.4 * w.size * 2
    assert found.error <= 0.5 * low.error
    measured = np.linalg.norm((w - found.to_dense()) @ x.T)
    assert found.error == pytest.approx(measured, rel=1e-6)
    assert found.total == pytest.approx(np.linalg.norm(w @ x.T), rel=1e-9)


@pytest.mark.parametrize("how", HOW)
def test_a_single_subspace_costs_no_more_than_low_rank(rng, how):
    w = rng.normal(size=(160, 6)) @ rng.normal(size=(6, 40)) + 0.05 * rng.normal(size=(160, 40))
    low = truncated_svd(w).cut(kept=0.5)
    found = sparse_dictionary(w, kept=0.5, dictionary=how)
    assert found.storage().n_bytes <= low.storage().n_bytes + 2 * (160 + 40)
    assert found.error <= 1.05 * low.error


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_objective_never_rises(rng, how, dtype):
    w = union(rng, noise=0.1).astype(dtype)
    scale = rng.uniform(0.2, 3, len(w))
    found = sparse_dictionary(
        w, np.cov(rng.normal(size=(32, 90))), atoms=20, sparsity=4, dictionary=how,
        importance=scale, tol=0.0, iterations=12,
    )  # fmt: skip
    history = np.array(found.history)
    assert len(history) == 13
    assert (np.diff(history) <= 1e-6 * history[0]).all()
    assert history[-1] < 0.97 * history[0]
    assert found.values.shape == found.indices.shape == (256, 4)
    assert (np.diff(found.indices, axis=1) > 0).all()
    assert (np.count_nonzero(found.codes(), axis=0) <= 4).all()
    assert found.dictionary.shape == (32, 20)
    assert found.error == pytest.approx(history[-1], rel=1e-3)
    assert np.allclose(found.to_dense(), (found.dictionary @ found.codes()).T, atol=1e-5)


@pytest.mark.parametrize("how", HOW)
def test_all_atoms_for_every_row_is_exact(rng, how):
    w = rng.normal(size=(30, 12))
    g = np.cov(rng.normal(size=(12, 40)))
    found = sparse_dictionary(w, g, atoms=12, sparsity=12, dictionary=how)
    assert np.allclose(found.to_dense(), w, atol=1e-8)
    assert found.relative_error < 1e-7


def test_an_orthogonal_dictionary_is_orthonormal_in_the_norm_of_the_inputs(rng):
    w, mix = union(rng), rng.normal(size=(32, 32))
    g = mix @ mix.T
    found = sparse_dictionary(w, g, kept=0.5, dictionary="orthogonal")
    d = found.dictionary
    assert np.allclose(d.T @ g @ d, np.eye(d.shape[1]), atol=1e-3)


def test_what_matters_is_coded_better(rng):
    w = rng.normal(size=(80, 24))
    weight = np.where(np.arange(80) < 8, 100.0, 1.0)
    plain, weighted = (
        sparse_dictionary(w, atoms=16, sparsity=4, importance=i, iterations=10)
        for i in (None, weight)
    )
    rest = [np.linalg.norm((w - one.to_dense())[:8]) for one in (plain, weighted)]
    assert rest[1] < 0.9 * rest[0]


def test_unused_and_twin_atoms_are_renewed(rng):
    w = np.concatenate([np.repeat(np.eye(6)[:1], 40, axis=0), rng.normal(size=(10, 6))])
    found = sparse_dictionary(w, atoms=5, sparsity=2, iterations=20)
    d = found.dictionary / np.linalg.norm(found.dictionary, axis=0)
    assert (np.tril(np.abs(d.T @ d), -1) < 0.99).all()
    assert found.codes().any(axis=1).all()


@pytest.mark.parametrize("how", HOW)
def test_more_atoms_than_rows_and_singular_grams(rng, how):
    w = rng.normal(size=(4, 9))
    x = rng.normal(size=(3, 9))
    found = sparse_dictionary(w, x.T @ x, atoms=9, sparsity=3, dictionary=how)
    assert np.isfinite(found.to_dense()).all()
    assert found.relative_error < 1e-2
    zero = sparse_dictionary(0 * w, np.zeros((9, 9)), atoms=4, sparsity=2, dictionary=how)
    assert not zero.to_dense().any()


def test_torch_and_seeds(rng):
    torch = pytest.importorskip("torch")
    w = union(rng, noise=0.1)
    one, two = (sparse_dictionary(w, atoms=20, sparsity=3, seed=5, iterations=4) for _ in range(2))
    assert np.array_equal(one.to_dense(), two.to_dense())
    made = sparse_dictionary(torch.from_numpy(w), atoms=20, sparsity=3, seed=5, iterations=4)
    assert torch.is_tensor(made.dictionary)
    assert torch.is_tensor(made.indices)
    assert np.array_equal(made.to_dense().numpy(), one.to_dense())


def test_a_dictionary_that_grows_says_so(rng):
    w = rng.normal(size=(20, 30))
    assert sparse_dictionary(w, kept=0.9, iterations=1).note == ""
    grown = sparse_dictionary(w, atoms=30, sparsity=20, iterations=1)
    assert grown.note.startswith("takes 2.")
    whole = sparse_dictionary(w, kept=1.0)
    assert isinstance(whole, Dense)
    assert whole.note.startswith("kept dense")
    assert whole.to_dense() is w


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "kept, or both of atoms and sparsity, must be given"),
        ({"kept": 0.5, "atoms": 4}, "kept, or both of atoms and sparsity, must be given"),
        ({"atoms": 4}, "kept, or both of atoms and sparsity, must be given"),
        ({"atoms": 4, "sparsity": 5}, r"sparsity must be in 1\.\.4, got 5"),
        ({"atoms": 9, "sparsity": 2, "dictionary": "orthogonal"}, "atoms must be at most 8"),
        ({"kept": 0.5, "dictionary": "wavelet"}, "dictionary must be one of"),
        ({"kept": 0.5, "ratio": 0.5}, "ratio must be in"),
        ({"kept": 0.001}, "kept must leave room for one atom a row"),
        ({"kept": 0.5, "iterations": 0}, "iterations must be >= 1"),
        ({"kept": 0.5, "gram": np.full((8, 8), np.nan)}, "gram of matrix 0 must be finite"),
        ({"kept": 0.5, "gram": np.eye(9)}, r"gram must be \(8, 8\)"),
        ({"kept": 0.5, "importance": np.ones(9)}, r"importance must be \(20,\)"),
        ({"kept": 0.5, "gram": np.eye(8), "ridge": 0.0}, "ridge must be in"),
    ],
)
def test_what_is_refused(rng, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        sparse_dictionary(rng.normal(size=(20, 8)), **options)


def test_a_stack_is_refused(rng):
    with pytest.raises(InvalidArgumentError, match="weight must have 2 axes, got 3"):
        sparse_dictionary(rng.normal(size=(2, 5, 6)), kept=0.5)
