"""adam_step and gradient_norm on a CUDA device: the formula, rows, layouts, streams."""

import devices
import numpy as np
import pytest
from matrices import same_bits
from subspan import adam_step, gradient_norm
from subspan.errors import DtypeError, InvalidArgumentError
from test_adam import DTYPES, OPTIONS, SHAPES, problem, reference

pytestmark = [pytest.mark.gpu, *devices.QUIET]


@pytest.fixture
def gpu():
    return devices.any_library()


def step(gpu, given, **options):
    on_device = [gpu.put(x) for x in given]
    adam_step(*on_device, step=3, lr=0.05, **options)
    same_bits((gpu.get(on_device[1]), given[1]))  # the gradient is only read
    return [gpu.get(on_device[i]) for i in (0, 2, 3)]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (50, 2048), (9, 2049), (3000, 17)])
def test_the_formula(gpu, name, dtype, shape, rng):
    given = problem(shape, dtype, rng)
    got = step(gpu, given, **OPTIONS[name])
    wanted = reference(*given, step=3, lr=0.05, **OPTIONS[name])
    for x, y in zip(got, wanted, strict=True):
        np.testing.assert_allclose(
            x, y, rtol=1e3 * np.finfo(dtype).eps, atol=1e-5 * (dtype != np.float64)
        )


@pytest.mark.parametrize("name", ["plain", "all"])
def test_rows_do_not_see_each_other(gpu, name, rng):
    given = problem((200, 65), np.float32, rng)
    whole = step(gpu, given, **OPTIONS[name])
    part = step(gpu, [x[50:90].copy() for x in given], **OPTIONS[name])
    same_bits(*((x, y[50:90]) for x, y in zip(part, whole, strict=True)))
    same_bits(*zip(step(gpu, given, **OPTIONS[name]), whole, strict=True))


def test_norms(gpu, rng):
    for dtype in DTYPES:
        for shape in ((1, 1), (7, 33), (300, 130), (3, 40_000), (70_000, 3)):
            w, g, *_ = problem(shape, dtype, rng)
            given = gpu.put(g), gpu.put(w)
            wide, unit = g.astype(np.float64), w.astype(np.float64)
            rest = wide - unit * ((wide * unit).sum(1) / (unit * unit).sum(1))[:, None]
            assert gradient_norm(given[0]) == pytest.approx(np.linalg.norm(wide), rel=1e-12)
            assert gradient_norm(*given) == pytest.approx(np.linalg.norm(rest), rel=1e-9, abs=1e-12)
    assert gradient_norm(gpu.put(np.zeros((0, 4)))) == 0


def test_transposed_memory(gpu, rng):
    given = problem((40, 30), np.float32, rng)
    wanted = step(gpu, given)
    turned = [gpu.put(np.ascontiguousarray(x.T)).swapaxes(0, 1) for x in given]
    adam_step(*turned, step=3, lr=0.05)
    same_bits(*((gpu.get(turned[i]), w) for i, w in zip((0, 2, 3), wanted, strict=True)))
    with pytest.raises(InvalidArgumentError, match="in C order"):
        adam_step(*turned, step=3, unit_rows=True)


@pytest.mark.parametrize("name", devices.LIBRARIES)
def test_the_current_stream_is_used(name):
    gpu = devices.library(name)
    x = gpu.large()
    rows = [gpu.put(np.zeros((64, 64), np.float32)) for _ in range(3)]
    adam_step(rows[0], x[:64, :64] * 1, *rows[1:], step=1)  # what is loaded once, is
    with gpu.stream() as stream:
        late = gpu.busy(x)[:64, :64] * 1
        w, m, v = (late * 0 for _ in range(3))
        adam_step(w, late, m, v, step=1, betas=(0.0, 0.0))
        assert gpu.pending(stream)  # nobody waited
    same_bits((gpu.get(m), gpu.get(late)))


def test_what_is_refused(gpu):
    x = [gpu.put(np.ones((4, 3))) for _ in range(4)]
    with pytest.raises(DtypeError, match="on the device of w"):
        adam_step(x[0], np.ones((4, 3)), *x[2:], step=1)
    with pytest.raises(InvalidArgumentError, match="must not overlap"):
        adam_step(x[0], x[0], *x[2:], step=1)
