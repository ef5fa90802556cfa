"""The soft nearest-neighbour loss: facts, a dense reference, gradients, tiny temperatures."""

import numpy as np
import pytest
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.neighbors import annealed_temperature, soft_nearest_neighbor_loss


def reference(x, labels, temperature=1.0, metric="sqeuclidean"):
    """Row by row, with logarithms of sums."""
    x = np.asarray(x, np.float64)
    if metric == "cosine":
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        d = 1 - unit @ unit.T
    else:
        d = np.square(x[:, None] - x).sum(-1)
    terms = []
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        same = others & (labels == labels[i])
        if same.any():
            logs = [np.logaddexp.reduce(-d[i][kept] / temperature) for kept in (same, others)]
            terms.append(logs[1] - logs[0])
    return np.mean(terms) if terms else 0.0


@pytest.mark.parametrize(("dtype", "limit"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine"])
@pytest.mark.parametrize("temperature", [1e-3, 0.3, 1.0, 50.0])
def test_the_definition(temperature, metric, dtype, limit, rng):
    for n, d in ((2, 1), (63, 2), (130, 20)):
        x = (rng.standard_normal((n, d)) + 2).astype(dtype)
        labels = rng.integers(0, 3, n)
        found = soft_nearest_neighbor_loss(x, labels, temperature=temperature, metric=metric)
        assert isinstance(found, float)
        wanted = reference(x, labels, temperature, metric)
        assert abs(found - wanted) <= limit * max(1, abs(wanted))


def test_facts(rng):
    x = rng.standard_normal((50, 4))
    labels = rng.integers(0, 4, 50)
    assert abs(soft_nearest_neighbor_loss(x, np.zeros(50, int))) < 1e-14
    counts = np.bincount(labels)[labels]
    wanted = -np.log((counts - 1) / 49)[counts > 1].mean()
    equal = soft_nearest_neighbor_loss(np.ones((50, 4)), labels)
    assert np.isclose(equal, wanted, rtol=1e-13)
    hot = soft_nearest_neighbor_loss(x, labels, temperature=1e12)
    assert np.isclose(hot, wanted, rtol=1e-9)
    assert soft_nearest_neighbor_loss(x, np.arange(50)) == 0  # no row has a partner
    # T -> 0: T L tends to the mean of nearest of the class less nearest of all.
    d = np.square(x[:, None] - x).sum(-1) + np.diag(np.full(50, np.inf))
    same = np.where(labels[:, None] == labels, d, np.inf).min(1)
    cold = 1e-9 * soft_nearest_neighbor_loss(x, labels, temperature=1e-9)
    assert np.isclose(cold, (same - d.min(1)).mean(), rtol=1e-6)


def test_three_rows_by_hand():
    x = np.array([[0.0], [1.0], [3.0]])
    e = np.exp
    rows = [-np.log(e(-1) / (e(-1) + e(-9))), -np.log(e(-1) / (e(-1) + e(-4)))]
    found = soft_nearest_neighbor_loss(x, np.array([7, 7, 8]))
    assert np.isclose(found, np.mean(rows), rtol=1e-14)


def test_rows_far_from_the_origin(rng):
    x = np.round(rng.standard_normal((80, 8)) * 1024) / 1024
    labels = rng.integers(0, 2, 80)
    near = soft_nearest_neighbor_loss(x, labels)
    assert np.isclose(soft_nearest_neighbor_loss(x + 1e6, labels), near, rtol=1e-9)


def dense_loss(x, labels, temperature, metric):
    import torch

    if metric == "cosine":
        unit = x / x.norm(dim=1, keepdim=True)
        d = 1 - unit @ unit.T
    else:
        d = (x[:, None] - x).square().sum(-1)
    own = torch.eye(len(x), dtype=torch.bool)
    scores = (-d / temperature).masked_fill(own, -torch.inf)
    same = labels[:, None] == labels
    kept = (same & ~own).any(1)
    within = scores.masked_fill(~same, -torch.inf)[kept].logsumexp(1)
    return (scores[kept].logsumexp(1) - within).mean()


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine"])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_gradients_are_those_of_the_dense_loss(metric, temperature):
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    x = (torch.randn(150, 5, dtype=torch.float64) + 3).requires_grad_()
    labels = torch.randint(0, 4, (150,))
    labels[7] = 99  # without a partner
    heat = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    ours = soft_nearest_neighbor_loss(x, labels, temperature=heat, metric=metric)
    wanted = dense_loss(x, labels, heat, metric)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    got, expected = (torch.autograd.grad(3 * loss, (x, heat)) for loss in (ours, wanted))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_gradients_in_float32_and_without_partners():
    torch = pytest.importorskip("torch")
    torch.manual_seed(2)
    x = torch.randn(70, 3, requires_grad=True)
    labels = torch.randint(0, 2, (70,))
    loss = soft_nearest_neighbor_loss(x, labels)
    assert loss.dtype == torch.float32
    loss.backward()
    exact = x.detach().double().requires_grad_()
    dense_loss(exact, labels, 1.0, "sqeuclidean").backward()
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)
    alone = torch.randn(4, 3, requires_grad=True)
    soft_nearest_neighbor_loss(alone, torch.arange(4)).backward()
    assert not alone.grad.any()


def test_classes_are_pulled_apart():
    """Points of two mixed classes, moved by the loss alone as the temperature falls."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    x = torch.randn(60, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(60) % 2
    optimizer = torch.optim.Adam([x], lr=0.05)
    for epoch in range(60):
        optimizer.zero_grad()
        heat = annealed_temperature(epoch)
        soft_nearest_neighbor_loss(x, labels, temperature=heat).backward()
        optimizer.step()
    assert soft_nearest_neighbor_loss(x.detach(), labels, temperature=heat) < 0.05


def test_libraries(library, rng):
    x, labels = rng.standard_normal((40, 3)), rng.integers(0, 3, 40)
    found = soft_nearest_neighbor_loss(library.put(x), library.put(labels))
    assert float(found) == soft_nearest_neighbor_loss(x, labels)


X, LABELS = np.ones((4, 2)), np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": X[0]}, InvalidArgumentError, "x must have 2 axes"),
        ({"x": X[:1], "labels": LABELS[:1]}, InvalidArgumentError, "at least 2 rows"),
        ({"x": X * np.nan}, InvalidArgumentError, "x must be finite"),
        ({"x": X.astype(int)}, DtypeError, "float32 or float64"),
        ({"labels": LABELS[:3]}, InvalidArgumentError, "labels must have shape (4,)"),
        ({"labels": LABELS * 1.0}, DtypeError, "integers or bools"),
        ({"labels": [0, 0, 1, 1]}, DtypeError, "labels must be an array"),
        ({"temperature": 0.0}, InvalidArgumentError, "temperature must be > 0"),
        ({"temperature": np.inf}, InvalidArgumentError, "temperature must be > 0"),
        ({"temperature": "hot"}, DtypeError, "temperature must be a number"),
        ({"metric": "l1"}, InvalidArgumentError, "metric must be one of"),
        ({"x": 0 * X, "metric": "cosine"}, InvalidArgumentError, "no row of zeros"),
    ],
)
def test_refusals(change, error, text):
    with pytest.raises(error, match=r"^\[soft_nearest_neighbor_loss\] ") as raised:
        soft_nearest_neighbor_loss(**({"x": X, "labels": LABELS} | change))
    assert text in str(raised.value)


def test_annealing():
    assert annealed_temperature(0) == 1
    assert np.isclose(annealed_temperature(3, gamma=0.5), 0.5)
    for arguments in ((-1,), (0.0, -0.1)):
        with pytest.raises(InvalidArgumentError, match=r"^\[annealed_temperature\]"):
            annealed_temperature(arguments[0], **{"gamma": arguments[1]} if arguments[1:] else {})


def test_a_temperature_that_learns_needs_tensors():
    torch = pytest.importorskip("torch")
    heat = torch.tensor(1.0, requires_grad=True)
    with pytest.raises(DtypeError, match="require no gradient where x is no tensor"):
        soft_nearest_neighbor_loss(X, LABELS, temperature=heat)
