"""The machine that a bench runs on: its facts, what spoils a comparison, and equal threads."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import sys
import time
import timeit
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import subspan
import threadpoolctl


def cpu_model() -> str:
    """Return the CPU's name, with family and model: virtual machines shorten the name."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    if "model name" not in found:
        return platform.processor() or platform.machine()
    if "cpu family" not in found:
        return found["model name"]
    return f"{found['model name']} (family {found['cpu family']} model {found['model']})"


def memory_gib() -> float:
    """Return the machine's memory in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def versions() -> dict[str, str]:
    """Return the versions of what is compared."""
    found = {}
    for name in (
        *("subspan", "numpy", "scipy", "torch", "scikit-learn", "faiss-cpu", "threadpoolctl"),
    ):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def gemm_rate(dtype: str, n: int) -> float:
    """Return numpy's matrix product of order n, in GFLOP/s, best of 5."""
    a = np.random.default_rng(0).standard_normal((n, n)).astype(dtype)
    best = min(timeit.repeat(lambda: a @ a, number=1, repeat=5))
    return 2.0 * n**3 / best / 1e9


def facts(threads: int, size: str) -> dict[str, Any]:
    """Return everything that a figure depends on besides the code."""
    n = {"full": 4096, "quick": 2048, "tiny": 64}[size]
    blas = [
        {
            key: pool[key]
            for key in ("user_api", "internal_api", "version", "architecture", "prefix")
            if key in pool
        }
        | {"threads": pool["num_threads"], "ours": is_ours(pool["filepath"])}
        for pool in threadpoolctl.threadpool_info()
    ]
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(memory_gib(), 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
        "subspan": subspan.show_config(),
        "threads": threads,
        "thread_pools": blas,
        "openblas_environment": {k: v for k, v in os.environ.items() if k.startswith("OPENBLAS_")},
        "load_at_start": round(os.getloadavg()[0], 2),
        "gemm_gflops": {t: round(gemm_rate(t, n), 1) for t in ("float32", "float64")},
        "size": size,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def warn_about(environment: Mapping[str, str]) -> list[str]:
    """Return what makes a comparison worthless or doubtful."""
    said = []
    if "OPENBLAS_CORETYPE" in environment:
        said.append(
            f"OPENBLAS_CORETYPE={environment['OPENBLAS_CORETYPE']} forces a kernel on numpy and "
            "scipy and can halve their speed. Unset it: these figures are not a comparison."
        )
    if "SUBSPAN_CPU_LEVEL" in environment:
        said.append(f"SUBSPAN_CPU_LEVEL={environment['SUBSPAN_CPU_LEVEL']} forces our kernels.")
    if os.getloadavg()[0] > 1.5:
        said.append(
            f"The load average is {os.getloadavg()[0]:.1f}: something else runs. Trust ratios, not "
            "times."
        )
    return said


# ---- threads ---------------------------------------------------------------------------------


def is_ours(path: str) -> bool:
    """Whether a BLAS is the private copy: of a source install, a wheel, or a development build."""
    folders = Path(path).parts[:-1]
    return (
        folders[-2:] == ("subspan", ".libs")
        or folders[-1:] == ("subspan.libs",)
        or "scipy_openblas32" in folders
    )


@contextlib.contextmanager
def equal_threads(n: int) -> Iterator[None]:
    """Give every library n threads.

    Our own BLAS is left alone: it runs single-threaded calls on our pool, and raises its threads
    itself for a large matrix that comes alone.
    """
    controllers = threadpoolctl.ThreadpoolController().lib_controllers
    rivals = [c for c in controllers if not is_ours(c.filepath)]
    before = [c.num_threads for c in rivals]
    torch = sys.modules.get("torch")
    torch_before = torch.get_num_threads() if torch else 0
    try:
        for controller in rivals:
            controller.set_num_threads(n)
        if torch:
            torch.set_num_threads(n)
        subspan.set_num_threads(n)
        yield
    finally:
        for controller, number in zip(rivals, before, strict=True):
            controller.set_num_threads(number)
        if torch:
            torch.set_num_threads(torch_before)
        subspan.set_num_threads(None)
