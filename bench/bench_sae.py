"""One training step of a sparse autoencoder: forward, backward, optimiser, unit rows.

python bench/bench_sae.py [--quick] [--threads N] [--json FILE]

The rivals are the step of plain torch, and those of dictionary_learning (60ec6bf), sparsify (1.3)
and SAELens (6.18), written anew from what their sources do, so that no language model, data loader
or logger of theirs is timed. No latent is dead, so nobody computes an auxiliary loss.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import harness
import numpy as np
from harness import Case, available

JUDGED = 64  # rows whose reconstruction is compared with float64
LR = 1e-4


@dataclass(frozen=True)
class Size:
    """Rows of a batch, and an autoencoder."""

    rows: int
    d: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.d} n={self.n} k={self.k} float32"


class Input:
    """A batch, the weights that all begin with, and for each contender a state of its own."""

    def __init__(self, size: Size) -> None:
        rng = np.random.default_rng(0)
        self.size = size
        # Rows with directions in them, as activations have: sums of a few of many.
        hidden = rng.standard_normal((size.n // 4, size.d), np.float32)
        chosen = rng.integers(0, len(hidden), (size.rows, 16))
        self.x = hidden[chosen].mean(axis=1) + rng.standard_normal((size.rows, size.d), np.float32)
        w_dec = rng.standard_normal((size.n, size.d), np.float32)
        self.w_dec = w_dec / np.linalg.norm(w_dec, axis=1, keepdims=True)
        self.b_dec = np.median(self.x, axis=0)
        self.states: dict[str, Callable[[], Any]] = {}

    def reference(self) -> Any:
        """The first reconstruction of some rows, in float64."""
        x, w = self.x[:JUDGED].astype(np.float64), self.w_dec.astype(np.float64)
        z = (x - self.b_dec) @ w.T
        best = np.argpartition(z, -self.size.k)[:, -self.size.k :]
        code = np.zeros_like(z)
        np.put_along_axis(code, best, np.maximum(np.take_along_axis(z, best, 1), 0), 1)
        return code @ w + self.b_dec


def judge(b: Input, result: Any) -> dict[str, float]:
    """Error of the reconstruction of the first step; a row whose selection is a tie is left out."""
    wanted = b.reference()
    wrong = np.abs(np.asarray(result) - wanted).max(axis=1) / np.abs(wanted).max()
    return {"reconstruction": float(np.quantile(wrong, 0.9))}


def contender(name: str, make: Callable[[Input], Callable[[], Any]]) -> harness.Contender:
    """Make the state at the first call, and take a step at every call."""

    def run(b: Input) -> Any:
        if name not in b.states:
            b.states[name] = make(b)
        return b.states[name]()

    return run


# ---- ours ------------------------------------------------------------------------------------


def ours(architecture: str, precision: str, b: Input) -> Callable[[], Any]:
    """A step of `subspan.sae.Trainer` on one batch that always comes again."""
    import itertools

    import torch
    from subspan.sae import TrainConfig, Trainer, make_sae

    sae = make_sae(architecture, b.size.d, b.size.n, k=b.size.k, precision=precision)
    with torch.no_grad():
        sae.w_dec.copy_(torch.from_numpy(b.w_dec))
        sae.w_enc.copy_(sae.w_dec.t())
        sae.b_dec.copy_(torch.from_numpy(b.b_dec))
    config = TrainConfig(steps=1_000_000, batch_size=b.size.rows, lr=LR, init=None)
    trainer = Trainer(sae, itertools.repeat(torch.from_numpy(b.x)), config)
    return lambda: trainer.step().loss.reconstruction[:JUDGED]


# ---- theirs ----------------------------------------------------------------------------------


class Dense:
    """What the rivals share: weights as torch's layers have them, dense codes, torch's Adam."""

    def __init__(self, b: Input, **adam: Any) -> None:
        import torch

        self.torch, self.k = torch, b.size.k
        parameter = torch.nn.Parameter
        self.x = torch.from_numpy(b.x)
        self.w_enc = parameter(torch.from_numpy(b.w_dec.copy()))  # (n, d), of a torch.nn.Linear
        self.b_enc = parameter(torch.zeros(b.size.n))
        self.w_dec = parameter(torch.from_numpy(b.w_dec.copy()))
        self.b_dec = parameter(torch.from_numpy(b.b_dec.copy()))
        weights = [self.w_enc, self.b_enc, self.w_dec, self.b_dec]
        self.adam = torch.optim.Adam(weights, lr=LR, **adam)

    def encode(self) -> Any:
        return self.torch.nn.functional.linear(self.x - self.b_dec, self.w_enc, self.b_enc)

    def decode(self, values: Any, indices: Any, n: int) -> Any:
        code = values.new_zeros(len(values), n).scatter(-1, indices, values)
        return code @ self.w_dec + self.b_dec

    def remove_parallel(self) -> None:
        along = (self.w_dec.grad * self.w_dec.data).sum(dim=1, keepdim=True)
        self.w_dec.grad -= along * self.w_dec.data

    def unit_rows(self) -> None:
        self.w_dec.data /= self.w_dec.data.norm(dim=1, keepdim=True)

    def step(self) -> Any:
        loss, made = self.loss()
        self.adam.zero_grad()
        loss.backward()
        self.update()
        return made.detach()[:JUDGED].clone()

    def loss(self) -> tuple[Any, Any]:
        values, indices = self.encode().topk(self.k)
        made = self.decode(values.relu(), indices, len(self.w_dec))
        return (made - self.x).square().mean(), made

    def update(self) -> None:
        self.remove_parallel()
        self.adam.step()
        self.unit_rows()


class BatchTopK(Dense):
    """The largest of the whole batch."""

    def loss(self) -> tuple[Any, Any]:
        z = self.encode().relu()
        values, places = z.flatten().topk(self.k * len(z))
        code = self.torch.zeros_like(z).flatten().scatter(0, places, values).reshape(z.shape)
        made = code @ self.w_dec + self.b_dec
        return (made - self.x).square().mean(), made


class DictionaryLearning(Dense):
    """Rectified before the selection, sums of squares for each row, clipped to norm 1."""

    def loss(self) -> tuple[Any, Any]:
        values, indices = self.encode().relu().topk(self.k, sorted=False)
        made = self.decode(values, indices, len(self.w_dec))
        return (self.x - made).pow(2).sum(dim=-1).mean(), made

    def update(self) -> None:
        self.remove_parallel()
        parameters = self.adam.param_groups[0]["params"]
        self.torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.adam.step()
        self.unit_rows()


class Sparsify(Dense):
    """embedding_bag for the decoder, and an encoder that saves the selection alone.

    Its encoder's gradient is made of all contributions, (rows, k, d), which index_add_ sums up.
    """

    def loss(self) -> tuple[Any, Any]:
        values, indices = _encoder().apply(self.x - self.b_dec, self.w_enc, self.b_enc, self.k)
        made = self.torch.nn.functional.embedding_bag(
            indices, self.w_dec, per_sample_weights=values, mode="sum"
        )
        made = made + self.b_dec
        error = (self.x - made).pow(2).sum()
        return error / (self.x - self.x.mean(0)).pow(2).sum(), made


class SAELens(Dense):
    """Dense codes, sums of squares for each row, rows of any length, the norm of gradients 1."""

    def loss(self) -> tuple[Any, Any]:
        z = self.encode()
        values, indices = z.topk(self.k, sorted=False)
        made = self.decode(values.relu(), indices, len(self.w_dec))
        return (made - self.x).pow(2).sum(dim=-1).mean(), made

    def update(self) -> None:
        self.torch.nn.utils.clip_grad_norm_(self.adam.param_groups[0]["params"], 1.0)
        self.adam.step()


def _encoder() -> Any:
    import torch

    class FusedEncoder(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, bias: Any, k: int) -> Any:
            z = torch.nn.functional.linear(x, weight, bias).relu()
            values, indices = z.topk(k, sorted=False)
            ctx.save_for_backward(x, weight, indices)
            ctx.mark_non_differentiable(indices)
            return values, indices

        @staticmethod
        def backward(ctx: Any, of_values: Any, _: Any) -> Any:
            x, weight, indices = ctx.saved_tensors
            of_x = torch.nn.functional.embedding_bag(
                indices, weight, mode="sum", per_sample_weights=of_values
            )
            of_weight = torch.zeros_like(weight)
            parts = of_values.unsqueeze(2) * x.unsqueeze(1)
            of_weight.index_add_(0, indices.flatten(), parts.reshape(-1, x.shape[1]))
            of_bias = weight.new_zeros(len(weight))
            of_bias.index_add_(0, indices.flatten(), of_values.flatten())
            return of_x, of_weight, of_bias, None

    return FusedEncoder


# ---- cases -----------------------------------------------------------------------------------

RIVALS: dict[str, Callable[[Input], Dense]] = {
    "torch, dense, fused Adam": lambda b: Dense(b, fused=True),
    "dictionary_learning's step": DictionaryLearning,
    "sparsify's step, Adam": Sparsify,
    "SAELens's step": SAELens,
}
SIZES = {
    "full": [Size(4096, 768, 24576, 32), Size(4096, 576, 4608, 32), Size(1024, 2048, 32768, 32)],
    "quick": [Size(512, 576, 4608, 32)],
    "tiny": [Size(40, 24, 200, 5)],
}


def case(kind: str, size: Size) -> Case:
    makes: dict[str, Callable[[Input], Callable[[], Any]]] = {
        f"subspan.sae.Trainer, {kind}": partial(ours, kind, "certified"),
    }
    if kind == "topk":
        makes['subspan.sae.Trainer, precision="exact"'] = partial(ours, kind, "exact")
        for name, rival in RIVALS.items():
            makes[name] = lambda b, rival=rival: rival(b).step
    else:
        makes["torch, dense, fused Adam"] = lambda b: BatchTopK(b, fused=True).step
    return Case(
        f"{kind} step {size}",
        lambda: Input(size),
        {name: contender(name, make) for name, make in makes.items()},
        judge if kind == "topk" else judge_batch,
        memory="peak",
        rounds=3 if size.rows * size.n > 1 << 24 else None,
    )


def judge_batch(b: Input, result: Any) -> dict[str, float]:
    """Error of the reconstruction of the first step, of what the whole batch selects."""
    x, w = b.x.astype(np.float64), b.w_dec.astype(np.float64)
    z = np.maximum((x - b.b_dec) @ w.T, 0)
    bar = np.partition(z.ravel(), -b.size.k * len(z))[-b.size.k * len(z)]
    some = z[:JUDGED]
    wanted = np.where(some >= bar, some, 0) @ w + b.b_dec
    wrong = np.abs(np.asarray(result) - wanted).max(axis=1) / np.abs(wanted).max()
    return {"reconstruction": float(np.quantile(wrong, 0.9))}


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    if not available("torch"):
        return []
    batch_topk = {"full": Size(4096, 576, 4608, 32)}.get(size, SIZES[size][0])
    return [case("topk", one) for one in SIZES[size]] + [case("batch_topk", batch_topk)]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
