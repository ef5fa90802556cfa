"""What `make gpu-check` runs on, and what it needs: a GPU, CUDA tools, packages.

python bench/gpu_facts.py    prints what the built package and its rivals are, as JSON

The rest needs the standard library alone: it must work, or say what is missing, anywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BENCHES = "svd,eigh,qr,moments,pca,topk,encode,decode"
# Besides what pyproject.toml says of the build: what scikit-build-core needs, and the checks.
_NEEDED = ("packaging>=23.2", "pathspec>=0.12", "numpy", "pytest", "threadpoolctl")
# CUdevice_attribute
_MULTIPROCESSORS, _L2_BYTES, _SHARED_PER_BLOCK_OPT_IN, _MAJOR, _MINOR = 16, 38, 97, 75, 76


def device() -> dict[str, Any]:
    """Return the first GPU's facts; OSError says why there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise OSError("found no NVIDIA driver (libcuda.so.1)") from None
    count, handle, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or count.value == 0:
        raise OSError("the NVIDIA driver finds no GPU")
    if (
        driver.cuDeviceGet(ctypes.byref(handle), 0)
        or driver.cuDeviceGetName(name, len(name), handle)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
        or driver.cuDriverGetVersion(ctypes.byref(version))
    ):
        raise OSError("the NVIDIA driver does not answer")

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), which, handle)
        return value.value

    return {
        "name": name.value.decode(),
        "multiprocessors": attribute(_MULTIPROCESSORS),
        "capability": f"{attribute(_MAJOR)}.{attribute(_MINOR)}",
        "memory_gib": round(memory.value / 2**30, 1),
        "l2_mib": round(attribute(_L2_BYTES) / 2**20, 1),
        "shared_kib_per_block": attribute(_SHARED_PER_BLOCK_OPT_IN) // 1024,
        "driver": _driver_release(),
        "driver_cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
    }


def short_name(name: str) -> str:
    """Return a GPU's name as it goes into a file name: NVIDIA H100 80GB HBM3 is h100.

    >>> short_name("NVIDIA GeForce RTX 4090"), short_name("NVIDIA A100-SXM4-80GB")
    ('rtx-4090', 'a100-sxm4')
    """
    words = [w for w in re.split(r"[^a-z0-9]+", name.lower()) if w]
    kept = []
    for word in words:
        if re.fullmatch(r"\d+gb", word):
            break  # and what follows it: the kind of memory
        if word not in {"nvidia", "geforce", "tesla", "quadro"}:
            kept.append(word)
    return "-".join(kept) or "gpu"


def _driver_release() -> str:
    texts = []
    with contextlib.suppress(OSError):
        texts.append(Path("/proc/driver/nvidia/version").read_text(encoding="utf-8"))
    with contextlib.suppress(OSError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        texts.append(subprocess.run(query, capture_output=True, text=True, check=False).stdout)
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", "\n".join(texts))
    return found[0] if found else "unknown"


def tool(name: str) -> str | None:
    """Return the path of a program of the CUDA toolkit: on PATH, or where toolkits lie."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [
        str(Path(home) / part) for home in homes if home for part in ("bin", "compute-sanitizer")
    ]
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *folders]))


def nvcc_release(nvcc: str) -> str:
    """Return the compiler's version."""
    done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"V(\d+\.\d+\.\d+)", done.stdout)
    return found[1] if found else "unknown"


def date() -> str:
    """Return today's date in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime())


# ---- what must be there ------------------------------------------------------------------------


def missing(sections: Sequence[str]) -> list[str]:
    """Return what this machine lacks, in words."""
    lacks = []
    try:
        device()
    except OSError as error:
        lacks.append(f"a CUDA GPU ({error})")
    programs = {"build": "nvcc", "sanitize": "compute-sanitizer"}
    for section, program in programs.items():
        if section in sections and tool(program) is None:
            lacks.append(f"{program} (on PATH, or under CUDA_HOME)")
    has = {name: importlib.util.find_spec(name) is not None for name in ("torch", "cupy")}
    if "bench" in sections and not has["torch"]:
        lacks.append(f"torch for CUDA in {sys.executable} (name another: make PYTHON=...)")
    elif set(sections) & {"tests", "sanitize"} and not any(has.values()):
        lacks.append(f"torch or cupy for CUDA in {sys.executable} (name another: make PYTHON=...)")
    return lacks


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:5])


def satisfied(requirement: str) -> bool:
    """Whether this Python has a package in a version that is wanted: NAME, NAME>=V or NAME==V."""
    name, comparison, wanted = [*re.split(r"\s*(>=|==)\s*", requirement), "", ""][:3]
    try:
        found = _release(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False
    if comparison == "==":
        return found == _release(wanted)
    return not comparison or found >= _release(wanted)


def to_install() -> list[str]:
    """Return the requirements of the build and the checks that this Python does not meet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["build-system"]["requires"], *_NEEDED]
    programs = [name for name in ("cmake", "ninja") if shutil.which(name) is None]
    return [r for r in wanted if not satisfied(r)] + programs


# ---- what was built ----------------------------------------------------------------------------


def packages() -> dict[str, Any]:
    """Return what the package under test, its rivals and the host are."""
    import machine
    import subspan

    versions = machine.versions()
    for found in importlib.metadata.distributions():
        name = found.metadata["Name"] or ""
        if name.startswith(("cupy", "cuml")):
            versions[name] = found.version
    config = subspan.show_config()
    return {
        "cpu": machine.cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": config["threads"],
        "memory_gib": round(machine.memory_gib(), 1),
        "versions": versions,
        "subspan": config,
        "package": str(Path(subspan.__file__).parent),
    }


if __name__ == "__main__":
    print(json.dumps(packages()))
