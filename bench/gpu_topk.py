"""Cases of topk on a GPU: rows that lie on the device, against torch's own selection and sort."""

from __future__ import annotations

from typing import Any

import numpy as np
import subspan
from gpu_bench import Case, Contender, Lab

_SAMPLE = 4  # rows whose result is compared with a stable sort
_SORTED = 1 << 26  # elements up to which sorting all of it is a rival

_CASES: list[tuple[int, int, int, str]] = [
    (8192, 65_536, 64, "float32"),
    (8192, 65_536, 64, "bfloat16"),
    (4096, 24_576, 32, "float32"),
    (8192, 65_536, 256, "float32"),
    (100_000, 1024, 32, "float32"),
    (64, 1_000_000, 100, "float32"),
    (1, 10_000_000, 100, "float32"),
]


class Rows:
    """Normal rows on the device."""

    def __init__(self, lab: Lab, shape: tuple[int, int], dtype: str, seed: int) -> None:
        torch = lab.torch
        generator = torch.Generator(lab.device).manual_seed(seed)
        kind = getattr(torch, dtype)
        self.x = torch.randn(shape, generator=generator, device=lab.device, dtype=kind)


def _contenders(k: int, size: int) -> Any:
    def found(lab: Lab) -> dict[str, Contender]:
        torch = lab.torch
        contenders: dict[str, Contender] = {
            "subspan.topk": lambda rows: subspan.topk(rows.x, k),
            "torch": lambda rows: torch.topk(rows.x, k),
        }
        if size <= _SORTED:

            def by_sort(rows: Rows) -> Any:
                values, indices = torch.sort(rows.x, dim=-1, descending=True, stable=True)
                return values[:, :k], indices[:, :k]

            contenders["torch sort"] = by_sort
        return contenders

    return found


def judge(rows: Rows, result: Any) -> dict[str, float]:
    """Wrong values and wrong indices of some rows; nobody but us promises the indices of ties."""
    at = np.unique(np.linspace(0, len(rows.x) - 1, _SAMPLE).astype(int)).tolist()
    x = rows.x[at].float().cpu().numpy()
    values = result[0][at].float().cpu().numpy()
    indices = result[1][at].cpu().numpy()
    wanted = np.argsort(-x, axis=1, kind="stable")[:, : values.shape[1]]
    return {
        "wrong values": float((values != np.take_along_axis(x, wanted, axis=1)).sum()),
        "wrong indices": float((indices != wanted).sum()),
    }


def _case(rows: int, n: int, k: int, dtype: str) -> Case:
    width = 4 if dtype == "float32" else 2
    return Case(
        "topk",
        f"topk {dtype} {rows}x{n} k={k}",
        lambda lab, seed: Rows(lab, (rows, n), dtype, seed),
        _contenders(k, rows * n),
        judge,
        bytes=width * rows * n,
        work_bytes=4 * (width + 8) * rows * n if rows * n <= _SORTED else 4 * width * rows * n,
        gates={"wrong values": 0.0, "wrong indices": 0.0},
    )


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    share = {"full": 1, "quick": 8, "tiny": 1000}[size]
    return [
        _case(max(1, rows // share), n if size != "tiny" else max(n // 50, k), k, dtype)
        for rows, n, k, dtype in _CASES
    ]
