"""Batched symmetric eigenproblems: time and error against numpy, a scipy loop and torch.

python bench/bench_eigh.py [--quick] [--only grid] [--threads N] [--json FILE]
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
    "subspan.eigh": lambda b: subspan.eigh(b.a),
    "numpy": lambda b: np.linalg.eigh(b.a),
}
if available("scipy"):
    import scipy.linalg

    CONTENDERS["scipy loop"] = batched.loop(
        lambda a: scipy.linalg.eigh(a, driver="evd", check_finite=False)
    )
if available("torch"):
    import torch

    CONTENDERS["torch"] = lambda b: torch.linalg.eigh(b.tensor)


def judge(batch: batched.Batch, result: Any) -> dict[str, float]:
    """Residual of the factors, departure from orthonormality, error of the eigenvalues."""
    values, vectors = batched.doubles(*result)
    truth = np.linalg.eigvalsh(batch.a.astype(np.float64))
    largest = np.max(np.abs(truth), axis=1, keepdims=True)
    return {
        "residual": batch.relative((vectors * values[:, None, :]) @ vectors.mT - batch.a),
        "|V'V - I|": batched.departure(vectors),
        "values": np.max(np.abs(values - truth) / largest),
    }


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    return batched.cases("eigh", CONTENDERS, judge, size, symmetric=True)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return batched.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
