"""Every error class and its two parents; every refusal, through both Python and the core."""

import inspect

import numpy as np
import pytest
import subspan
from subspan import Moments, _core, eigh, errors, qr, svd

PARENTS = {
    "InvalidArgumentError": ValueError,
    "DtypeError": TypeError,
    "UnsupportedError": NotImplementedError,
    "ConvergenceError": ArithmeticError,
    "DeviceError": RuntimeError,
    "OutOfMemoryError": MemoryError,
    "FileFormatError": ValueError,
    "OutputError": OSError,
    "InternalError": RuntimeError,
}


def test_every_class_derives_from_both():
    classes = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}
    assert sorted(classes) == sorted(errors.__all__) == sorted([*PARENTS, "SubspanError"])
    assert issubclass(errors.SubspanError, Exception)
    for name, parent in PARENTS.items():
        assert issubclass(classes[name], errors.SubspanError)
        assert issubclass(classes[name], parent)
        assert classes[name].__doc__
        with pytest.raises(parent):
            raise classes[name]("x")


def state(d=3):
    return (np.zeros(1, np.int64), np.zeros(2), np.zeros(d), np.zeros((d, d)))


def core_svd(a, **change):
    a = np.asarray(a)
    batch, m, n = a.shape
    k = min(m, n)
    arguments = {
        "s": np.zeros((batch, k)),
        "u": np.zeros((batch, m, k)),
        "vh": np.zeros((batch, k, n)),
        "info": np.zeros(batch, np.int32),
    } | change
    return _core.svd(a, *arguments.values(), "raise", True)


def core_eigh(a, **change):
    batch, n = a.shape[:2]
    arguments = {
        "values": np.zeros((batch, n)),
        "vectors": np.zeros((batch, n, n)),
        "info": np.zeros(batch, np.int32),
    } | change
    return _core.eigh(a, *arguments.values(), "raise", True)


def core_qr(a, **change):
    batch, m, n = a.shape
    k = min(m, n)
    arguments = {
        "q": np.zeros((batch, m, k)),
        "r": np.zeros((batch, k, n)),
        "info": np.zeros(batch, np.int32),
    } | change
    return _core.qr(a, *arguments.values(), "raise")


X, NAN = np.ones((6, 3)), np.full((2, 3, 3), np.nan)
A = np.ones((2, 4, 3))
READ_ONLY = np.zeros((2, 3))
READ_ONLY.flags.writeable = False
ROW = np.where(np.arange(18).reshape(6, 3) == 7, np.nan, 1.0)

# (what is called, class, text). The same mistake is made at both layers where both can see it.
CASES = {
    "python svd nan": (lambda: svd(NAN), "InvalidArgumentError", "[svd] a must be finite, got"),
    "core svd nan": (lambda: core_svd(NAN), "InvalidArgumentError", "[svd] a must be finite, got"),
    "python eigh nan": (lambda: eigh(NAN), "InvalidArgumentError", "[eigh] a must be finite, got"),
    "core eigh nan": (lambda: core_eigh(NAN), "InvalidArgumentError", "[eigh] a must be finite"),
    "python qr nan": (lambda: qr(NAN), "InvalidArgumentError", "[qr] a must be finite, got"),
    "core qr nan": (lambda: core_qr(NAN), "InvalidArgumentError", "[qr] a must be finite, got"),
    "python square": (lambda: eigh(A), "InvalidArgumentError", "[eigh] a must be square in its"),
    "core square": (lambda: core_eigh(A), "InvalidArgumentError", "[eigh] a must be square in its"),
    "python dtype": (
        lambda: svd(A.astype(int)),
        "DtypeError",
        "[svd] a must be float32 or float64",
    ),
    "core dtype": (
        lambda: core_svd(A.astype(int)),
        "DtypeError",
        "[svd] a must be float32 or float64, got int64",
    ),
    "python no array": (lambda: svd([[1.0]]), "DtypeError", "[svd] a must be an array (numpy,"),
    "core no array": (
        lambda: _core.svd([[1.0]], None, None, None, None, "raise", True),
        "DtypeError",
        "[svd] a must be an array (numpy, torch, cupy, or any other with __dlpack__), got list",
    ),
    "core axes": (
        lambda: _core.svd(X, READ_ONLY, None, None, np.zeros(6, np.int32), "raise", True),
        "InvalidArgumentError",
        "[svd] a must have 3 axes, got 2",
    ),
    "core output shape": (
        lambda: core_svd(A, s=np.zeros((2, 4))),
        "InvalidArgumentError",
        "[svd] s must be C-ordered, on the device of a, and of the documented shape",
    ),
    "core output dtype": (
        lambda: core_svd(A, s=np.zeros((2, 3), np.float32)),
        "DtypeError",
        "[svd] s must be float64, got float32",
    ),
    "core output read-only": (
        lambda: core_svd(A, s=READ_ONLY),
        "InvalidArgumentError",
        "[svd] s must be writable, got a read-only array",
    ),
    "core output order": (
        lambda: core_qr(A, q=np.zeros((2, 3, 4)).transpose(0, 2, 1)),
        "InvalidArgumentError",
        "[qr] q must be C-ordered",
    ),
    "core output overlaps": (
        lambda: core_qr(A, q=A),
        "InvalidArgumentError",
        "[qr] q must not overlap a",
    ),
    "core one output": (
        lambda: core_svd(A, vh=None),
        "InvalidArgumentError",
        "[svd] u and vh must be given together",
    ),
    "core info": (
        lambda: core_eigh(NAN, info=np.zeros(5, np.int32)),
        "InvalidArgumentError",
        "[eigh] info must be contiguous, on the device of a, with one entry per matrix (2), got 5",
    ),
    "python moments nan": (
        lambda: Moments().update(ROW),
        "InvalidArgumentError",
        "x must be finite, got NaN in row 2, column 1. Drop the row, or give it weight 0",
    ),
    "core moments nan": (
        lambda: _core.moments_update(ROW, None, state(), False, 0),
        "InvalidArgumentError",
        "x must be finite, got NaN in row 2, column 1. Drop the row, or give it weight 0",
    ),
    "python moments dtype": (
        lambda: Moments().update(X.astype(np.int32)),
        "DtypeError",
        "[Moments.update] x must be float16, bfloat16, float32 or float64, got int32",
    ),
    "core moments dtype": (
        lambda: _core.moments_update(X.astype(np.int32), None, state(), False, 0),
        "DtypeError",
        "[Moments.update] x must be float16, bfloat16, float32 or float64, got int32",
    ),
    "python weights": (
        lambda: Moments().update(X, -np.ones(6)),
        "InvalidArgumentError",
        "weights must be finite and >= 0, got -1 in row 0",
    ),
    "core weights": (
        lambda: _core.moments_update(X, -np.ones(6), state(), False, 0),
        "InvalidArgumentError",
        "weights must be finite and >= 0, got -1 in row 0",
    ),
    "core weights length": (
        lambda: _core.moments_update(X, np.ones(5), state(), False, 0),
        "InvalidArgumentError",
        "weights must have one entry per row of x (6), got 5",
    ),
    "core state": (
        lambda: _core.moments_update(X, None, state(4), False, 0),
        "InvalidArgumentError",
        "state.mean must be a float64 array on the CPU of the documented shape",
    ),
    "core merge": (
        lambda: _core.moments_merge(state(3), state(4)),
        "InvalidArgumentError",
        "state.mean must be a float64 array on the CPU",
    ),
    "core groups": (
        lambda: _core.group_sums(X, None, np.full(6, 2), np.zeros((2, 3))),
        "InvalidArgumentError",
        "ids must be in 0..1, got 2 in row 0",
    ),
    "python threads": (
        lambda: subspan.set_num_threads(0),
        "InvalidArgumentError",
        "[set_num_threads] n must be in 1..1024, got 0",
    ),
    "core threads": (
        lambda: _core.set_num_threads(-1),
        "InvalidArgumentError",
        "[set_num_threads] n must be in 1..1024, or 0 for the default, got -1",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refusals(name):
    call, kind, text = CASES[name]
    with pytest.raises(getattr(errors, kind)) as caught:
        call()
    message = str(caught.value)
    assert text in message
    assert message.startswith("[")
    assert " must " in message
    assert type(caught.value) is getattr(errors, kind)


def test_indefinite_matrices_have_no_axes():
    full = Moments().update(np.random.default_rng(0).standard_normal((9, 3))).state_dict()
    for m2 in (-np.eye(3), np.full((3, 3), np.nan)):
        moments = Moments.from_state_dict(full | {"m2": m2})
        with pytest.raises(errors.SubspanError):
            subspan.PCA().from_moments(moments)


def test_memory_that_cannot_be_had(run_python):
    """A state that fits, sums that do not: OutOfMemoryError, and the state is as it was."""
    pytest.importorskip("resource")
    code = (
        "import resource\n"
        "import numpy as np, subspan\n"
        "from subspan.errors import OutOfMemoryError\n"
        "d = 4000\n"
        "m = subspan.Moments()\n"
        "m.update(np.ones((0, d), np.float32))\n"
        "m.m2[:] = 0  # its pages are there\n"
        "x = np.ones((300, d), np.float32)\n"
        "with open('/proc/self/status') as status:\n"
        "    data = next(int(l.split()[1]) << 10 for l in status if l.startswith('VmData'))\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (data + (60 << 20), -1))\n"
        "try:\n    m.update(x)\n"
        "except OutOfMemoryError as error:\n"
        "    assert isinstance(error, MemoryError) and 'no memory for' in str(error)\n"
        "else:\n    raise SystemExit('nothing was raised')\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))\n"
        "assert m.count == 0 and not m.m2.any()\n"
        "assert m.update(x).count == 300\n"
    )
    run_python(code, SUBSPAN_NUM_THREADS="1")
