"""Run facts: what a reader needs to repeat a run and to judge its times."""

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Mapping
from typing import Any

__all__ = ["Stopwatch", "fact_items", "run_facts"]

_PACKAGES = ("subspan", "numpy", "torch", "transformers", "tokenizers", "gguf", "matplotlib")


class Stopwatch:
    """Wall time by named part of a run; parts may be visited many times.

    Examples
    --------
    >>> watch = Stopwatch()
    >>> with watch.part("sum"):
    ...     _ = sum(range(10))
    >>> list(watch.seconds)
    ['sum']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def part(self, name: str) -> "_Part":
        """Return a context manager whose time is added to ``name``."""
        return _Part(self, name)

    def add(self, name: str, seconds: float) -> None:
        """Add ``seconds`` to the part ``name``."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


class _Part:
    def __init__(self, watch: Stopwatch, name: str) -> None:
        self._watch, self._name = watch, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._watch.add(self._name, time.perf_counter() - self._start)


def run_facts() -> dict[str, Any]:
    """Return machine, versions, threads and CPU level as plain JSON-able values.

    Only packages that are already imported are asked for a version, so the facts never pull in a
    heavy dependency.
    """
    import subspan

    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        if name in sys.modules:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_level": str(subspan.cpu_level()),
        "cpus": os.cpu_count(),
        "threads": int(subspan.get_num_threads()),
        "versions": versions,
    }


def fact_items(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what :func:`run_facts` found, and times and ``resumed``, as names and texts."""
    seconds = facts["seconds"]
    items = [
        ("Processor", f"{facts['cpu']}, level {facts['cpu_level']}, {facts['threads']} threads"),
        ("System", facts["system"]),
        ("Versions", ", ".join(f"{k} {v}" for k, v in facts["versions"].items())),
        (
            "Time",
            f"{sum(seconds.values()):.1f} s: "
            + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()),
        ),
    ]
    if facts["resumed"]:
        items.append(("Resumed", "yes: the times include only the last session"))
    return items


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - not a user's path
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
