"""Small calls of every CUDA kernel, to run under compute-sanitizer (`make gpu-check` does).

compute-sanitizer --tool memcheck --error-exitcode 9 python tools/gpu_sanitize.py

Arrays are cupy's, or torch's where there is no cupy; each has a device allocation of its own, so
that memcheck sees where it ends. Data is copied from the host: what runs on the device is ours.
Results are checked, as a race may show in nothing else. Calls come in turns over the kernels, and
none is started after --seconds, so that a slow tool still ends with a verdict.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import subspan
from subspan.errors import InvalidArgumentError

Call = tuple[str, Callable[[], float]]  # a name, and what runs it and returns its error

BATCH, LARGE = 3, 10_000  # matrices; elements from which one matrix must do
LIMIT = 100.0  # errors of more ulp than this (and the size of the matrix) are wrong results
# Both sides of each change of kernel: a warp per matrix, a block in shared memory (its limit
# depends on the dtype), a block in global memory; tall ones start with a QR. One of each is first.
SVD = [
    *((3, 3), (32, 32), (64, 64), (60, 3), (100, 64), (300, 20), (250, 240), (5, 7)),
    *((1, 1), (2, 2), (7, 5), (20, 3), (16, 16), (33, 33), (31, 40), (70, 33), (33, 70)),
    *((128, 2), (129, 129), (20, 300), (161, 161)),
]
EIGH = [3, 32, 64, 100, 250, 1, 2, 5, 8, 16, 17, 33, 48, 65, 129, 161]
QR = [
    *((16, 8), (64, 64), (8, 16), (500, 32), (300, 250), (32, 16), (32, 32)),
    *((1, 1), (2, 3), (8, 8), (32, 8), (64, 8), (128, 8), (16, 16), (64, 16), (33, 33), (40, 70)),
    *((100, 100), (161, 161), (1000, 20)),
]
FEW_AND_LARGE = [(900, 600)]  # last: most of its time goes to kernels of cuSOLVER
# A block of each size, the buffer filled again and again, parts that are merged, sorted rows.
TOPK = [
    *((3, 700, 32), (2, 5000, 64), (3, 1500, 1000), (2, 40_000, 20), (2, 3000, 2500), (1, 1, 1)),
    *((3, 2049, 97), (2, 9001, 500), (2, 6000, 2048)),
]
# Points in registers and in tiles, one sum and several, segments of one block and of many.
KERNELS = [
    *(("gaussian", 200, 1100, 3, 1), ("gaussian", 130, 300, 20, 1), ("softmax", 90, 1100, 8, 3)),
    *(("cauchy", 60, 140, 5, 4), ("laplacian", 130, 260, 12, 40), ("matern32", 7, 2100, 8, 2)),
    *(("exp_dot", 129, 70, 3, 1), ("distance", 70, 130, 6, 5), ("gaussian", 1, 1, 1, 1)),
]
# Rows, pairs in each, features, width: packs and not, lists longer than a part of 1024 pairs.
DECODE = [(5, 3, 20, 64), (700, 4, 2, 36), (40, 40, 9, 7), (3, 1, 1, 1), (90, 8, 300, 520)]
# Rows, width, latents, k: whole rows, tiles, more than a block holds. Most time goes to cuBLAS.
ENCODE = [(5, 6, 300, 7), (1100, 4, 16_500, 40), (1, 1, 1, 1), (3, 5, 3000, 2100)]
ROWS = [(1, 1), (7, 3), (300, 65), (2100, 64), (5000, 130), (64, 300)]


class Device:
    """Arrays of cupy, or of torch, that each have their own allocation."""

    def __init__(self) -> None:
        if importlib.util.find_spec("cupy"):
            import cupy

            cupy.cuda.set_allocator(None)
            self.put: Callable[[np.ndarray], Any] = cupy.asarray
            self.get: Callable[[Any], np.ndarray] = cupy.asnumpy
        else:
            os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
            import torch

            self.put = lambda x: torch.from_numpy(x).cuda()
            self.get = lambda x: x.cpu().numpy()


def _error(product: np.ndarray, a: np.ndarray, dtype: Any) -> float:
    """Return the largest difference in ulp of the largest entry and the size of the matrix."""
    scale = np.abs(a).max() * np.finfo(dtype).eps * max(a.shape[-2:])
    return float(np.abs(product - a).max() / scale)


def decompositions(device: Device, dtype: Any, rng: np.random.Generator) -> Iterator[list[Call]]:
    """Yield the calls of svd, eigh and qr: with vectors and without, C order and transposed."""

    def wide(x: Any) -> np.ndarray:
        return device.get(x).astype(np.float64)

    def svd(a: np.ndarray, x: Any) -> float:
        u, s, vh, info, _ = subspan.svd(x, errors="info")
        assert not device.get(info).any()
        return _error((wide(u) * wide(s)[:, None, :]) @ wide(vh), a, dtype)

    def svdvals(a: np.ndarray, x: Any) -> float:
        truth = np.linalg.svd(a.astype(np.float64), compute_uv=False)
        return _error(wide(subspan.svdvals(x)), truth, dtype)

    def eigh(a: np.ndarray, x: Any) -> float:
        w, z, info = subspan.eigh(x, errors="info")
        assert not device.get(info).any()
        return _error((wide(z) * wide(w)[:, None, :]) @ wide(z).mT, a, dtype)

    def eigvalsh(a: np.ndarray, x: Any) -> float:
        truth = np.linalg.eigvalsh(a.astype(np.float64))
        return _error(wide(subspan.eigvalsh(x)), truth, dtype)

    def qr(a: np.ndarray, x: Any) -> float:
        q, r = subspan.qr(x)
        return _error(wide(q) @ wide(r), a, dtype)

    def calls(shapes: list[tuple[int, int]], *functions: Callable[..., float]) -> list[Call]:
        found: list[Call] = []
        for number, (m, n) in enumerate(shapes):
            a = rng.standard_normal((BATCH if m * n < LARGE else 1, m, n)).astype(dtype)
            if functions[0] is eigh:
                a = a + a.mT
            for function in functions:
                turned = number % 2 == 1  # read with strides

                def run(
                    a: np.ndarray = a, turned: bool = turned, function: Any = function
                ) -> float:
                    x = device.put(np.ascontiguousarray(a.mT if turned else a))
                    return float(function(a, x.swapaxes(-1, -2) if turned else x))

                found.append((f"{function.__name__} {np.dtype(dtype)} {m}x{n}", run))
        return found

    yield calls(SVD, svd, svdvals)
    yield calls([(n, n) for n in EIGH], eigh, eigvalsh)
    yield calls(QR, qr)
    yield calls(FEW_AND_LARGE, qr)


def moments(device: Device, rng: np.random.Generator) -> list[Call]:
    """Return the calls of Moments: every dtype of numpy, weighted or not."""
    found: list[Call] = []
    for n, d in ROWS:
        for dtype in (np.float32, np.float64, np.float16):
            x = (rng.standard_normal((n, d)) + 1).astype(dtype)
            w = np.arange(n) % 3 + 1.0 if dtype is not np.float64 else None

            def run(x: np.ndarray = x, w: np.ndarray | None = w) -> float:
                got = subspan.Moments().update(device.put(x), None if w is None else device.put(w))
                wide = x.astype(np.float64)
                weights = np.ones(len(x)) if w is None else w
                centred = wide - np.average(wide, axis=0, weights=weights)
                truth = (centred * weights[:, None]).T @ centred
                if len(x) == 1:
                    return float(np.abs(got.m2).max())
                return _error(got.m2, truth, np.float32 if x.itemsize < 8 else x.dtype)

            found.append((f"moments {np.dtype(dtype)} {n}x{d}", run))
    return found


def topk(device: Device, rng: np.random.Generator) -> list[Call]:
    """Return the calls of topk: random rows with ties, and an order that fills the buffers."""
    found: list[Call] = []
    for rows, n, k in TOPK:
        for dtype in (np.float32, np.float64, np.float16, np.int8):
            x = (rng.standard_normal((rows, n)) * 20).astype(dtype)
            x[0].sort()

            def run(x: np.ndarray = x, k: int = k) -> float:
                wanted = np.argsort(-x.astype(np.float64), axis=1, kind="stable")[:, :k]
                wrong = 0
                for best_first in (True, False):
                    values, indices = subspan.topk(device.put(x), k, sorted=best_first)
                    truth = wanted if best_first else np.sort(wanted, axis=1)
                    wrong += int((device.get(indices) != truth).sum())
                    wrong += int((device.get(values) != np.take_along_axis(x, truth, 1)).sum())
                return LIMIT + wrong if wrong else 0.0

            found.append((f"topk {np.dtype(dtype)} {rows}x{n} k={k}", run))
    return found


def kernel_sums(device: Device, rng: np.random.Generator) -> list[Call]:
    """Return the calls of kernel_matvec and kernel_logsumexp."""
    found: list[Call] = []
    for kernel, n, m, d, e in KERNELS:
        for dtype in (np.float32, np.float64):
            x, y = (rng.standard_normal((k, d)).astype(dtype) for k in (n, m))
            v = rng.uniform(0.5, 1, (m, e)).astype(dtype)

            def run(
                x: np.ndarray = x, y: np.ndarray = y, v: np.ndarray = v, kernel: str = kernel
            ) -> float:
                square = ((x[:, None].astype(np.float64) - y) ** 2).sum(-1)
                product, root = x.astype(np.float64) @ y.T, np.sqrt(square)
                k = {
                    "gaussian": lambda: np.exp(-square / 2),
                    "laplacian": lambda: np.exp(-root),
                    "matern32": lambda: (1 + 3**0.5 * root) * np.exp(-(3**0.5) * root),
                    "cauchy": lambda: 1 / (1 + square),
                    "distance": lambda: root,
                }.get(kernel, lambda: np.exp(product))()
                sums = k @ v
                truth = sums / k.sum(1, keepdims=True) if kernel == "softmax" else sums
                on_device = [device.put(a) for a in (x, y, v)]
                got = device.get(subspan.kernel_matvec(*on_device, kernel=kernel))
                error = _error(got, truth, x.dtype)
                if kernel not in {"softmax", "distance"}:
                    logs = device.get(subspan.kernel_logsumexp(*on_device, kernel=kernel))
                    error = max(error, _error(logs, np.log(sums), x.dtype))
                return error

            found.append((f"kernel_matvec {kernel} {np.dtype(dtype)} {n}x{m} d={d} e={e}", run))
    return found


def decode(device: Device, rng: np.random.Generator) -> list[Call]:
    """Return the calls of sparse_decode and of its gradients, with an index that is none."""
    found: list[Call] = []
    for rows, k, n, d in DECODE:
        for dtype in (np.float32, np.float64, np.float16):
            values = rng.standard_normal((rows, k)).astype(dtype)
            indices = rng.integers(0, n, (rows, k))
            w = rng.standard_normal((n, d)).astype(dtype)
            code = np.zeros((rows, n))
            np.add.at(code, (np.arange(rows)[:, None], indices), values.astype(np.float64))

            def run(
                values: np.ndarray = values,
                indices: np.ndarray = indices,
                w: np.ndarray = w,
                code: np.ndarray = code,
            ) -> float:
                wide, put = w.astype(np.float64), device.put
                there, of_values, of_w = [put(a) for a in (values, indices, w)], put(values), put(w)
                out = subspan.sparse_decode(*there)
                flat = there[0].reshape(-1), there[1].reshape(-1), None, len(values), there[2]
                into = of_values.reshape(-1), of_w, None
                stream = subspan._arrays.stream_of(of_w)
                subspan._core.sparse_decode_backward(*flat, out, *into, stream)
                truth = code.T @ device.get(out).astype(np.float64)
                scale = np.maximum(np.abs(truth).max(), 1)
                worst = max(
                    _error(device.get(out), code @ wide, w.dtype),
                    _error(device.get(of_w) / scale, truth / scale, w.dtype),
                )
                there[1][0, 0] = len(w)  # what reads there is for the sanitizers to see
                try:
                    out = device.get(subspan.sparse_decode(*there))
                except InvalidArgumentError:  # as the CPU says it
                    return worst
                return worst if np.isnan(out[0]).all() else LIMIT + 1

            found.append((f"decode {np.dtype(dtype)} {rows}x{d} n={n} k={k}", run))
    return found


def encode(device: Device, rng: np.random.Generator) -> list[Call]:
    """Return the calls of topk_encode on small integers, whose products are exact."""
    found: list[Call] = []
    for rows, d, n, k in ENCODE:
        for dtype in (np.float32, np.float64, np.float16):
            x, w, b_enc, b_pre = (
                rng.integers(-3, 4, shape).astype(dtype) for shape in ((rows, d), (d, n), n, d)
            )

            def run(given: tuple[np.ndarray, ...] = (x, w, b_enc, b_pre), k: int = k) -> float:
                x, w, b_enc, b_pre = (a.astype(np.float64) for a in given)
                z = (x - b_pre) @ w + b_enc
                wanted = np.argsort(-z, axis=1, kind="stable")[:, :k]
                there = [device.put(a) for a in given]
                values, indices = subspan.topk_encode(*there[:3], k=k, b_pre=there[3])
                truth = np.maximum(np.take_along_axis(z, wanted, 1), 0)
                wrong = int((device.get(indices) != wanted).sum())
                wrong += int((device.get(values) != truth).sum())
                return LIMIT + wrong if wrong else 0.0

            found.append((f"encode {np.dtype(dtype)} {rows}x{d} n={n} k={k}", run))
    return found


def adam(device: Device, rng: np.random.Generator) -> list[Call]:
    """Return the calls of adam_step and gradient_norm: elements, rows of warps, rows of blocks."""
    found: list[Call] = []
    for shape in ((1, 1), (7, 33), (40, 100), (3, 2500)):
        for dtype in (np.float32, np.float64):
            w, g = (rng.standard_normal(shape).astype(dtype) for _ in range(2))

            def run(w: np.ndarray = w, g: np.ndarray = g) -> float:
                truth, error = g.astype(np.float64), 0.0
                for by_rows in (False, True):
                    rows = [device.put(a.copy()) for a in (w, g, w * 0, w * 0)]
                    subspan.adam_step(
                        *rows, step=1, lr=0.1, betas=(0.0, 0.0), eps=1.0, remove_parallel=by_rows
                    )
                    wide = w.astype(np.float64)
                    share = (truth * wide).sum(1) / (wide * wide).sum(1)
                    rest = truth - wide * share[:, None] if by_rows else truth
                    wanted = wide - 0.1 * rest / (np.abs(rest) + 1)
                    error = max(error, _error(device.get(rows[0]), wanted, w.dtype))
                norm = np.array(subspan.gradient_norm(device.put(g)))
                return max(
                    error, _error(norm[None, None], np.linalg.norm(truth)[None, None], w.dtype)
                )

            found.append((f"adam_step {np.dtype(dtype)} {shape[0]}x{shape[1]}", run))
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the calls; the exit status is 1 if a result is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--only", default="", help="calls whose name contains it")
    options = parser.parse_args(argv)
    end = time.monotonic() + options.seconds
    device, rng = Device(), np.random.default_rng(0)
    *single, last = decompositions(device, np.float32, rng)
    *double, last_double = decompositions(device, np.float64, rng)
    turns = chain.from_iterable(
        zip_longest(
            *(*single, *double, moments(device, rng), topk(device, rng), decode(device, rng)),
            *(encode(device, rng), kernel_sums(device, rng), adam(device, rng)),
        )
    )
    turns = chain(turns, last, last_double)
    chosen = [call for call in turns if call is not None and options.only in call[0]]
    done = wrong = 0
    for name, run in chosen:
        if time.monotonic() > end:
            break
        start = time.monotonic()
        try:
            error = run()
        except BaseException:
            print(f"stopped in {name}", flush=True)
            raise
        wrong += not error <= LIMIT
        done += 1
        verdict = "" if error <= LIMIT else "  WRONG"
        print(f"{time.monotonic() - start:7.2f} s  {name}: {error:.2g}{verdict}", flush=True)
    print(f"{done} of {len(chosen)} calls, {wrong} wrong results")
    return int(wrong > 0 or done == 0)


if __name__ == "__main__":
    sys.exit(main())
