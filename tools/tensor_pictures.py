"""Pictures of docs/workflows/tensors.md: components of real tensors, from data in `tensorly`.

python tools/tensor_pictures.py [FOLDER]     # docs/images by default
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from subspan.tensors import CPTensor, cp, tucker
from tensorly.datasets import load_IL2data, load_indian_pines

Array = np.ndarray[Any, Any]


def il2() -> tuple[Array, CPTensor, Array]:
    """Return responses, their three nonnegative components, and errors of ranks 1 to 6."""
    x = np.asarray(load_IL2data().tensor, np.float64)
    known = np.isfinite(x)
    x = np.where(known, np.maximum(x, 0), 0)
    fits = [cp(x, r, mask=known, nonnegative=True, n_starts=8, tol=1e-6) for r in range(1, 7)]
    return x, fits[2].tensor, np.array([fit.error for fit in fits])


def pines() -> tuple[Array, CPTensor]:
    """Return the scene and its first four nonnegative components, in its Tucker bases' space."""
    x = np.asarray(load_indian_pines().tensor, np.float64)
    x /= x.max()
    small = tucker(x, tol=0.03).tensor.to_dense()
    return x, cp(np.maximum(small, 0), 12, nonnegative=True, max_iter=60, seed=1).tensor


def draw_il2(tensor: CPTensor, errors: Array, path: Path) -> None:
    """One row of profiles for each component, and the curve of errors."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots(tensor.rank, 5)
    names = ("ligand", "time", "dose", "cell type")
    for r in range(tensor.rank):
        for n, name in enumerate(names):
            axis, profile = axes[r, n], tensor.factors[n][:, r]
            if name in {"time", "dose"}:
                axis.plot(profile, marker="o", markersize=3)
            else:
                axis.bar(np.arange(len(profile)), profile)
            axis.set(ylim=(0, 1.05), yticks=[0, 1], xticks=[])
            if r == 0:
                axis.set_title(name)
        axes[r, 0].set_ylabel(f"part {r + 1}")
        axes[r, 4].set_visible(r == 0)
    axes[0, 4].plot(np.arange(1, len(errors) + 1), errors, marker="o")
    axes[0, 4].set(title="error", xlabel="parts", ylim=(0, None))
    figure.savefig(path, dpi=110)


def draw_pines(tensor: CPTensor, path: Path) -> None:
    """Draw maps and spectra of the heaviest components."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axes = figure.subplots(2, 4)
    for r in range(4):
        rows, columns, bands = (a[:, r] for a in tensor.factors)
        axes[0, r].imshow(np.outer(rows, columns), cmap="viridis")
        axes[0, r].set(xticks=[], yticks=[], title=f"weight {tensor.weights[r]:.0f}")
        axes[1, r].plot(bands)
        axes[1, r].set(xlabel="band", ylim=(0, None))
    figure.savefig(path, dpi=110)


def main(folder: Path) -> None:
    """Draw both pictures."""
    _, parts, errors = il2()
    draw_il2(parts, errors, folder / "tensors_il2.png")
    _, scene = pines()
    draw_pines(scene, folder / "tensors_pines.png")
    print("errors of 1 to 6 parts:", errors.round(3).tolist())


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
