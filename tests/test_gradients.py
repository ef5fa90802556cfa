"""Gradients of svd, eigh and qr: finite differences, torch's own rules, clusters of values."""

import pytest
from subspan import eigh, eigvalsh, qr, svd, svdvals
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

torch = pytest.importorskip("torch")
gradcheck, gradgradcheck = torch.autograd.gradcheck, torch.autograd.gradgradcheck

SHAPES = [(3, 3), (5, 3), (2, 4), (2, 3, 2), (2, 2, 1, 3), (1, 1), (3, 1)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def leaf(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def orthogonal(n, k):
    return torch.linalg.qr(torch.randn(n, k, dtype=torch.float64))[0]


def with_values(m, n, values):
    """Return a matrix with these singular values, as a leaf."""
    k = min(m, n)
    a = orthogonal(m, k) * torch.tensor(values, dtype=torch.float64) @ orthogonal(n, k).mT
    return a.requires_grad_()


def symmetric_with(values):
    q = orthogonal(len(values), len(values))
    return (q * torch.tensor(values, dtype=torch.float64) @ q.mT).requires_grad_()


def signs(rows):
    """Signs that make the largest entry of every row positive: signs of vectors are no function."""
    rows = rows.detach()
    return torch.sign(rows.gather(-1, rows.abs().argmax(-1, keepdim=True)))


def fixed_svd(a, **options):
    u, s, vh = svd(a, **options)
    sign = signs(vh)
    return u * sign.mT, s, vh * sign


def fixed_eigh(a, **options):
    values, vectors = eigh((a + a.mT) / 2, **options)
    return values, vectors * signs(vectors.mT).mT


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"k": 1}, {"subspace": True}, {"tol": 0.3}])
def test_svd_against_finite_differences(shape, options):
    assert gradcheck(lambda a: fixed_svd(a, **options), leaf(*shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_qr_against_finite_differences(shape):
    assert gradcheck(svdvals, leaf(*shape))
    assert gradcheck(lambda a: tuple(qr(a)), leaf(*shape))


@pytest.mark.parametrize("shape", [(4, 4), (2, 1, 2, 2), (1, 1)])
@pytest.mark.parametrize("options", [{}, {"subspace": True}])
def test_eigh_against_finite_differences(shape, options):
    a = leaf(*shape)
    assert gradcheck(lambda a: fixed_eigh(a, **options), a)
    assert gradcheck(lambda a: eigvalsh(a + a.mT), a)


def test_second_derivatives():
    assert gradgradcheck(fixed_svd, leaf(3, 2))
    assert gradgradcheck(fixed_svd, leaf(2, 2, 3))
    assert gradgradcheck(fixed_eigh, leaf(3, 3))
    assert gradgradcheck(lambda a: tuple(qr(a)), leaf(3, 2))
    assert gradgradcheck(lambda a: tuple(qr(a)), leaf(2, 3))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-11)])
@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (3, 12, 12)])
def test_the_gradients_are_torchs(shape, dtype, tolerance):
    a, b = leaf(*shape, dtype=dtype), torch.randn(shape, dtype=dtype)

    def gradient(decompose, weight):
        first, *middle, last = decompose(a)
        product = first * middle[0][..., None, :] ** 2 @ last if middle else first @ last.tanh()
        (result,) = torch.autograd.grad((product * weight).sum(), a)
        assert result.dtype == dtype
        return result

    for ours, theirs in ((svd, torch.linalg.svd), (qr, torch.linalg.qr)):
        options = {"full_matrices": False} if theirs is torch.linalg.svd else {}
        want = gradient(lambda a, f=theirs, o=options: f(a, **o), b)
        got = gradient(ours, b)
        assert (got - want).norm() <= tolerance * want.norm()
    gram = (a @ a.mT).detach().requires_grad_()
    weight = torch.randn_like(gram)
    losses = (
        (vectors * values.cos()[..., None, :] @ vectors.mT * weight).sum()
        for values, vectors in (eigh(gram), torch.linalg.eigh(gram))
    )
    got, want = (torch.autograd.grad(loss, gram)[0] for loss in losses)
    assert torch.equal(got, got.mT) or torch.allclose(got, got.mT, atol=tolerance)
    if shape[0] != 30:  # the Gram matrix of 30 rows of 8 columns has 22 equal values
        assert (got - (want + want.mT) / 2).norm() <= 20 * tolerance * want.norm()


def test_nothing_is_asked_of_what_the_loss_does_not_use():
    a = with_values(5, 4, [2.0, 2.0, 1.0, 0.0])  # all that has a denominator would be infinite
    for values in (svd(a).s, svdvals(a)):
        (got,) = torch.autograd.grad(values.square().sum(), a)
        torch.testing.assert_close(got, 2 * a.detach(), atol=1e-14, rtol=0)
    nuclear = torch.autograd.grad(svdvals(a).sum(), a)[0]
    assert svdvals(nuclear).max() <= 1 + 1e-12  # a subgradient
    assert svd(a).u.requires_grad
    c = symmetric_with([1.0, 1.0, 3.0])
    for values in (eigh(c).values, eigvalsh(c)):
        (got,) = torch.autograd.grad(values.square().sum(), c)
        torch.testing.assert_close(got, 2 * c.detach(), atol=1e-14, rtol=0)


def test_no_gradient_where_none_is_wanted():
    a = leaf(4, 3)
    with torch.no_grad():
        assert not any(out.requires_grad for out in (*svd(a), svdvals(a), *qr(a)))
    assert all(out.requires_grad for out in (*svd(a), svdvals(a), *qr(a)))
    assert not svd(a.detach()).s.requires_grad
    values, vectors, info = eigh(a.mT @ a, errors="info")
    assert values.requires_grad
    assert vectors.requires_grad
    assert info.shape == ()


def test_empty_batches_and_matrices():
    for shape in ((0, 4, 3), (2, 0, 3), (2, 3, 0)):
        a = leaf(*shape)
        sum(out.sum() for out in (*svd(a), svdvals(a), *qr(a))).backward()
        assert a.grad.shape == shape
        assert not a.grad.any()
    c = leaf(2, 0, 0)
    eigh(c).vectors.sum().backward()
    assert c.grad.shape == c.shape


def test_a_bad_matrix_spoils_its_own_gradient_only():
    a = torch.randn(3, 4, 2, dtype=torch.float64)
    clean = a.clone().requires_grad_()
    a[1, 0, 0] = torch.nan
    a.requires_grad_()
    for subspace in (False, True):
        results = []
        for x in (a, clean):
            u, s, vh = fixed_svd(x, nonfinite="propagate", subspace=subspace)
            results.append(
                torch.autograd.grad(
                    (u.sum((1, 2)) + s[:, 0] + vh[:, 0, 0])[[0, 2]],
                    x,
                    torch.ones(2, dtype=torch.float64),
                )[0]
            )
        torch.testing.assert_close(results[0][[0, 2]], results[1][[0, 2]])


# ---- values that coincide --------------------------------------------------------------------


def polar(a, **options):
    u, _, vh = svd(a, **options)
    return u @ vh


def leading(a, k, **options):
    u, _, vh = svd(a, **options)
    return u[..., :k] @ u[..., :k].mT, vh[..., :k, :].mT @ vh[..., :k, :]


@pytest.mark.parametrize("values", [[2.0, 2.0, 2.0], [2.0, 2.0 + 1e-12, 0.5], [3.0, 1.0, 1.0]])
def test_subspace_mode_where_singular_values_coincide(values):
    for m, n in ((3, 3), (5, 3), (3, 4)):
        a = with_values(m, n, values)
        assert gradcheck(lambda a: polar(a, subspace=True), a)
    whole = [k for k in (1, 2, 3) if k == 3 or values[k - 1] > values[k] + 0.1]
    for k in whole:  # leading vectors that end where a cluster does
        assert gradcheck(lambda a, k=k: leading(a, k, subspace=True), with_values(5, 3, values))
        assert gradcheck(lambda a, k=k: leading(a, k, subspace=True), with_values(3, 5, values))


def test_subspace_mode_where_eigenvalues_coincide():
    a = symmetric_with([3.0, 3.0, 3.0, 1.0, -1.0, -1.0])

    def spans(a):
        values, vectors = eigh((a + a.mT) / 2, subspace=True)
        low, high = vectors[:, :2], vectors[:, 3:]
        return low @ low.mT, high @ high.mT, values.square().sum()

    assert gradcheck(spans, a)


def test_subspace_mode_where_the_rank_is_low():
    a = with_values(5, 4, [3.0, 2.0, 0.0, 0.0])
    assert gradcheck(lambda a: leading(a, 2, subspace=True), a)
    with pytest.raises(InvalidArgumentError, match="must not depend on the basis"):
        polar(a, subspace=True).sum().backward()


@pytest.mark.parametrize(
    "loss",
    [
        lambda u, _, __: u[0, :, 0] @ torch.arange(1.0, 5.0, dtype=u.dtype),
        lambda _, __, vh: vh[0, 1] @ torch.arange(1.0, 4.0, dtype=vh.dtype),
        lambda u, s, vh: (u[0, :, :1] @ vh[0, :1] * s[0, 0]).square()[:2, :2].sum(),
        lambda u, s, vh: (u[0] @ vh[0]).sum() + s[0, 0],
    ],
    ids=["u", "v", "product", "one value of two"],
)
def test_subspace_mode_refuses_a_loss_that_sees_the_basis(loss):
    a = torch.stack([with_values(4, 3, [2.0, 2.0, 1.0]).detach() for _ in range(2)])
    a[1] = torch.randn(4, 3)
    a.requires_grad_()
    with pytest.raises(
        InvalidArgumentError, match=r"\[svd\] loss must not .* got one that does in matrix 0 of 2"
    ):
        loss(*svd(a, subspace=True)).backward()
    loss(*svd(a[1:], subspace=True)).backward()  # distinct values: any loss


def test_subspace_mode_refuses_an_eigenvector_of_a_cluster():
    a = symmetric_with([1.0, 1.0, 2.0])
    with pytest.raises(InvalidArgumentError, match=r"\[eigh\] loss must not depend on the basis"):
        (torch.arange(1.0, 4.0, dtype=a.dtype) @ eigh(a, subspace=True).vectors[:, 0]).backward()
    eigh(a, subspace=True).vectors[0, 2].square().backward()
    assert torch.isfinite(a.grad).all()


def test_without_options_a_cluster_is_not_finite():
    a = torch.eye(3, dtype=torch.float64).requires_grad_()
    svd(a).u[0, 1].backward()
    assert not torch.isfinite(a.grad).all()
    svdvals(a)
    for options in ({"gap_eps": 1e-12}, {"gap_eps": 1e-3}):
        for function in (svd, eigh):
            (got,) = torch.autograd.grad(function(a, **options)[0].sum(), a)
            assert torch.isfinite(got).all()


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_gap_eps_is_the_lorentzian_of_relative_gaps(scale):
    eps = 1e-4
    values = torch.tensor([2.0, 2.0 - 1e-3, 1.0], dtype=torch.float64) * scale
    a = torch.diag(values).requires_grad_()
    vectors = eigh(a, gap_eps=eps).vectors  # unit vectors, by ascending value
    (got,) = torch.autograd.grad(vectors[1, 2] * scale, a)
    x = 1e-3 / 2.0
    assert got[0, 1].abs().item() == pytest.approx(x / (x * x + eps) / 2.0 / 2.0, rel=1e-9)
    far = torch.autograd.grad(eigh(a, gap_eps=0.0).vectors[1, 2] * scale, a)[0]
    assert far[0, 1].abs().item() == pytest.approx(1e3 / 2.0, rel=1e-9)


def test_gap_eps_tends_to_the_exact_gradient():
    a = leaf(5, 3)
    weight = torch.randn(5, 3, dtype=torch.float64)
    want = torch.autograd.grad((fixed_svd(a)[0] * weight).sum(), a)[0]
    errors = []
    for eps in (1e-2, 1e-4, 1e-6, 1e-12):
        got = torch.autograd.grad((fixed_svd(a, gap_eps=eps)[0] * weight).sum(), a)[0]
        errors.append(float((got - want).norm() / want.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-9


@pytest.mark.parametrize("function", [svd, eigh])
def test_refused_options(function):
    a = torch.eye(3)
    for value in (-1.0, 2.0, float("nan")):
        with pytest.raises(InvalidArgumentError, match=r"\] gap_eps must be in \[0.0, 1.0\], got"):
            function(a, gap_eps=value)
    with pytest.raises(DtypeError, match="gap_eps must be a number"):
        function(a, gap_eps="small")
    with pytest.raises(DtypeError, match="subspace must be a bool, got int 1"):
        function(a, subspace=1)


def test_the_randomized_method_has_no_gradient():
    with pytest.raises(UnsupportedError, match="method must be 'exact' for a tensor that requires"):
        svd(leaf(9, 9), k=2, method="randomized")
    with torch.no_grad():
        assert svd(leaf(9, 9), k=2, method="randomized").s.shape == (2,)


def test_training_by_the_gradient_works():
    """Steps along the gradient reach the matrix of orthonormal columns nearest in energy."""
    a = leaf(6, 3)
    start = float((svdvals(a.detach()) - 1).norm())
    for _ in range(60):
        (step,) = torch.autograd.grad((svdvals(a) - 1).square().sum(), a)
        a = (a - 0.25 * step).detach().requires_grad_()
    assert start > 0.5
    torch.testing.assert_close(a.mT @ a, torch.eye(3, dtype=torch.float64), atol=1e-9, rtol=0)
