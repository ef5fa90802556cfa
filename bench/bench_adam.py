"""A step of Adam on a dictionary: one pass against torch's fused Adam and passes beside it.

python bench/bench_adam.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import harness
import numpy as np
import subspan
from harness import Case, available

SHAPES = {
    "full": [(24576, 768), (32768, 2048), (4608, 576)],
    "quick": [(4608, 576)],
    "tiny": [(50, 24)],
}
JUDGED = 64  # rows
LR, BETAS, EPS = 1e-3, (0.9, 0.999), 1e-8


class Input:
    """Weights with unit rows, a gradient, and for each contender a state of its own."""

    def __init__(self, rows: int, d: int) -> None:
        rng = np.random.default_rng(0)
        w = rng.standard_normal((rows, d), np.float32)
        self.w = w / np.linalg.norm(w, axis=1, keepdims=True)
        self.g = rng.standard_normal((rows, d), np.float32)
        self.states: dict[str, Any] = {}


def reference(b: Input, whole: bool) -> Any:
    """The first rows after the first step, in float64."""
    w, g = b.w[:JUDGED].astype(np.float64), b.g[:JUDGED].astype(np.float64)
    if whole:
        w /= np.linalg.norm(w, axis=1, keepdims=True)
        g -= w * (g * w).sum(axis=1, keepdims=True)
    w = w - LR * g / (np.abs(g) + EPS)
    return w / np.linalg.norm(w, axis=1, keepdims=True) if whole else w


def judge(whole: bool, b: Input, result: Any) -> dict[str, float]:
    """Error of the first step."""
    return {"w": float(np.abs(np.asarray(result) - reference(b, whole)).max())}


def ours(whole: bool, b: Input) -> Any:
    if "ours" not in b.states:
        b.states["ours"] = [b.w.copy(), b.g, np.zeros_like(b.w), np.zeros_like(b.w), 0]
    state = b.states["ours"]
    state[-1] += 1
    subspan.adam_step(
        *state[:4], step=state[-1], lr=LR, betas=BETAS, eps=EPS,
        remove_parallel=whole, unit_rows=whole,
    )  # fmt: skip
    return state[0][:JUDGED].copy() if state[-1] == 1 else None


def by_torch(whole: bool, options: dict[str, bool], b: Input) -> Any:
    import torch

    name = str(options)
    if name not in b.states:
        weights = torch.nn.Parameter(torch.from_numpy(b.w.copy()))
        weights.grad = torch.from_numpy(b.g.copy() if whole else b.g)
        b.states[name] = weights, torch.optim.Adam([weights], LR, BETAS, EPS, **options), []
    weights, optimizer, calls = b.states[name]
    with torch.no_grad():
        if whole:  # in place, as trainers do
            along = (weights.grad * weights).sum(dim=1, keepdim=True)
            weights.grad -= along * weights
        optimizer.step()
        if whole:
            weights /= weights.norm(dim=1, keepdim=True)
    calls.append(1)
    return weights.detach()[:JUDGED].clone() if len(calls) == 1 else None


def case(rows: int, d: int, whole: bool) -> Case:
    contenders: dict[str, harness.Contender] = {"subspan.adam_step": partial(ours, whole)}
    if available("torch"):
        beside = ", projection and norms" if whole else ""
        for options in ({"fused": True}, {"foreach": True}, {"foreach": False}):
            name = ", ".join(f"{key}={value}" for key, value in options.items())
            contenders[f"torch Adam({name}){beside}"] = partial(by_torch, whole, options)
    kind = "adam with unit rows" if whole else "adam"
    return Case(
        f"{kind} {rows}x{d} float32",
        lambda: Input(rows, d),
        contenders,
        partial(judge, whole),
        memory="peak",
    )


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    return [case(*shape, whole) for shape in SHAPES[size] for whole in (True, False)]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
