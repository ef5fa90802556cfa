"""adam_step and gradient_norm: formula, torch, rows, bits, layouts, what passes, refusals."""

import itertools
import math

import numpy as np
import pytest
import subspan
from matrices import same_bits
from subspan import _core, adam_step, gradient_norm
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

DTYPES = [np.float32, np.float64]
SHAPES = (
    *((1, 1), (5,), (3, 31), (2, 32), (7, 33), (4, 3, 10)),
    *((1, 40000), (300, 130), (0, 4)),
)
OPTIONS = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "scale": {"scale": 0.25},
    "limit": {"row_limit": 0.7},
    "parallel": {"remove_parallel": True},
    "unit": {"unit_rows": True},
    "momentless": {"betas": (0.0, 0.0)},
    "all": {
        "weight_decay": 0.01,
        "scale": 0.5,
        "row_limit": 1.0,
        "remove_parallel": True,
        "unit_rows": True,
        "betas": (0.4, 0.9),
        "eps": 1e-3,
    },
}


def problem(shape, dtype, rng):
    """Weights, gradient, and running means as after some steps."""
    w, g, m = (rng.standard_normal(shape).astype(dtype) for _ in range(3))
    return w, g, m / 4, rng.random(shape).astype(dtype)


def reference(
    w, g, m, v, *, step, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, scale=1.0,
    row_limit=None, remove_parallel=False, unit_rows=False,
):  # fmt: skip
    """What the docstring says, in float64."""
    w, g, m, v = (x.astype(np.float64) for x in (w, g, m, v))
    if remove_parallel:
        g = g - w * ((g * w).sum(-1, keepdims=True) / (w * w).sum(-1, keepdims=True))
    g = g * scale
    if row_limit is not None:
        g = g * (row_limit / np.maximum(np.linalg.norm(g, axis=-1, keepdims=True), row_limit))
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g * g
    w = (1 - lr * weight_decay) * w
    w = w - lr / (1 - betas[0] ** step) * m / (np.sqrt(v / (1 - betas[1] ** step)) + eps)
    if unit_rows:
        w = w / np.linalg.norm(w, axis=-1, keepdims=True)
    return w, m, v


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_formula(name, dtype, rng):
    tolerance = 40 * np.finfo(dtype).eps
    for shape, step in itertools.product(SHAPES, (1, 7)):
        w, g, m, v = problem(shape, dtype, rng)
        wanted = reference(w, g, m, v, step=step, lr=0.01, **OPTIONS[name])
        kept = g.copy()
        adam_step(w, g, m, v, step=step, lr=0.01, **OPTIONS[name])
        same_bits((g, kept))
        for got, right in zip((w, m, v), wanted, strict=True):
            assert np.abs(got - right).max(initial=0) <= tolerance * max(
                np.abs(right).max(initial=0), 1
            ), (shape, step)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_as_torch(kind, dtype, rng):
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, dtype)
    decay = 0.1 if kind == "AdamW" else 0.0
    start = torch.from_numpy(rng.standard_normal((40, 97))).to(dtype)
    theirs = torch.nn.Parameter(start.clone())
    optimizer = getattr(torch.optim, kind)(
        [theirs], lr=3e-3, betas=(0.9, 0.99), eps=6e-10, weight_decay=decay, foreach=False
    )
    ours, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, 21):
        gradient = torch.from_numpy(rng.standard_normal((40, 97))).to(dtype)
        theirs.grad = gradient.clone()
        optimizer.step()
        adam_step(
            ours, gradient, m, v, step=step, lr=3e-3, betas=(0.9, 0.99), eps=6e-10,
            weight_decay=decay,
        )  # fmt: skip
    state = optimizer.state[theirs]
    # Rounding alone: 20 steps of a few units in the last place of weights of about 1.
    assert (ours - theirs).abs().max() <= 20 * torch.finfo(dtype).eps
    for mine, name in ((m, "exp_avg"), (v, "exp_avg_sq")):
        assert (mine - state[name]).abs().max() <= 4 * torch.finfo(dtype).eps


def test_the_means_have_the_bits_of_torch(rng):
    torch = pytest.importorskip("torch")
    if subspan.cpu_level() == "baseline" or "AVX" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("one of the two has no fused products here")
    for first in (0.9, 0.0):
        start = torch.from_numpy(rng.standard_normal((33, 41))).float()
        theirs = torch.nn.Parameter(start.clone())
        optimizer = torch.optim.Adam([theirs], betas=(first, 0.999), foreach=False)
        m, v = torch.zeros_like(start), torch.zeros_like(start)
        for step in range(1, 6):
            theirs.grad = torch.from_numpy(rng.standard_normal((33, 41))).float()
            optimizer.step()
            adam_step(start, theirs.grad, m, v, step=step, betas=(first, 0.999))
        state = optimizer.state[theirs]
        assert torch.equal(m, state["exp_avg"])
        assert torch.equal(v, state["exp_avg_sq"])


# ---- rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_first_step_without_the_parallel_part_is_orthogonal_to_its_row(dtype, rng):
    w, g, m, v = problem((50, 64), dtype, rng)
    before = w.copy()
    m[:], v[:] = 0, 0
    adam_step(w, g, m, v, step=1, remove_parallel=True)
    along = np.einsum("ij,ij->i", m.astype(np.float64), before.astype(np.float64))
    assert np.abs(along).max() <= 20 * np.finfo(dtype).eps
    along_g = gradient_norm(g, before)
    rest = np.linalg.norm(m.astype(np.float64)) / (1 - 0.9)
    assert abs(rest - along_g) <= 20 * np.finfo(dtype).eps * along_g


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_become_unit_rows(dtype, rng):
    w, g, m, v = problem((60, 77), dtype, rng)
    w *= rng.choice([1e-15, 1.0, 1e15], (60, 1)).astype(dtype)
    w[3] = 0
    g[3] = m[3] = 0
    adam_step(w, g, m, v, step=3, lr=0.0, unit_rows=True, remove_parallel=True)
    lengths = np.linalg.norm(w.astype(np.float64), axis=1)
    assert lengths[3] == 0
    assert np.abs(np.delete(lengths, 3) - 1).max() <= 2 * np.finfo(dtype).eps


def test_squares_neither_overflow_nor_vanish(rng):
    """Lengths are summed in float64: float32 rows of any size have one."""
    for size in (1e-30, 1e30):
        g = (rng.standard_normal((9, 50)) * size).astype(np.float32)
        norm = np.linalg.norm(g.astype(np.float64))
        assert abs(gradient_norm(g) - norm) <= 1e-14 * norm
        w, m, v = (np.zeros_like(g) for _ in range(3))
        adam_step(w, g, m, v, step=1, row_limit=1e-3, betas=(0.0, 0.0))
        longest = np.linalg.norm(m.astype(np.float64), axis=1).max()
        assert longest <= 1e-3 * (1 + 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(dtype, rng):
    for shape in SHAPES:
        w, g, *_ = (x.astype(np.float64) for x in problem(shape, dtype, rng))
        rest = g
        if w.size:
            rest = g - w * ((g * w).sum(-1, keepdims=True) / (w * w).sum(-1, keepdims=True))
        wanted = np.linalg.norm(g), np.linalg.norm(rest)
        got = gradient_norm(g.astype(dtype)), gradient_norm(g.astype(dtype), w.astype(dtype))
        assert np.allclose(got, wanted, rtol=1e-13, atol=1e-6 if shape == (1, 1) else 1e-13)


def test_a_clip_by_the_norm_of_all(rng):
    w, g, m, v = problem((20, 30), np.float64, rng)
    m[:] = 0
    adam_step(w, g, m, v, step=1, scale=min(1, 2.0 / gradient_norm(g)), betas=(0.0, 0.9))
    assert math.isclose(np.linalg.norm(m), 2.0, rel_tol=1e-14)


# ---- bits and layouts ------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_bits_do_not_depend_on_the_threads(name, threads, rng):
    given = problem((1000, 70), np.float32, rng)
    results = []
    for n in (1, 2, 3):
        threads(n)
        w, g, m, v = (x.copy() for x in given)
        adam_step(w, g, m, v, step=2, **OPTIONS[name])
        results.append((w, m, v, np.float64([gradient_norm(g), gradient_norm(g, w)])))
    for other in results[1:]:
        same_bits(*zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", OPTIONS)
def test_rows_do_not_see_each_other(name, rng):
    given = problem((11, 45), np.float32, rng)
    w, g, m, v = (x.copy() for x in given)
    adam_step(w, g, m, v, step=2, **OPTIONS[name])
    for row in (0, 7, 10):
        one = [x[row].copy() for x in given]
        adam_step(*one, step=2, **OPTIONS[name])
        same_bits(*((a, b[row]) for a, b in zip(one, (w, g, m, v), strict=True)))


def test_transposed_memory_and_torch(rng):
    torch = pytest.importorskip("torch")
    given = problem((40, 13), np.float32, rng)
    w, g, m, v = (x.copy() for x in given)
    adam_step(w, g, m, v, step=2, weight_decay=0.1)
    turned = [np.asfortranarray(x) for x in given]
    adam_step(*turned, step=2, weight_decay=0.1)
    tensors = [torch.from_numpy(x.copy()) for x in given]
    versions = [x._version for x in tensors]
    adam_step(*tensors, step=2, weight_decay=0.1)
    for got, other, tensor in zip((w, g, m, v), turned, tensors, strict=True):
        same_bits((got, np.ascontiguousarray(other)), (got, tensor.numpy()))
    changed = [tensor._version > old for tensor, old in zip(tensors, versions, strict=True)]
    assert changed == [True, False, True, True]


def test_a_parameter_inside_no_grad():
    torch = pytest.importorskip("torch")
    w = torch.nn.Parameter(torch.ones(3, 4))
    loss = (w * w).sum()
    loss.backward()
    m, v = torch.zeros(3, 4), torch.zeros(3, 4)
    with pytest.raises(UnsupportedError, match="no_grad"):
        adam_step(w, w.grad, m, v, step=1)
    with torch.no_grad():
        adam_step(w, w.grad, m, v, step=1, lr=0.5)
    assert torch.allclose(w, torch.full((3, 4), 0.5))


def test_what_is_not_finite_stays_where_it_is(rng):
    w, g, m, v = problem((4, 20), np.float32, rng)
    g[1, 3], g[2, 4] = np.nan, np.inf
    rows = [x.copy() for x in (w, g, m, v)]
    adam_step(w, g, m, v, step=1)
    assert np.isnan(w[1, 3])
    assert np.isfinite(np.delete(w.ravel(), [23, 44])).all()
    adam_step(*rows, step=1, remove_parallel=True)
    assert np.isnan(rows[0][1]).all()
    assert np.isfinite(rows[0][[0, 3]]).all()


# ---- refusals --------------------------------------------------------------------------------


def arrays(**change):
    given = {name: np.ones((3, 4)) for name in "wgmv"} | change
    return [given[name] for name in "wgmv"]


READ_ONLY = np.ones((3, 4))
READ_ONLY.flags.writeable = False
SHARED = np.ones((3, 4))


@pytest.mark.parametrize(
    ("change", "options", "kind", "text"),
    [
        ({"w": [1.0]}, {}, DtypeError, "w must be an array"),
        ({"w": np.ones((3, 4), int)}, {}, DtypeError, "w must be float32 or float64, got int64"),
        ({"g": np.ones((3, 4), "f4")}, {}, DtypeError, "g must be float64 like w, got float32"),
        ({"m": np.ones((4, 3))}, {}, InvalidArgumentError, r"m must have the shape of w, \(3, 4\)"),
        ({"w": np.float64(1)[...]}, {}, InvalidArgumentError, "w must have 1 or more axes"),
        (
            {"v": np.ones((3, 8))[:, ::2]},
            {},
            InvalidArgumentError,
            "v must lie in one memory order",
        ),
        ({"g": np.ones((4, 3)).T}, {}, InvalidArgumentError, "g must lie in one memory order"),
        ({"w": READ_ONLY}, {}, InvalidArgumentError, "w must be writable"),
        ({"m": SHARED, "v": SHARED}, {}, InvalidArgumentError, "must not overlap"),
        ({}, {"step": 0}, InvalidArgumentError, "step must be >= 1, got 0"),
        ({}, {"step": 1.0}, DtypeError, "step must be an integer"),
        ({}, {"lr": -1.0}, InvalidArgumentError, "lr must be in"),
        ({}, {"lr": math.inf}, InvalidArgumentError, "lr must be in"),
        ({}, {"betas": (1.0, 0.9)}, InvalidArgumentError, r"betas\[0\] must be in"),
        ({}, {"betas": (0.9, math.nan)}, InvalidArgumentError, r"betas\[1\] must be in"),
        ({}, {"betas": 0.9}, DtypeError, "betas must be two numbers, got 0.9"),
        ({}, {"eps": -1e-9}, InvalidArgumentError, "eps must be in"),
        ({}, {"weight_decay": "0"}, DtypeError, "weight_decay must be a number"),
        ({}, {"scale": math.nan}, InvalidArgumentError, "scale must be in"),
        ({}, {"row_limit": 0.0}, InvalidArgumentError, "row_limit must be in"),
    ],
)
def test_refusals(change, options, kind, text):
    given = arrays(**change)
    with pytest.raises(kind, match=r"\[adam_step\] .*" + text):
        adam_step(*given, **{"step": 1} | options)
    assert all((np.asarray(x) == 1).all() for x in given)


@pytest.mark.parametrize(
    "options", [{"row_limit": 1.0}, {"remove_parallel": True}, {"unit_rows": True}]
)
def test_rows_must_lie_in_rows(options):
    turned = [np.asfortranarray(x) for x in arrays()]
    with pytest.raises(InvalidArgumentError, match="w must lie in C order"):
        adam_step(*turned, step=1, **options)
    with pytest.raises(InvalidArgumentError, match=r"\[gradient_norm\] g must lie in C order"):
        gradient_norm(turned[0], turned[1])


def test_the_core_refuses_too():
    numbers = {"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 0.0, "weight_decay": 0.0}
    numbers |= {"scale": 1.0, "row_limit": 0.0, "remove_parallel": False, "unit_rows": False}
    for name, value in (("step", 0), ("lr", -1.0), ("beta1", 1.0), ("scale", math.nan)):
        with pytest.raises(InvalidArgumentError, match=name):
            _core.adam_step(*arrays(), **numbers | {name: value})
    with pytest.raises(InvalidArgumentError, match=r"g must have shape \(3, 4\), got \(2, 4\)"):
        _core.adam_step(*arrays(g=np.ones((2, 4))), **numbers)
    with pytest.raises(InvalidArgumentError, match="v must be in C order"):
        _core.adam_step(*arrays(v=np.ones((4, 3)).T), **numbers)
    with pytest.raises(InvalidArgumentError, match="w must have shape"):
        _core.gradient_norm(np.ones((3, 4)), np.ones((3, 5)))


def test_cuda_arrays_of_other_libraries_are_refused():
    from test_interop import CUDA, Producer

    on_device = [Producer(x, device=CUDA) for x in arrays()]
    with pytest.raises(UnsupportedError, match=r"w must be of torch or cupy to be on a CUDA"):
        adam_step(*on_device, step=1)
    with pytest.raises(UnsupportedError, match=r"\[gradient_norm\] g must be of torch or cupy"):
        gradient_norm(on_device[0])
    if not _core.has_cuda():
        with pytest.raises(UnsupportedError, match="no CUDA"):
            _core.adam_step(*on_device, 1, 0.1, 0.9, 0.9, 0.1, 0.0, 1.0, 0.0, False, False)
        with pytest.raises(UnsupportedError, match="no CUDA"):
            _core.gradient_norm(on_device[0], None)
