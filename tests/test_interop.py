"""Arrays of other libraries: a producer of DLPack capsules made by hand, every form of it.

CUDA capsules of these tests point at host memory, which must never be read.
"""

import ctypes
import gc

import numpy as np
import pytest
import subspan
from subspan import Moments, _core, eigh, kernel_logsumexp, kernel_matvec, qr, svd, svdvals
from subspan.errors import DtypeError, InvalidArgumentError, SubspanError, UnsupportedError

CPU, CUDA, CUDA_HOST, METAL, CUDA_MANAGED = 1, 2, 3, 8, 13
FLOAT, INT, UINT, BFLOAT, COMPLEX = 2, 0, 1, 4, 5
READ_ONLY = 1


class Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("manager", ctypes.c_void_p), ("deleter", Deleter))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
capsule_name = ctypes.pythonapi.PyCapsule_GetName
capsule_name.restype = ctypes.c_char_p
capsule_name.argtypes = (ctypes.py_object,)


class Producer:
    """Hands out capsules on `memory`, and counts what happens to them."""

    def __init__(
        self,
        memory,
        *,
        shape=None,
        strides="of memory",
        device=CPU,
        index=0,
        code=FLOAT,
        bits=None,
        byte_offset=0,
        version=None,
        flags=0,
        old=False,
    ):
        self.memory = memory
        self.shape = tuple(memory.shape if shape is None else shape)
        self.dtype = memory.dtype
        itemsize = memory.itemsize
        self.strides = (
            tuple(s // itemsize for s in memory.strides) if strides == "of memory" else strides
        )
        self.place, self.version, self.flags, self.old = (device, index), version, flags, old
        self.code, self.bits, self.byte_offset = code, bits or 8 * itemsize, byte_offset
        self.deleted, self.calls, self.capsules, self.keep = 0, [], [], []

    def __dlpack_device__(self):
        return self.place

    def __dlpack__(self, **arguments):
        self.calls.append(arguments)
        if self.old and "max_version" in arguments:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        managed = Managed() if self.version is None else Versioned()
        if self.version is not None:
            managed.major, managed.minor = self.version
            managed.flags = self.flags
        ndim = len(self.shape)
        shape = (ctypes.c_int64 * ndim)(*self.shape)
        tensor = managed.tensor
        tensor.data = self.memory.ctypes.data
        tensor.device.type, tensor.device.id = self.place
        tensor.ndim = ndim
        tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes = self.code, self.bits, 1
        tensor.shape = shape
        if self.strides is not None:
            strides = (ctypes.c_int64 * ndim)(*self.strides)
            tensor.strides = strides
            self.keep.append(strides)
        tensor.byte_offset = self.byte_offset

        def delete(_):
            self.deleted += 1

        managed.deleter = Deleter(delete)
        self.keep += [managed, shape, managed.deleter]
        name = b"dltensor" if self.version is None else b"dltensor_versioned"
        capsule = new_capsule(ctypes.addressof(managed), name, None)
        self.capsules.append(capsule)
        return capsule

    def settled(self):
        """Every capsule was consumed and its memory given back exactly once."""
        gc.collect()
        assert self.deleted == len(self.capsules)
        assert all(capsule_name(c).startswith(b"used_dltensor") for c in self.capsules)
        return True


FORMS = [{}, {"old": True}, {"version": (1, 0)}, {"version": (1, 7)}]


@pytest.fixture
def x(rng):
    return rng.standard_normal((40, 5)).astype(np.float32)


def same(a, b):
    return a.count == b.count and np.array_equal(a.m2, b.m2) and np.array_equal(a.mean, b.mean)


# ---- what can be read --------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_capsule(form, x):
    producer = Producer(x, **form)
    assert same(Moments().update(producer), Moments().update(x))
    assert producer.settled()
    assert len(producer.capsules) == 1
    assert producer.calls[0]["max_version"] == (1, 0)
    assert "stream" not in producer.calls[-1]  # on the CPU there is none


@pytest.mark.parametrize("form", FORMS)
def test_memory_of_any_layout(form, x):
    wanted = Moments().update(x)
    wide = np.zeros((80, 11), np.float32)
    wide[::2, 1::2] = x
    back = np.ascontiguousarray(x[::-1, ::-1])
    producers = (
        Producer(x, strides=None, **form),
        Producer(np.asfortranarray(x), **form),
        Producer(wide[::2, 1::2], **form),
        Producer(back[::-1, ::-1], **form),
        Producer(
            np.concatenate([np.zeros((3, 5), np.float32), x]),
            shape=x.shape,
            strides=(5, 1),
            byte_offset=3 * 5 * 4,
            **form,
        ),
    )
    for producer in producers:
        assert same(Moments().update(producer), wanted)
        assert producer.settled()
    one_row = Producer(x[:1], shape=x.shape, strides=(0, 1), **form)
    np.testing.assert_array_equal(Moments().update(one_row).m2, 0.0)


def test_describe_sees_what_the_producer_says(x):
    flipped = Producer(x[::-1], version=(1, 0), flags=READ_ONLY)
    dtype, kind, index, shape, strides, read_only, address = _core.describe(flipped)
    assert (dtype, kind, index, shape, strides) == ("float32", "cpu", 0, (40, 5), (-5, 1))
    assert read_only
    assert address == x[::-1].ctypes.data
    assert _core.describe(Producer(x, byte_offset=8))[-1] == x.ctypes.data + 8
    assert not _core.describe(Producer(x, version=(1, 0)))[5]
    assert _core.describe(Producer(x, device=CUDA, index=3))[:3] == ("float32", "cuda", 3)
    assert _core.describe(Producer(x, device=CUDA_HOST))[1] == "cpu"
    assert _core.describe(x)[-1] == x.ctypes.data  # never a copy


def test_read_only_inputs_are_read_and_outputs_refused(x):
    frozen = Producer(x, version=(1, 0), flags=READ_ONLY)
    assert same(Moments().update(frozen), Moments().update(x))
    out = Producer(np.zeros(4), version=(1, 0), flags=READ_ONLY)
    with pytest.raises(subspan.errors.InvalidArgumentError, match="must be writable"):
        _core.fill_normal(out, 0, 0)
    assert out.settled()
    np.testing.assert_array_equal(out.memory, 0)
    writable = Producer(np.zeros(4), version=(1, 0))
    _core.fill_normal(writable, 0, 0)
    assert writable.settled()
    assert writable.memory.all()


def test_dtypes_by_code(x):
    half = x.astype(np.float16)
    assert same(Moments().update(Producer(half)), Moments().update(half))
    top = (x.view(np.uint32) >> 16).astype(np.uint16)
    raw = Producer(top, code=BFLOAT)
    raw.dtype = np.dtype(np.float16)  # the reader goes by the capsule
    widened = (top.astype(np.uint32) << 16).view(np.float32)
    assert same(Moments().update(raw), Moments().update(widened))
    for code, bits, name in (
        (INT, 32, "int32"),
        (UINT, 16, "uint16"),
        (COMPLEX, 64, "complex64"),
        (FLOAT, 128, "float128"),
        (8, 8, "8"),
    ):
        with pytest.raises(DtypeError, match=name):
            Moments().update(Producer(x, code=code, bits=bits))


def test_decompositions_take_plain_producers(rng):
    for shape in ((6, 4), (3, 6, 4), (2, 3, 4, 4)):
        a = rng.standard_normal(shape)
        producer = Producer(a)
        np.testing.assert_array_equal(svd(producer).s, svd(a).s)
        np.testing.assert_array_equal(svdvals(producer), svdvals(a))
        np.testing.assert_array_equal(qr(producer).r, qr(a).r)
        if shape[-1] == shape[-2]:
            np.testing.assert_array_equal(eigh(producer).values, eigh(a).values)
        assert producer.deleted == len(producer.capsules)


# ---- what cannot -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("device", [CUDA, CUDA_MANAGED])
@pytest.mark.skipif(_core.has_cuda(), reason="there is a CUDA device")
def test_cuda_memory_is_refused_and_never_read(form, device, x):
    with np.errstate(all="ignore"):
        producer = Producer(np.full_like(x, np.nan), device=device, **form)  # read: another error
    moments = Moments()
    with pytest.raises(UnsupportedError, match=r"no CUDA (library|device)") as caught:
        moments.update(producer)
    assert str(caught.value).startswith("[")
    assert moments.count == moments.n_features == 0
    assert producer.settled()
    assert len(producer.capsules) == 1
    del caught


@pytest.mark.parametrize("function", [svd, svdvals, qr, eigh])
@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4)])
def test_decompositions_refuse_cuda_arrays_of_other_libraries(function, shape):
    producer = Producer(np.full(shape, np.nan), device=CUDA)
    with pytest.raises(UnsupportedError, match="must be of torch or cupy"):
        function(producer)
    assert producer.deleted == len(producer.capsules)


@pytest.mark.parametrize("function", [kernel_matvec, kernel_logsumexp])
def test_kernel_sums_refuse_cuda_arrays_of_other_libraries(function):
    producer = Producer(np.full((4, 3), np.nan), device=CUDA)
    with pytest.raises(UnsupportedError, match="must be of torch or cupy"):
        function(producer, None)
    with pytest.raises(UnsupportedError, match="must be of torch or cupy"):
        kernel_matvec(producer, None, method="auto", tol=0.1)


@pytest.mark.skipif(_core.has_cuda(), reason="there is a CUDA device")
def test_kernel_sums_of_cuda_memory_never_read_it():
    def given(*shape):
        return Producer(np.full(shape, np.nan), device=CUDA)

    x, y, v = given(2, 4, 3), given(2, 5, 3), given(2, 5, 1)
    widths, kernel = np.ones(3), ("gaussian", 1.0)
    terms = given(2, 4, 2), given(2, 5, 2)
    calls = [
        lambda: _core.kernel_matvec(
            x, y, v, widths, given(2, 4, 1), None, *kernel, 3, 1.0, 0.0, None
        ),
        lambda: _core.kernel_matvec_backward(
            x, y, v, given(2, 4, 1), widths, given(2, 4, 3), *kernel, 3, 1.0, None
        ),
        lambda: _core.kernel_logsumexp(x, y, v, widths, given(2, 4, 1), None, *kernel, None),
        lambda: _core.kernel_logsumexp_backward(
            x, y, *terms, widths, None, given(2, 4, 3), False, *kernel, None
        ),
    ]
    for call in calls:
        with pytest.raises(UnsupportedError, match="no CUDA"):
            call()
    with pytest.raises(InvalidArgumentError, match="y must be on the device of x"):
        _core.kernel_logsumexp(
            x, np.ones((2, 5, 3)), v, widths, given(2, 4, 1), None, *kernel, None
        )


def test_the_stream_goes_to_cuda_producers(x):
    for form in FORMS:
        producer = Producer(x, device=CUDA, **form)
        _core.describe(producer)
        assert producer.calls[-1]["stream"] == 1  # the legacy default stream
        assert producer.settled()
    state = (np.zeros(1, np.int64), np.zeros(2), np.zeros(5), np.zeros((5, 5)))
    producer = Producer(x, device=CUDA, version=(1, 0))
    if not _core.has_cuda():
        with pytest.raises(UnsupportedError, match="CUDA"):
            _core.moments_update(producer, None, state, False, 4711)
        assert producer.calls == [{"stream": 4711, "max_version": (1, 0)}]
        assert producer.settled()


@pytest.mark.parametrize("version", [(0, 8), (2, 0), (99, 1)])
def test_another_major_version_is_refused(version, x):
    producer = Producer(x, version=version)
    with pytest.raises(UnsupportedError, match=f"must speak DLPack 1, got version {version[0]}"):
        Moments().update(producer)
    assert producer.settled()


@pytest.mark.parametrize("device", [METAL, 4, 7, 14])
def test_other_devices_are_refused(device, x):
    producer = Producer(x, device=device)
    with pytest.raises(UnsupportedError, match=f"got DLPack device {device}"):
        _core.describe(producer)
    assert producer.settled()
    with pytest.raises(UnsupportedError):
        Moments().update(producer)
    assert producer.settled()


class Broken(Producer):
    def __dlpack__(self, **_):
        return self.answer


@pytest.mark.parametrize("answer", [None, "capsule", b"dltensor"])
def test_what_is_no_capsule(answer, x):
    producer = Broken(x)
    producer.answer = answer
    with pytest.raises(DtypeError, match="must return a DLPack capsule"):
        Moments().update(producer)


def test_a_used_capsule_is_refused(x):
    first = Producer(x)
    Moments().update(first)
    again = Broken(x)
    again.answer = first.capsules[0]
    with pytest.raises(DtypeError, match="must return a DLPack capsule"):
        Moments().update(again)
    assert first.deleted == 1


def test_a_producer_that_refuses_is_heard(x):
    class Refusing(Producer):
        def __dlpack__(self, **_):
            raise BufferError("not today")

    with pytest.raises(BufferError, match="not today"):
        Moments().update(Refusing(x))


def test_failures_give_the_memory_back_too(x):
    x[7, 3] = np.nan
    state = (np.zeros(1, np.int64), np.zeros(2), np.zeros(5), np.zeros((5, 5)))
    for form in FORMS:
        producer = Producer(x, **form)
        with pytest.raises(SubspanError, match="row 7, column 3"):
            Moments().update(producer)
        assert producer.settled()
        cube = Producer(np.zeros((2, 3, 4), np.float32), **form)
        with pytest.raises(SubspanError, match="must have 2 axes"):
            _core.moments_update(cube, None, state, False, 0)
        assert cube.deleted == len(cube.capsules)


# ---- libraries ---------------------------------------------------------------------------------


def test_arrays_of_a_call_are_of_one_library(x):
    torch = pytest.importorskip("torch")
    t = torch.from_numpy(x)
    for arguments in ({"y": t}, {"weights": torch.ones(40)}):
        with pytest.raises(DtypeError, match="must be of the library and on the device of x"):
            Moments().update(x, **arguments)


def test_torch_memory_is_read_in_place():
    torch = pytest.importorskip("torch")
    t = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    assert _core.describe(t)[-1] == t.data_ptr()
    view = t.T[1:, ::2]
    *_, shape, strides, _, address = _core.describe(view)
    assert (shape, strides, address) == ((5, 2), (1, 12), view.data_ptr())
    assert same(Moments().update(view), Moments().update(view.numpy()))


def test_torch_conjugate_and_negative_views():
    torch = pytest.importorskip("torch")
    z = torch.tensor([[1 + 2j, 3 - 4j], [0.5j, 2.0]], dtype=torch.complex128)
    negated = z.conj().imag  # a lazy negation, invisible to other libraries
    assert negated.is_neg()
    np.testing.assert_allclose(svdvals(negated), np.linalg.svd(-z.imag.numpy())[1])


def test_numpy_arrays_with_strange_memory():
    fields = np.zeros(6, dtype=[("tag", "u1"), ("value", "f8")])
    fields["value"] = np.arange(6)
    with pytest.raises(DtypeError, match="strides that are multiples of its element size"):
        Moments().update(fields["value"][:, None])
    with pytest.raises(DtypeError, match="must be float16"):
        Moments().update(fields[:, None])


@pytest.mark.parametrize("dtype", ["V0", "S0", "U0", "[]", "V3", "M8[s]"])
def test_dtypes_without_size_do_not_crash(dtype, run_python):
    done = run_python(
        "import numpy as np, subspan\n"
        f"x = np.empty((2, 2), dtype={'[]' if dtype == '[]' else repr(dtype)})\n"
        "for f in (subspan.svd, subspan.Moments().update, subspan._core.describe):\n"
        "    try:\n        f(x)\n"
        "    except (TypeError, ValueError) as error:\n        print(type(error).__name__)\n"
    )
    assert done.returncode == 0
