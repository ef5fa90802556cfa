"""Arrays on a CUDA device: whose results are, on which stream, what waits, what is refused."""

import devices
import numpy as np
import pytest
import subspan
from matrices import same_bits
from subspan import Moments, eigh, eigvalsh, qr, svd, svdvals
from subspan.errors import DtypeError, InvalidArgumentError

pytestmark = [pytest.mark.gpu, *devices.QUIET]

DTYPES = [np.float32, np.float64]
FUNCTIONS = [svd, svdvals, eigh, eigvalsh, qr]


@pytest.fixture(params=devices.LIBRARIES)
def gpu(request):
    return devices.library(request.param)


def symmetric(shape, rng):
    a = rng.standard_normal(shape)
    return a + np.swapaxes(a, -1, -2)


def parts(result):
    return result if isinstance(result, tuple) else (result,)


def test_the_device_is_known():
    devices.any_library()
    assert subspan.show_config()["cuda"] is True


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 5), (7, 6, 6), (2, 3, 40, 40)], ids=str)
def test_results_are_of_the_library_dtype_and_device(gpu, function, dtype, shape, rng):
    x = gpu.put(symmetric(shape, rng).astype(dtype))
    for out in parts(function(x)):
        assert gpu.owns(out)
        assert out.device == x.device
        assert out.dtype == x.dtype
        assert out.shape[: len(shape) - 2] == x.shape[: len(shape) - 2]


def test_both_libraries_get_the_same_bits(rng):
    a = symmetric((9, 20, 20), rng)
    first, second = (devices.library(name) for name in devices.LIBRARIES)
    for function in FUNCTIONS:
        left, right = (
            [gpu.get(out) for out in parts(function(gpu.put(a)))] for gpu in (first, second)
        )
        same_bits(*zip(left, right, strict=True))


@pytest.mark.parametrize("function", [svd, eigh])
def test_info_is_on_the_device(gpu, function, rng):
    x = gpu.put(symmetric((2, 3, 5, 5), rng))
    info = function(x, errors="info").info
    assert gpu.owns(info)
    assert info.device == x.device
    assert gpu.get(info).dtype == np.int32
    np.testing.assert_array_equal(gpu.get(info), np.zeros((2, 3)))


# ---- streams -----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [*FUNCTIONS, Moments.update])
def test_work_is_ordered_on_the_current_stream(gpu, function, rng):
    a = symmetric((3, 20, 20), rng)
    if function is Moments.update:
        a = a[0]

        def function(x):
            return gpu.put(Moments().update(x).m2)

    wanted = [gpu.get(out) for out in parts(function(gpu.put(a)))]
    large, source = gpu.large(), gpu.put(a)
    target = gpu.put(np.zeros_like(a))
    gpu.get(target)
    with gpu.stream():
        gpu.busy(large)
        target[...] = source  # what would be zeros to anybody who does not wait for this stream
        results = parts(function(target))
        copies = [out * 1 for out in results]  # also what comes after is ordered
    same_bits(*((gpu.get(out), w) for out, w in zip(copies, wanted, strict=True)))


@pytest.mark.parametrize("shape", [(4, 3), (32, 32), (60, 50), (300, 20)], ids=str)
def test_nothing_waits_without_a_policy_that_must(gpu, shape, rng):
    a = gpu.put(rng.standard_normal((8, *shape)))
    square = gpu.put(symmetric((8, shape[1], shape[1]), rng))
    large = gpu.large()

    def run():
        return (
            *svd(a, nonfinite="propagate", errors="info"),
            *eigh(square, nonfinite="ignore", errors="info"),
        )

    run()  # modules are loaded, memory pools have grown
    gpu.get(gpu.busy(large)[:1])
    with gpu.stream() as stream:
        run()
        stream.synchronize()
        gpu.busy(large)
        results = run()
        assert gpu.pending(stream)
    assert not gpu.get(results[3]).any()


def test_a_policy_that_must_wait_does(gpu, rng):
    a = rng.standard_normal((4, 5, 3))
    a[2, 0, 0] = np.nan
    large, source, target = gpu.large(), gpu.put(a), gpu.put(np.zeros_like(a))
    with gpu.stream():
        gpu.busy(large)
        target[...] = source
        with pytest.raises(InvalidArgumentError, match="matrix 2 of 4"):
            svd(target)


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
def test_refused_dtypes_and_shapes(gpu, function):
    for dtype in (np.float16, np.int32, np.complex64):
        with pytest.raises(DtypeError, match="must be float32 or float64, got"):
            function(gpu.put(np.eye(3).astype(dtype)))
    with pytest.raises(InvalidArgumentError, match="must have 2 or more axes, got 1"):
        function(gpu.put(np.ones(3)))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_are_those_of_the_cpu(function, rng):
    gpu = devices.library("torch")
    a = symmetric((2, 4, 4), rng)
    here = gpu.module.from_numpy(a).requires_grad_()
    there = gpu.put(a).requires_grad_()
    for x in (here, there):  # fourth powers: no signs
        sum(out.pow(4).sum() for out in parts(function(x))).backward()
    gpu.module.testing.assert_close(there.grad.cpu(), here.grad, atol=1e-8, rtol=1e-8)
    with gpu.module.no_grad():
        assert all(not out.requires_grad for out in parts(function(there)))


def test_arrays_on_two_devices_are_refused():
    gpu = devices.library("torch")
    if gpu.module.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    x, w = gpu.put(np.ones((6, 3))), gpu.put(np.ones(6)).to("cuda:1")
    with pytest.raises(DtypeError, match=r"torch, cuda:0\), got torch, cuda:1"):
        Moments().update(x, w)


def test_a_device_other_than_the_current(rng):
    gpu = devices.library("torch")
    if gpu.module.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    a = rng.standard_normal((4, 20, 20))
    wanted = svd(gpu.put(a))
    got = svd(gpu.put(a).to("cuda:1"))
    assert all(out.device.index == 1 for out in got)
    same_bits(*((gpu.get(x), gpu.get(y)) for x, y in zip(got, wanted, strict=True)))
    assert gpu.module.cuda.current_device() == 0
