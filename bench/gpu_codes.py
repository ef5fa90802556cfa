"""Cases of sparse codes on a GPU: encoders against the bare product and torch's selection, decoders
and their gradients against torch's own ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import subspan
from gpu_bench import Case, Contender, Lab

_SAMPLE = 8  # rows, and features, that are compared with float64
_DENSE = 1 << 29  # elements up to which a dense code is a rival
_GATES = {"float32": 1e-5, "bfloat16": 2e-2}

Shape = tuple[int, int, int, int, str]  # rows, d, n, k, dtype

_SHAPES: list[Shape] = [
    (8192, 2304, 65_536, 64, "bfloat16"),
    (8192, 768, 65_536, 64, "bfloat16"),
    (8192, 768, 24_576, 32, "float32"),
]


class Codes:
    """Random codes of a dictionary of unit rows, and a gradient of what they decode to."""

    def __init__(self, lab: Lab, shape: Shape, seed: int) -> None:
        rows, d, n, k, dtype = shape
        torch = self.torch = lab.torch
        generator = torch.Generator(lab.device).manual_seed(seed)
        kind = getattr(torch, dtype)

        def normal(*extents: int) -> Any:
            return torch.randn(extents, generator=generator, device=lab.device)

        self.values = normal(rows, k).abs().to(kind)
        draw = torch.rand((rows, k), generator=generator, device=lab.device)
        self.indices = (draw.square() * n).long().clamp_(max=n - 1)  # some fire more than others
        self.w_dec = torch.nn.functional.normalize(normal(n, d)).to(kind)
        self.gradient = self.x = normal(rows, d).to(kind)
        self.w_enc = self.w_dec.t().contiguous()
        self.b_enc = (normal(n) / 10).to(kind)

    def leaves(self) -> tuple[Any, Any]:
        """Values and dictionary that collect gradients."""
        return tuple(x.detach().requires_grad_() for x in (self.values, self.w_dec))

    def bag(self, values: Any, w_dec: Any) -> Any:
        return self.torch.nn.functional.embedding_bag(
            self.indices, w_dec, per_sample_weights=values, mode="sum"
        )

    def dense(self, values: Any, w_dec: Any) -> Any:
        zeros = values.new_zeros(len(values), len(w_dec))
        return zeros.scatter_add(1, self.indices, values) @ w_dec

    def sparse(self, values: Any, w_dec: Any) -> Any:
        return subspan.sparse_decode(values, self.indices, w_dec)


def _encoders(k: int) -> Any:
    def found(lab: Lab) -> dict[str, Contender]:
        torch = lab.torch
        return {
            "subspan.topk_encode": lambda c: subspan.topk_encode(c.x, c.w_enc, c.b_enc, k=k),
            "torch product": lambda c: c.x @ c.w_enc,
            "torch product, topk": lambda c: torch.topk(torch.addmm(c.b_enc, c.x, c.w_enc), k),
        }

    return found


def _ways(shape: Shape) -> dict[str, str]:
    found = {"subspan.sparse_decode": "sparse", "torch embedding_bag": "bag"}
    return found | ({"torch dense": "dense"} if shape[0] * shape[2] <= _DENSE else {})


def _decoders(shape: Shape) -> Any:
    def contender(way: str) -> Contender:
        return lambda codes: getattr(codes, way)(codes.values, codes.w_dec)

    return lambda _: {name: contender(way) for name, way in _ways(shape).items()}


def _gradients(shape: Shape) -> Any:
    def contender(way: str) -> Contender:
        def run(codes: Codes) -> Any:
            leaves = codes.leaves()
            getattr(codes, way)(*leaves).backward(codes.gradient)
            return tuple(leaf.grad for leaf in leaves)

        return run

    return lambda _: {name: contender(way) for name, way in _ways(shape).items()}


def _wide(x: Any) -> np.ndarray:
    return np.asarray(x.detach().double().cpu().numpy())


def _error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def _sampled(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, _SAMPLE).astype(int)).tolist()


def judge_rows(codes: Codes, result: Any) -> dict[str, float]:
    """The largest error of some rows, relative to their largest entry."""
    at = _sampled(len(result))
    values, indices = _wide(codes.values[at]), codes.indices[at]
    wanted = np.einsum("rk,rkd->rd", values, _wide(codes.w_dec[indices]))
    return {"error": _error(_wide(result[at]), wanted)}


def judge_gradients(codes: Codes, result: Any) -> dict[str, float]:
    """The same of both gradients, of some rows and some features."""
    rows, features = _sampled(len(codes.values)), _sampled(len(codes.w_dec))
    chosen = _wide(codes.w_dec[codes.indices[rows]])
    of_values = np.einsum("rkd,rd->rk", chosen, _wide(codes.gradient[rows]))
    of_w = np.zeros((len(features), codes.w_dec.shape[1]))
    for place, feature in enumerate(features):
        where, which = (codes.indices == feature).nonzero(as_tuple=True)
        of_w[place] = _wide(codes.values[where, which]) @ _wide(codes.gradient[where])
    return {
        "values": _error(_wide(result[0][rows]), of_values),
        "w_dec": _error(_wide(result[1][features]), of_w),
    }


def judge_codes(codes: Codes, result: Any) -> dict[str, float]:
    """The largest error of some rows' values, relative to their largest, and how far below the k-th
    of z in float64 the least of those chosen lies."""
    if not isinstance(result, tuple):  # a bare product chooses nothing
        return {}
    at = _sampled(len(codes.x))
    z = _wide(codes.x[at]) @ _wide(codes.w_enc) + _wide(codes.b_enc)
    values, indices = (part[at].cpu() for part in result)
    chosen = np.take_along_axis(z, indices.numpy(), 1)
    kth = -np.sort(-z, axis=1)[:, indices.shape[1] - 1]
    missed = float((kth - chosen.min(axis=1)).max() / np.abs(z).max())
    return {"values": _error(_wide(values), np.maximum(chosen, 0)), "selection": max(missed, 0.0)}


def _encode_case(shape: Shape) -> Case:
    rows, d, n, k, dtype = shape
    width = 4 if dtype == "float32" else 2
    return Case(
        "encode",
        f"topk_encode {dtype} {rows}x{d} n={n} k={k}",
        lambda lab, seed: Codes(lab, shape, seed),
        _encoders(k),
        judge_codes,
        bytes=width * (2 * n * d + rows * d) + (8 + width) * rows * k,
        work_bytes=3 * width * rows * n + (1 << 28),
        flops=2.0 * d * n * rows,
        gates={"values": _GATES[dtype], "selection": 1e-5},
    )


def _case(kind: str, shape: Shape) -> Case:
    rows, d, n, k, dtype = shape
    width = 4 if dtype == "float32" else 2
    backward = kind == "decode gradients"
    dense = rows * n if rows * n <= _DENSE else 0
    gate = _GATES[dtype]
    return Case(
        "decode",
        f"{kind} {dtype} {rows}x{d} n={n} k={k}",
        lambda lab, seed: Codes(lab, shape, seed),
        (_gradients if backward else _decoders)(shape),
        judge_gradients if backward else judge_rows,
        bytes=width * (2 * n * d + rows * d) + (8 + width) * rows * k,
        work_bytes=width * (2 * n * d + 3 * dense) + 64 * rows * k + (1 << 29),
        flops=(6.0 if backward else 2.0) * d * rows * k,
        gates={"values": gate, "w_dec": gate} if backward else {"error": gate},
    )


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    share = {"full": 1, "quick": 8, "tiny": 256}[size]
    shapes = [
        (rows // share, d, n if size != "tiny" else n // share, min(k, n // share), dtype)
        for rows, d, n, k, dtype in _SHAPES
    ]
    decoders = [_case(kind, shape) for shape in shapes for kind in ("decode", "decode gradients")]
    return [*map(_encode_case, shapes), *decoders]
