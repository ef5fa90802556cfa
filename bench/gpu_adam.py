"""Cases of adam_step on a GPU: the rows of a dictionary, against torch's own optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import subspan
from gpu_bench import Case, Contender, Lab

_LR, _BETAS, _EPS = 1e-3, (0.9, 0.999), 1e-8
# Rows, their length, whether rows matter: their parallel gradient removed, their length kept at 1.
_CASES: list[tuple[int, int, bool]] = [(65_536, 768, False), (65_536, 768, True), (32, 4096, True)]

Step = Callable[[Any, Any, Any, Any], None]  # of w, g, m, v


class Rows:
    """Unit rows, a gradient, running means of zeros."""

    def __init__(self, lab: Lab, n: int, d: int, by_rows: bool, seed: int) -> None:
        torch = lab.torch
        generator = torch.Generator(lab.device).manual_seed(seed)
        self.torch, self.by_rows = torch, by_rows
        self.w, self.g = (
            torch.randn((n, d), generator=generator, device=lab.device) for _ in range(2)
        )
        self.w /= self.w.norm(dim=1, keepdim=True)
        self.m, self.v = torch.zeros_like(self.w), torch.zeros_like(self.w)

    def without_parallel(self, w: Any, g: Any) -> Any:
        return g - w * ((g * w).sum(1) / (w * w).sum(1))[:, None] if self.by_rows else g


def _contender(make: Callable[[Rows], Step]) -> Contender:
    """Take a step of the rows; what is judged is the function that does."""

    def run(rows: Rows) -> Step:
        step = make(rows)
        step(rows.w, rows.g, rows.m, rows.v)
        return step

    return run


def ours(rows: Rows) -> Step:
    by_rows = rows.by_rows

    def step(w: Any, g: Any, m: Any, v: Any) -> None:
        options = {"remove_parallel": by_rows, "unit_rows": by_rows}
        subspan.adam_step(w, g, m, v, step=1, lr=_LR, betas=_BETAS, eps=_EPS, **options)

    return step


def of_torch(form: str) -> Callable[[Rows], Step]:
    def make(rows: Rows) -> Step:
        def step(w: Any, g: Any, m: Any, v: Any) -> None:
            from torch.optim.adam import adam

            gradient = rows.without_parallel(w, g)
            steps = [rows.torch.zeros((), device=w.device if form == "fused" else "cpu")]
            beta1, beta2 = _BETAS
            adam(
                *([w], [gradient], [m], [v], [], steps), **{form: True}, amsgrad=False,
                beta1=beta1, beta2=beta2, lr=_LR, weight_decay=0.0, eps=_EPS, maximize=False,
            )  # fmt: skip
            if rows.by_rows:
                w /= w.norm(dim=1, keepdim=True)

        return step

    return make


def judge(rows: Rows, step: Step) -> dict[str, float]:
    """Return the largest error of a first step of some rows, beside the length of such a step."""
    w, g = rows.w[:16].clone(), rows.g[:16].clone()
    wide = w.double()
    gradient = rows.without_parallel(wide, g.double())
    wanted = wide - _LR * gradient / (gradient.abs() + _EPS)
    if rows.by_rows:
        wanted /= wanted.norm(dim=1, keepdim=True)
    step(w, g, rows.torch.zeros_like(w), rows.torch.zeros_like(w))
    return {"error": float((w.double() - wanted).abs().max() / _LR)}


def _contenders(lab: Lab) -> dict[str, Contender]:
    contenders = {
        "subspan.adam_step": _contender(ours),
        "torch foreach": _contender(of_torch("foreach")),
    }
    if lab.on_gpu:
        contenders["torch fused"] = _contender(of_torch("fused"))
    return contenders


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    share = {"full": 1, "quick": 8, "tiny": 500}[size]
    return [
        Case(
            "adam_step",
            f"adam_step float32 {n}x{d}" + (" by rows" if by_rows else ""),
            lambda lab, seed, n=n, d=d, by_rows=by_rows: Rows(lab, n, d, by_rows, seed),
            _contenders,
            judge,
            bytes=16 * n * d,
            work_bytes=24 * n * d,
            gates={"error": 1e-2},  # weights near 1 and steps of a thousandth: of 2^-23 beside that
        )
        for n, d, by_rows in ((max(n // share, 4), d, by_rows) for n, d, by_rows in _CASES)
    ]
