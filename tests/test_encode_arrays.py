"""Sparse encoders: layouts and libraries, and what becomes of their codes."""

import numpy as np
import pytest
from encode_oracle import FLOATS, best_of_rows, check_all, codes_of, dense, problem, same_code
from matrices import same_bits
from subspan import RaggedCode, SparseCode, batch_topk_encode, threshold_encode, topk_encode
from subspan.errors import DtypeError, InvalidArgumentError

# ---- layouts and libraries -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_layouts_give_the_same_bits(dtype, rng):
    x, w_enc = rng.standard_normal((30, 45)).astype(dtype), rng.standard_normal((45, 70))
    w_enc = w_enc.astype(dtype)
    b_enc, b_pre = rng.standard_normal(70).astype(dtype), rng.standard_normal(45).astype(dtype)
    wanted = list(codes_of(x, w_enc, b_enc, b_pre))

    def views(a):
        wide = np.zeros(tuple(2 * extent for extent in a.shape), dtype)
        every_second = tuple(slice(1, None, 2) for _ in a.shape)
        wide[every_second] = a
        backwards = tuple(slice(None, None, -1) for _ in a.shape)
        frozen = a.copy()
        frozen.flags.writeable = False
        raw = np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(dtype).reshape(a.shape)
        yield wide[every_second]
        yield a[backwards].copy()[backwards]
        yield np.asfortranarray(a)
        yield frozen
        yield raw

    for seen in zip(*map(views, (x, w_enc, b_enc, b_pre)), strict=True):
        for got, right in zip(codes_of(*seen), wanted, strict=True):
            same_code(got, right)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_both_orders_of_the_matrix(order, dtype, rng):
    for rows, d, n in ((1, 33, 100), (7, 130, 47), (140, 65, 129)):
        x, w_enc, b_enc, b_pre = problem(rng, rows, min(d, 31 if dtype == "float16" else d), n)
        given = [a.astype(dtype) for a in (x, w_enc, b_enc, b_pre)]
        given[1] = np.asarray(given[1], order=order)
        check_all(*given, [4])
        check_all(*given[:2], None, None, [4])


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (3, 0), (2, 1, 3)])
def test_leading_axes(lead, rng):
    x = rng.standard_normal((*lead, 9))
    w_enc = rng.standard_normal((9, 40))
    flat = x.reshape(-1, 9)
    values, indices = topk_encode(x, w_enc, k=3)
    assert values.shape == indices.shape == (*lead, 3)
    same_code(
        SparseCode(values.reshape(-1, 3), indices.reshape(-1, 3)), topk_encode(flat, w_enc, k=3)
    )
    same_code(batch_topk_encode(x, w_enc, k=3), batch_topk_encode(flat, w_enc, k=3))
    same_code(threshold_encode(x, w_enc, threshold=1), threshold_encode(flat, w_enc, threshold=1))
    moved = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 0)), 0, -1)
    same_code(topk_encode(moved, w_enc, k=3), SparseCode(values, indices))


@pytest.mark.parametrize("dtype", FLOATS)
def test_same_library_out(library, dtype, rng):
    if library.name == "array_api_strict" and dtype == "float16":
        pytest.skip("the standard has no float16")
    given = problem(rng, 6, 8, 30, dtype)
    x, w_enc, b_enc, b_pre = map(library.put, given)
    bars = library.put(np.full(30, 5, dtype))
    got = [
        topk_encode(x, w_enc, b_enc, k=4, b_pre=b_pre),
        batch_topk_encode(x, w_enc, b_enc, k=4, b_pre=b_pre),
        threshold_encode(x, w_enc, b_enc, threshold=bars, b_pre=b_pre),
        threshold_encode(x, w_enc, b_enc, threshold=5, b_pre=b_pre),
    ]
    wanted = [
        topk_encode(*given[:3], k=4, b_pre=given[3]),
        batch_topk_encode(*given[:3], k=4, b_pre=given[3]),
        *[threshold_encode(*given[:3], threshold=5, b_pre=given[3])] * 2,
    ]
    for code, right in zip(got, wanted, strict=True):
        assert all(library.owns(part) for part in code)
        same_code(type(code)(*map(library.get, code)), right)
        full = code.to_dense(31)
        assert library.owns(full)
        same_bits((library.get(full), right.to_dense(31)))


def test_bfloat16(rng):
    torch = pytest.importorskip("torch")
    given = [torch.from_numpy(a).bfloat16() for a in problem(rng, 9, 8, 60)]
    z = dense(*(a.float().numpy() for a in given))
    code = topk_encode(*given[:3], k=7, b_pre=given[3])
    assert code.values.dtype == torch.bfloat16
    wanted = best_of_rows(z, 7, "relu", np.float32)
    assert torch.equal(code.values, torch.from_numpy(wanted.values).bfloat16())
    same_bits((code.indices.numpy(), wanted.indices))
    assert code.to_torch(60).dtype == code.to_dense(60).dtype == torch.bfloat16
    assert code.to_scipy(60).dtype == np.float32
    ml_dtypes = pytest.importorskip("ml_dtypes")
    arrays = [a.float().numpy().astype(ml_dtypes.bfloat16) for a in given]
    ours = topk_encode(*arrays[:3], k=7, b_pre=arrays[3])
    assert ours.values.dtype == ml_dtypes.bfloat16
    same_bits((ours.values.astype("f4"), code.values.float().numpy()))
    full = code.to_dense(60)
    same_bits((ours.to_dense(60).astype("f4"), full.float().numpy()))
    assert torch.equal(ours.to_torch(60).to_dense(), full)
    assert (ours.to_scipy(60).toarray() == full.float().numpy()).all()


# ---- what becomes of codes -------------------------------------------------------------------


def test_codes_for_other_libraries(rng):
    scipy = pytest.importorskip("scipy.sparse")
    torch = pytest.importorskip("torch")
    x, w_enc, b_enc, b_pre = problem(rng, 12, 5, 40)
    z = dense(x, w_enc, b_enc, b_pre)
    codes = [
        topk_encode(x, w_enc, b_enc, k=30, b_pre=b_pre),
        batch_topk_encode(x, w_enc, b_enc, k=6, b_pre=b_pre),
        threshold_encode(x, w_enc, b_enc, threshold=0, b_pre=b_pre),
    ]
    wanted = np.zeros_like(z, dtype=np.float32)
    np.put_along_axis(wanted, codes[0].indices, codes[0].values, 1)
    assert (codes[0].to_dense(40) == wanted).all()
    assert (codes[2].to_dense(40) == np.maximum(z, 0)).all()
    for code in codes:
        full = code.to_dense(40)
        assert full.dtype == np.float32
        table = code.to_scipy(40)
        assert isinstance(table, scipy.csr_array)
        assert (table.toarray() == full).all()
        assert table.nnz == code.values.size  # zeros as well
        tensor = code.to_torch(40)
        assert tensor.layout == torch.sparse_csr
        assert tensor.values().numel() == code.values.size
        assert (tensor.to_dense().numpy() == full).all()
        torch._validate_sparse_csr_tensor_args(
            tensor.crow_indices(), tensor.col_indices(), tensor.values(), tensor.shape
        )


def test_what_is_there_twice_is_added():
    torch = pytest.importorskip("torch")
    values, indices = np.array([[1.0, 2.0, 4.0], [8.0, 0.0, 1.0]]), np.array([[3, 0, 3], [1, 1, 1]])
    wanted = np.array([[2.0, 0, 0, 5], [0, 9, 0, 0]])
    sparse = SparseCode(values, indices)
    ragged = RaggedCode(values.ravel(), indices.ravel(), np.array([0, 3, 6]))
    for code in (sparse, ragged, *(type(c)(*map(torch.tensor, c)) for c in (sparse, ragged))):
        assert (np.asarray(code.to_dense(4)) == wanted).all()
        assert (code.to_scipy(4).toarray() == wanted).all()
        assert (code.to_torch(4).to_dense().numpy() == wanted).all()
    lead = SparseCode(values.reshape(2, 1, 3), indices.reshape(2, 1, 3))
    assert lead.to_dense(4).shape == (2, 1, 4)
    assert lead.to_scipy(4).shape == tuple(lead.to_torch(4).shape) == (2, 4)


def test_empty_codes():
    torch = pytest.importorskip("torch")
    for library in (np.asarray, torch.from_numpy):
        x, w_enc = library(-np.ones((3, 2))), library(np.ones((2, 5)))
        code = batch_topk_encode(x, w_enc, k=2)
        assert code.offsets.tolist() == [0, 0, 0, 0]
        assert tuple(code.to_dense(5).shape) == code.to_scipy(5).shape == (3, 5)
        assert tuple(code.to_torch(5).shape) == (3, 5)
        none = topk_encode(x[:0], w_enc, k=2)
        assert tuple(none.to_dense(5).shape) == none.to_scipy(5).shape == (0, 5)
        assert batch_topk_encode(x[:0], w_enc, k=2).offsets.tolist() == [0]


def test_too_few_columns_are_refused():
    code = SparseCode(np.ones((1, 2)), np.array([[3, 9]]))
    for method in ("to_dense", "to_scipy", "to_torch"):
        if method == "to_torch":
            pytest.importorskip("torch")
        with pytest.raises(InvalidArgumentError, match=rf"\[{method}\] n must be >= 10, got 9"):
            getattr(code, method)(9)
        with pytest.raises(DtypeError, match=rf"\[{method}\] n must be an integer, got float"):
            getattr(code, method)(10.0)
