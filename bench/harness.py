"""What the benches share: fair timing, errors, memory, output.

A bench is a list of cases. A case has inputs, contenders (ours comes first) and a judge that
measures the error of a result, for a fast wrong answer loses. Contenders take turns, round by
round, so that what else happens on the machine hits all of them; ratios are formed within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import subspan
from tables import aligned, table

SCHEMA = 1
SIZES = ("full", "quick", "tiny")
ROUNDS = {"full": 5, "quick": 3, "tiny": 1}
# Seconds that one sample lasts at least: quicker calls are repeated.
SHORTEST = {"full": 0.02, "quick": 0.02, "tiny": 0.0}

Contender = Callable[[Any], Any]
Judge = Callable[[Any, Any], dict[str, float]]


@dataclass(frozen=True)
class Case:
    """One comparison on one input."""

    name: str
    make: Callable[[], Any]
    contenders: Mapping[str, Contender]
    judge: Judge
    flops: float | None = None  # of the algorithm that is compared, for a rate in the table
    memory: str = ""  # "peak": resident; "anonymous": without mapped files; "": not measured
    rounds: int | None = None  # instead of the size's


def available(module: str) -> bool:
    """Whether a rival is installed; a bench runs without those that are not."""
    return importlib.util.find_spec(module) is not None


# ---- time ------------------------------------------------------------------------------------


# Workers of OpenBLAS and OpenMP spin for tens of milliseconds after a call: whoever comes next
# would be timed on cores that are not free.
_SETTLE = 0.2  # seconds


def _seconds(run: Contender, inputs: Any, repeats: int = 1) -> float:
    time.sleep(_SETTLE)
    start = time.perf_counter()
    for _ in range(repeats):
        run(inputs)
    return (time.perf_counter() - start) / repeats


def _busy_seconds() -> float:
    """Return the CPU seconds that all processes have used since boot; 0 where unknown."""
    with contextlib.suppress(OSError):
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        user, nice, system, _idle, _wait, irq, soft = (int(f) for f in fields[:7])
        return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")
    return 0.0


def measure(case: Case, rounds: int, shortest: float) -> dict[str, Any]:
    """Time all contenders of a case in turns; the first run of each is judged, not timed."""
    inputs = case.make()
    judged: dict[str, dict[str, float]] = {}
    repeats: dict[str, int] = {}
    for name, run in case.contenders.items():
        start = time.perf_counter()
        result = run(inputs)
        took = time.perf_counter() - start
        judged[name] = case.judge(inputs, result)
        if took < shortest:  # the first run includes what a library does once: look again
            took = max(_seconds(run, inputs), 1e-7)
        repeats[name] = max(1, round(shortest / took))
        del result
    seconds: dict[str, list[float]] = {name: [] for name in case.contenders}
    gc.collect()
    gc.disable()
    wall, own, busy = time.perf_counter(), time.process_time(), _busy_seconds()
    for _ in range(rounds):
        for name, run in case.contenders.items():
            seconds[name].append(_seconds(run, inputs, repeats[name]))
    wall, own = time.perf_counter() - wall, time.process_time() - own
    wall -= _SETTLE * rounds * len(case.contenders)
    gc.enable()
    foreign = max(0.0, _busy_seconds() - busy - own) / wall if busy else 0.0
    ours = next(iter(case.contenders))
    return {
        "name": case.name,
        "foreign_cores": round(foreign, 2),
        "rows": [
            row(name, seconds[name], seconds[ours], case.flops, judged[name])
            for name in case.contenders
        ],
    }


def row(
    name: str, mine: list[float], ours: list[float], flops: float | None, errors: dict[str, float]
) -> dict[str, Any]:
    """Return a contender's line of a case from the seconds of its rounds and of ours."""
    ratios = [a / b for a, b in zip(mine, ours, strict=True)]
    median = statistics.median(mine)
    return {
        "contender": name,
        "median_s": median,
        "min_s": min(mine),
        "max_s": max(mine),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "gflops": None if flops is None else flops / median / 1e9,
        "errors": {key: float(value) for key, value in errors.items()},
        "extra_mib": None,
    }


# ---- memory ----------------------------------------------------------------------------------


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1]) / 1024
    raise LookupError(field)


def extra_memory(case: Case, contender: str) -> float:
    """MiB that a contender takes on top of its input, at its peak. For a process of its own."""
    inputs = case.make()
    run = case.contenders[contender]
    gc.collect()
    if case.memory == "peak":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
        before = _status("VmRSS")
        keep = run(inputs)
        del keep
        return _status("VmHWM") - before
    # Pages of a mapped file are resident, but can be dropped at any time: count the others.
    before = peak = _status("RssAnon")
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        keep = run(inputs)
        del keep
    finally:
        done.set()
        watcher.join()
    return peak - before


def _memory_of_all(script: str, case: Case, options: argparse.Namespace) -> dict[str, float]:
    found = {}
    for name in case.contenders:
        command = [
            sys.executable,
            script,
            "--size",
            options.size,
            "--threads",
            str(options.threads),
            "--memory-of",
            case.name,
            name,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found[name] = round(float(done.stdout.split()[-1]), 1)
        else:
            print(f"memory of {name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
    return found


# ---- output ----------------------------------------------------------------------------------


def _print_facts(known: Mapping[str, Any]) -> None:
    gemm = known["gemm_gflops"]
    print(f"{known['cpu']}, {known['cores']} cores, {known['memory_gib']} GiB, {known['system']}")
    print(
        f"threads {known['threads']}, load {known['load_at_start']}, numpy's matrix product "
        f"{gemm['float32']} GFLOP/s float32, {gemm['float64']} float64"
    )
    print("  ".join(f"{name} {number}" for name, number in known["versions"].items()))
    print(
        "  ".join(
            f"{key}={value}"
            for key, value in known["subspan"].items()
            if key in {"cpu_level", "blas", "cuda"}
        )
    )
    for pool in known["thread_pools"]:
        print("  pool:", ", ".join(f"{key}={value}" for key, value in pool.items()))


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write results to a .json file, or to a folder as STEM.json."""
    file = path if path.suffix == ".json" else path / f"{results['bench']}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".partial")
    temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    temporary.replace(file)


# ---- command line ----------------------------------------------------------------------------


def _options(doc: str, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--size", choices=SIZES, default="full")
    size.add_argument(
        "--smoke", dest="size", action="store_const", const="tiny", help="does it run at all"
    )
    size.add_argument(
        "--quick",
        dest="size",
        action="store_const",
        const="quick",
        help="smaller inputs, 3 rounds, no memory",
    )
    parser.add_argument("--threads", type=int, default=subspan.get_num_threads())
    parser.add_argument("--rounds", type=int, help="instead of 5, 3 (quick) or 1 (tiny)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains it")
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="write FILE.json, or FOLDER/STEM.json"
    )
    parser.add_argument("--no-memory", action="store_true", help="skip the runs for memory")
    parser.add_argument(
        "--memory-of", nargs=2, metavar=("CASE", "CONTENDER"), help=argparse.SUPPRESS
    )
    return parser.parse_args(argv)


def main(
    script: str,
    cases: Callable[[str], Sequence[Case]],
    doc: str,
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Run a bench from the command line; returns what it wrote."""
    options = _options(doc, argv)
    with machine.equal_threads(options.threads):
        chosen = [case for case in cases(options.size) if options.only in case.name]
        if options.memory_of:
            name, contender = options.memory_of
            print(extra_memory(next(c for c in chosen if c.name == name), contender))
            return {}
        doubts = machine.warn_about(os.environ)
        for doubt in doubts:
            print(f"!!! {doubt}", file=sys.stderr)
        known = machine.facts(options.threads, options.size)
        _print_facts(known)
        results: dict[str, Any] = {
            "schema": SCHEMA,
            "bench": Path(script).stem.removeprefix("bench_"),
            "facts": known,
            "doubts": doubts,
            "cases": [],
        }
        for case in chosen:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of rivals; ours are tested elsewhere
                rounds = options.rounds or case.rounds or ROUNDS[options.size]
                result = measure(case, rounds, SHORTEST[options.size])
            if case.memory and options.size == "full" and not options.no_memory:
                extra = _memory_of_all(script, case, options)
                for line in result["rows"]:
                    line["extra_mib"] = extra.get(line["contender"])
            results["cases"].append(result)
            note = f"   ({result['foreign_cores']} cores used by others)"
            print(f"\n{case.name}{note if result['foreign_cores'] > 0.15 else ''}")
            print(aligned(table(result)), flush=True)
            if options.json:  # a run that is cut off leaves what it has measured
                write(options.json, results)
    known["load_at_end"] = round(os.getloadavg()[0], 2)
    if options.json:
        write(options.json, results)
    return results
