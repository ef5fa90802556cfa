"""Mutual Choice and Feature Choice: selections, budgets, the law of densities, what is revived."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sae_oracle import (  # noqa: E402
    assert_same_gradients,
    dense_auxk,
    gradients,
    module,
    pre_activations,
    rows,
)
from subspan.errors import InvalidArgumentError  # noqa: E402
from subspan.sae import MutualChoiceSAE, fit_zipf  # noqa: E402


def test_mutual_choice_is_batch_topk_bit_for_bit():
    a = module("mutual_choice", k=3.5)
    b = module("batch_topk", k=3.5)
    ours, theirs = a.loss(rows()), b.loss(rows())
    assert torch.equal(ours.total, theirs.total)
    for mine, other in zip(ours.code, theirs.code, strict=True):
        assert torch.equal(mine, other)
    for name, mine in gradients(a, ours.total).items():
        assert torch.equal(mine, gradients(b, theirs.total)[name])


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.7])
def test_the_law_of_densities_is_fitted(exponent, rng):
    ranks = np.arange(1, 2001)
    law = 0.4 * ranks**-exponent
    exact = fit_zipf(rng.permutation(np.concatenate([law, np.zeros(50)])))
    assert exact == pytest.approx((exponent, 0.4))
    counts = rng.poisson(law * 1e6)  # a sample of a million rows
    assert abs(fit_zipf(counts / 1e6).exponent / exponent - 1) < 0.05
    with pytest.raises(InvalidArgumentError, match="two positive entries or more, got 1"):
        fit_zipf([0.0, 0.3])


def test_latents_below_the_law_are_revived():
    sae = MutualChoiceSAE(10, 36, k=4, zipf_slack=0.5, dtype="float64")
    assert not bool(sae.underused().any())
    law = 0.3 * torch.arange(1.0, 37.0, dtype=torch.float64) ** -0.7
    sae.density.copy_(law)
    assert not bool(sae.underused().any())
    sae.density[30:] *= 0.05
    assert sae.underused().nonzero()[:, 0].tolist() == list(range(30, 36))
    x, dead = rows(), torch.arange(36) == 2
    both = dead | sae.underused()
    made = sae.loss(x).reconstruction
    out = sae.loss(x, dead=dead)
    wanted = sae.aux_coefficient * dense_auxk(sae, x, x - made, both)
    assert torch.allclose(out.terms["auxk"], wanted)
    sae.zipf_slack = 0.0
    assert list(sae.loss(x).terms) == ["reconstruction"]


def test_densities_are_running_means():
    sae = module("mutual_choice", k=4, threshold_rate=0.25)
    wanted = torch.zeros(36, dtype=torch.float64)
    for seed in range(6):
        code = sae.loss(rows(seed=seed)).code
        sae.update_threshold_(code)
        here = (code.to_dense(36) > 0).double().mean(0).detach()
        wanted += (here - wanted) * max(0.25, 1 / (seed + 1))
    assert torch.allclose(sae.density, wanted)
    assert float(wanted.sum()) == pytest.approx(4)


@pytest.mark.parametrize("options", [{}, {"profile": "zipf"}, {"profile": "zipf", "k": 9.3}])
@pytest.mark.parametrize("pre_bias", [True, False])
def test_every_latent_takes_its_rows(pre_bias, options):
    sae = module("feature_choice", **{"k": 6, **options}, pre_bias=pre_bias)
    sae.loss_scale.fill_(1.7)
    x = rows(40)
    budgets = sae.budgets(40)
    assert budgets.sum() <= int(sae.k * 40)
    assert budgets.min() >= 1
    if sae.profile == "uniform":
        assert (budgets == 6 * 40 // 36).all()
    else:
        assert (np.diff(budgets) <= 0).all()
        assert budgets[0] > 4 * budgets[-1]
        assert budgets.sum() > int(sae.k * 40) - 12
    z = pre_activations(sae, x)
    code = torch.zeros_like(z)
    for i, m in enumerate(budgets):
        best = z[:, i].topk(int(m)).indices
        code[best, i] = z[best, i]
    made = code @ sae.w_dec + sae.b_dec
    out = sae.loss(x)
    assert torch.equal(out.code.indices.bincount(minlength=36), torch.from_numpy(budgets))
    assert torch.allclose(out.code.to_dense(36), code)
    assert bool((out.code.indices.diff()[out.code.offsets.diff().cumsum(0)[:0]] > 0).all())
    assert torch.allclose(out.reconstruction, made)
    assert_same_gradients(sae, out.total, (made - x).square().mean() * 1.7)


def test_no_latent_is_dead_and_thresholds_follow():
    sae = module("feature_choice", k=3)
    with torch.no_grad():
        sae.b_enc[:18] = -50  # which TopK would never choose
    with pytest.raises(InvalidArgumentError, match="thresholds must be known"):
        sae.export()
    least = []
    for seed in range(5):
        code = sae.loss(rows(60, seed=seed)).code
        assert bool(sae.fired(code).all())
        sae.update_threshold_(code)
        dense = code.to_dense(36).masked_fill(code.to_dense(36) == 0, torch.inf)
        least.append(dense.min(dim=0).values.detach())
    assert torch.allclose(sae.threshold, torch.stack(least).mean(0))
    x = rows(4000, seed=9)
    count = len(sae.eval().encode(x).values) / 4000
    assert abs(count / 3 - 1) < 0.15
    assert torch.allclose(sae.export().reconstruct(x), sae(x)[0].detach(), rtol=1e-12)
    with pytest.raises(InvalidArgumentError, match=r"n / k = 12 rows or more, .* got 11"):
        sae.train().loss(rows(11))
