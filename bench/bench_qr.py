"""Batched thin QR: time and error against numpy, a scipy loop and torch.

python bench/bench_qr.py [--quick] [--only grid] [--threads N] [--json FILE]
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
    "subspan.qr": lambda b: subspan.qr(b.a),
    "numpy": lambda b: np.linalg.qr(b.a),
}
if available("scipy"):
    import scipy.linalg

    CONTENDERS["scipy loop"] = batched.loop(
        lambda a: scipy.linalg.qr(a, mode="economic", check_finite=False)
    )
if available("torch"):
    import torch

    CONTENDERS["torch"] = lambda b: torch.linalg.qr(b.tensor)


def judge(batch: batched.Batch, result: Any) -> dict[str, float]:
    """Residual of the factors, departure from orthonormality."""
    q, r = batched.doubles(*result)
    return {"residual": batch.relative(q @ r - batch.a), "|Q'Q - I|": batched.departure(q)}


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    return batched.cases("qr", CONTENDERS, judge, size)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return batched.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
