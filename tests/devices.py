"""CUDA arrays of torch and cupy, for the tests marked gpu."""

import contextlib
import importlib
import warnings

import numpy as np
import pytest
import subspan

# Warnings of ours are errors, as everywhere; those of the libraries are theirs.
QUIET = [pytest.mark.filterwarnings(rf"ignore::Warning:{name}(\.|$)") for name in ("torch", "cupy")]
LIBRARIES = ("torch", "cupy")


class Torch:
    """Tensors on the current CUDA device."""

    name = "torch"
    where = "cuda"

    def __init__(self, module):
        self.module = module

    def put(self, x):
        return self.module.from_numpy(np.array(x, order="C")).to(self.where)

    def get(self, x):
        assert self.owns(x)
        return x.cpu().numpy()

    def owns(self, x):
        return isinstance(x, self.module.Tensor) and x.device.type == self.where

    def broadcast(self, x, shape):
        return x.expand(shape)

    def stream(self):
        """A context in which work goes to a stream of its own, which is then waited for."""
        stream = self.module.cuda.Stream()
        return self._on(stream, self.module.cuda.stream(stream))

    @contextlib.contextmanager
    def _on(self, stream, context):
        with context:
            yield stream
        stream.synchronize()

    def busy(self, x):
        """Keep the current stream at work for some tenths of a second; the work depends on x."""
        for _ in range(12):
            x = (x @ x) * 1e-4
        return x

    def pending(self, stream):
        """Whether the stream has work left."""
        return not stream.query()

    def large(self):
        """Return what `busy` takes."""
        return self.put(np.ones((8192, 8192), np.float32))

    def free_bytes(self):
        self.module.cuda.empty_cache()
        return self.module.cuda.mem_get_info()[0]

    def hold(self, count):
        """Occupy that many bytes of the device while the result lives."""
        return self.module.empty(count, dtype=self.module.uint8, device=self.where)

    def release(self):
        self.module.cuda.empty_cache()


class Cupy(Torch):
    """Arrays on the current CUDA device."""

    name = "cupy"

    def put(self, x):
        return self.module.asarray(np.array(x, order="C"))

    def get(self, x):
        assert self.owns(x)
        return x.get()

    def owns(self, x):
        return isinstance(x, self.module.ndarray)

    def broadcast(self, x, shape):
        return self.module.broadcast_to(x, shape)

    def stream(self):
        stream = self.module.cuda.Stream(non_blocking=True)
        return self._on(stream, stream)

    def pending(self, stream):
        return not stream.done

    def free_bytes(self):
        self.release()
        return self.module.cuda.Device().mem_info[0]

    def hold(self, count):
        return self.module.empty(count, dtype=np.uint8)

    def release(self):
        self.module.get_default_memory_pool().free_all_blocks()


def _open(name):
    """The library, or None where it is not installed or sees no device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = importlib.import_module(name)
        except ImportError:
            return None
        if not subspan.show_config()["cuda"]:
            return None
        if name == "torch":
            return Torch(module) if module.cuda.is_available() else None
        return Cupy(module) if module.cuda.is_available() else None


_opened = {}


def library(name):
    """The arrays of one library; the test is skipped where there are none."""
    if name not in _opened:
        _opened[name] = _open(name)
    if _opened[name] is None:
        pytest.skip(f"needs a CUDA device and {name} for it")
    return _opened[name]


def any_library():
    """The arrays of a library that is there: the kernels are the same for all."""
    for name in LIBRARIES:
        with contextlib.suppress(pytest.skip.Exception):
            return library(name)
    return pytest.skip("needs a CUDA device, and torch or cupy for it")


def layouts(gpu, a):
    """Device arrays that hold the values of `a` (..., m, n), one for every kind of strides."""
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1] + 1), a.dtype)
    wide[..., 1::2] = a
    tall = np.zeros((*a.shape[:-2], 3 * a.shape[-2], a.shape[-1]), a.dtype)
    tall[..., ::3, :] = a
    shifted = gpu.put(np.concatenate([np.zeros(1, a.dtype), a.ravel()]))
    views = {
        "transposed": gpu.put(np.swapaxes(a, -1, -2)).swapaxes(-1, -2),
        "strided columns": gpu.put(wide)[..., 1::2],
        "strided rows": gpu.put(tall)[..., ::3, :],
        "strided batch": gpu.put(np.repeat(a, 2, axis=0))[::2],
        "batch last": gpu.put(np.moveaxis(a, 0, -1)).swapaxes(-1, -2).swapaxes(-2, -3),
        "one element off": shifted[1:].reshape(a.shape),
    }
    if gpu.name == "cupy":  # torch has no negative strides
        views |= {
            "negative columns": gpu.put(a[..., ::-1])[..., ::-1],
            "negative rows": gpu.put(a[..., ::-1, :])[..., ::-1, :],
            "negative batch": gpu.put(a[::-1])[::-1],
        }
    return views
