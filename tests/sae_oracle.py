"""Data with known dictionaries, dense losses of autograd, and a plain loop of training."""

import numpy as np
from scipy.optimize import linear_sum_assignment


def dictionary_data(rng, rows, d=16, m=32, k=3, dtype=np.float32):
    """k of m random unit directions for each row, with values |N(0, 1)|: rows and directions."""
    directions = rng.standard_normal((m, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chosen = np.argsort(rng.random((rows, m)), axis=1)[:, :k]
    codes = np.zeros((rows, m))
    np.put_along_axis(codes, chosen, np.abs(rng.standard_normal((rows, k))), axis=1)
    return (codes @ directions).astype(dtype), directions


def match_score(found, truth):
    """Mean cosine over the best one-to-one matching of two sets of directions."""
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (found, truth))
    cosines = np.abs(a @ b.T)
    rows, columns = linear_sum_assignment(-cosines)
    return cosines[rows, columns].mean()


def train(sae, x, *, steps, batch=256, lr=3e-3, dead_after=200, seed=0):
    """Plain Adam, learning rate to zero over the last fifth; returns losses and what is dead."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(sae.parameters(), lr=lr)
    since = torch.zeros(sae.n_latents)
    losses = []
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * min(1.0, 5 * (steps - step) / steps)
        rows = x[torch.randint(len(x), (batch,), generator=generator)]
        out = sae.loss(rows, dead=since >= dead_after, step=step)
        adam.zero_grad()
        out.total.backward()
        sae.remove_parallel_gradient_()
        adam.step()
        sae.normalize_decoder_()
        sae.update_threshold_(out.code)
        since = torch.where(sae.fired(out.code), 0, since + 1)
        losses.append(float(out.total.detach()))
    return losses, since >= dead_after


def module(architecture, *, d=10, n=36, seed=3, **options):
    """A module of float64 with weights that are all different and nowhere tied."""
    import torch
    from subspan.sae import make_sae

    sae = make_sae(architecture, d, n, dtype=torch.float64, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            size = 0.6 if name == "w_enc" else 0.2
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise * size)
        sae.normalize_decoder_()
    return sae


def rows(count=14, d=10, seed=5):
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, d), generator=generator, dtype=torch.float64)


def gradients(sae, total):
    """Gradients of all parameters by name, zeros where there are none."""
    import torch

    names, parameters = zip(*sae.named_parameters(), strict=True)
    found = torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for name, p, g in zip(names, parameters, found, strict=True)
    }


def assert_same_gradients(sae, ours, theirs, tol=1e-10):
    mine, other = gradients(sae, ours), gradients(sae, theirs)
    for name, wanted in other.items():
        size = max(float(wanted.abs().max()), 1e-3)
        assert float((mine[name] - wanted).abs().max()) <= tol * size, name
    return mine


def pre_activations(sae, x):
    return (x - sae.b_dec if sae.pre_bias else x) @ sae.w_enc + sae.b_enc


def dense_topk(z, k):
    """The rectified k largest of every row of z, as dense codes with gradients."""
    import torch

    values, indices = z.topk(k)
    return torch.zeros_like(z).scatter(-1, indices, values.relu())


def dense_batch_topk(z, count):
    import torch

    mask = torch.zeros(z.numel(), dtype=torch.bool)
    mask[z.detach().flatten().topk(count).indices] = True
    return (z * mask.reshape(z.shape)).relu()


def dense_auxk(sae, x, rest, dead):
    """The normalised error of what dead latents make of rest, by dense codes."""
    rest = rest.detach()
    z = pre_activations(sae, x)[:, dead]
    made = dense_topk(z, min(sae.k_aux, int(dead.sum()))) @ sae.w_dec[dead]
    return (made - rest).square().sum() / (rest - rest.mean(0)).square().sum()


def tree_data(rng, rows, d=20):
    """Rows of one of 11 exclusive parents, three of which have three exclusive children each.

    Parents are orthogonal to all others, children to those of other parents; siblings are alike.
    Returns rows, the 20 unit directions (parents first) and the parents of the nine children.
    """
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    siblings = 0.7 * np.eye(3) + 0.3  # three directions with cosines of about 0.7
    siblings /= np.linalg.norm(siblings, axis=1, keepdims=True)
    directions = basis[:20].copy()
    for family in range(3):
        place = slice(11 + 3 * family, 14 + 3 * family)
        directions[place] = siblings @ basis[place]
    codes = np.zeros((rows, 20))
    parent = rng.integers(0, 11, rows)
    codes[np.arange(rows), parent] = rng.normal(1.5, 0.25, rows)
    families = np.flatnonzero(parent < 3)
    child = 11 + 3 * parent[families] + rng.integers(0, 3, len(families))
    codes[families, child] = rng.normal(1.5, 0.25, len(families))
    return (codes @ directions).astype(np.float32), directions, np.repeat(np.arange(3), 3)
