"""Batched thin SVD: time and error against numpy, a scipy loop and torch.

python bench/bench_svd.py [--quick] [--only grid] [--threads N] [--json FILE]
"""

from __future__ import annotations

import sys
from typing import Any

import batched
import harness
import numpy as np
import subspan
from harness import Case, available

CONTENDERS: dict[str, harness.Contender] = {
    "subspan.svd": lambda b: subspan.svd(b.a),
    "numpy": lambda b: np.linalg.svd(b.a, full_matrices=False),
}
if available("scipy"):
    import scipy.linalg

    CONTENDERS["scipy loop"] = batched.loop(
        lambda a: scipy.linalg.svd(a, full_matrices=False, check_finite=False)
    )
if available("torch"):
    import torch

    CONTENDERS["torch"] = lambda b: torch.linalg.svd(b.tensor, full_matrices=False)


def judge(batch: batched.Batch, result: Any) -> dict[str, float]:
    """Residual of the factors, departure from orthonormality, error of the singular values."""
    u, s, vh = batched.doubles(*result)
    truth = np.linalg.svd(batch.a.astype(np.float64), compute_uv=False)
    return {
        "residual": batch.relative((u * s[:, None, :]) @ vh - batch.a),
        "|U'U - I|": max(batched.departure(u), batched.departure(vh.mT)),
        "values": np.max(np.abs(s - truth) / truth[:, :1]),
    }


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    return batched.cases("svd", CONTENDERS, judge, size)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return batched.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
