"""Times on a CUDA GPU against torch and cupy (and cuml), with the errors beside them.

python bench/gpu_bench.py --json FILE [--bench svd,pca] [--seconds 180] [--size quick]

`make gpu-check` runs it. Needs torch. CUDA events around each sample; rounds in turns, as in
harness.py; inputs change from call to call, so that none is found in the caches.

A rival that would take long for a whole batch is timed on two smaller ones, and the difference of
the two is what each further matrix is taken to cost: fixed costs count once. Its name then says
"(from b of B)".
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_facts
import harness

ROUNDS = {"full": 7, "quick": 3, "tiny": 1}
SLOW_ROUNDS = 3  # of what takes longer than _SLOW
_SLOW = 0.3  # seconds
_SAMPLE = 0.005  # seconds that one sample lasts at least
_MOST_REPEATS = 100
_WHOLE = 0.1  # seconds up to which a rival gets the whole batch
_PART = 0.05  # seconds that a part of the batch must take to be extrapolated from
_GROWTH = 8  # of one part over the one before
# Largest test ratios of ours; R5 and E3 compare with values of another algorithm.
GATES = {"R1": 30.0, "R2": 30.0, "R3": 30.0, "E1": 30.0, "E2": 30.0, "R5": 60.0, "E3": 60.0}

Contender = Callable[[Any], Any]


class Lab:
    """Torch on the device, cupy if it is installed, and a clock."""

    def __init__(self, device: str) -> None:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self.torch, self.device = torch, torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.cupy: Any = None
        if self.on_gpu and harness.available("cupy"):
            import cupy

            self.cupy = cupy
        properties = torch.cuda.get_device_properties(self.device) if self.on_gpu else None
        self.cache_bytes = getattr(properties, "L2_cache_size", 1 << 20)

    def seconds(self, run: Callable[[int], Any], repeats: int = 1) -> float:
        """Return the time of one of `repeats` calls, run(0), run(1), ..."""
        if not self.on_gpu:
            start = time.perf_counter()
            for i in range(repeats):
                run(i)
            return (time.perf_counter() - start) / repeats
        first, last = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.torch.cuda.synchronize()
        first.record()
        for i in range(repeats):
            run(i)
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3 / repeats

    def free_bytes(self) -> int:
        self.release()
        return self.torch.cuda.mem_get_info()[0] if self.on_gpu else 1 << 33

    def release(self) -> None:
        """Give what the libraries hoard back to the device."""
        if self.on_gpu:
            self.torch.cuda.synchronize()
            self.torch.cuda.empty_cache()
        if self.cupy is not None:
            self.cupy.get_default_memory_pool().free_all_blocks()

    def ceilings(self) -> dict[str, float]:
        """Return the device's measured rates: a large copy, a large float32 product."""
        torch = self.torch
        n, count = (8192, 1 << 28) if self.on_gpu else (256, 1 << 20)
        source = torch.empty(count, device=self.device, dtype=torch.float32)
        target = torch.empty_like(source)
        a = torch.randn(n, n, device=self.device)
        copy = sorted(self.seconds(lambda _: target.copy_(source), 3) for _ in range(5))[2]
        product = sorted(self.seconds(lambda _: a @ a, 2) for _ in range(5))[2]
        return {
            "copy_gb_s": round(8.0 * count / copy / 1e9, 1),
            "float32_tflops": round(2.0 * n**3 / product / 1e12, 2),
        }


@dataclass(frozen=True)
class Case:
    """One comparison. The first contender is ours; `make(lab, seed)` gives one input."""

    stem: str
    name: str
    make: Callable[[Lab, int], Any]
    contenders: Callable[[Lab], dict[str, Contender]]
    judge: Callable[[Any, Any], dict[str, float]]
    bytes: int  # of one input
    work_bytes: int  # at most, of a contender
    batch: int = 0  # matrices, where `part(b)` of an input gives the first b; 0: all or nothing
    flops: float | None = None
    gates: dict[str, float] | None = None  # instead of GATES

    def inputs(self, lab: Lab) -> int:
        """Number of inputs that outgrow the caches together, within reason."""
        return min(8, max(1, math.ceil(3 * lab.cache_bytes / self.bytes)))


def is_ours(contender: str) -> bool:
    return contender.startswith("subspan")


@dataclass
class _Plan:
    """How a contender is timed."""

    name: str
    run: Contender
    errors: dict[str, float]
    seconds: float
    part: int = 0  # of the batch; 0: whole


def _plan(lab: Lab, case: Case, name: str, run: Contender, first: Any) -> _Plan:
    """Judge a contender, which warms it up, and find out how much of it there is time for."""

    def took(inputs: Any) -> float:
        run(inputs)
        return lab.seconds(lambda _: run(inputs))

    b = min(2, case.batch)
    while 0 < b < case.batch and not is_ours(name):
        seconds = took(first.part(b))
        if seconds * case.batch / b <= _WHOLE:
            break
        if seconds >= _PART:
            part = first.part(b)
            return _Plan(
                f"{name} (from {b} of {case.batch})", run, case.judge(part, run(part)), seconds, b
            )
        b = min(_GROWTH * b, case.batch)
    errors = case.judge(first, run(first))
    return _Plan(name, run, errors, max(took(first), 1e-7))


def _sample(lab: Lab, case: Case, plan: _Plan, inputs: Sequence[Any], offset: int) -> float:
    if plan.part == 0:
        repeats = min(max(1, round(_SAMPLE / plan.seconds)), _MOST_REPEATS)
        return lab.seconds(lambda i: plan.run(inputs[(offset + i) % len(inputs)]), repeats)
    source = inputs[offset % len(inputs)]
    large, small = plan.part, max(1, plan.part // _GROWTH)
    long = lab.seconds(lambda _: plan.run(source.part(large)))
    short = lab.seconds(lambda _: plan.run(source.part(small)))
    each = max(0.0, long - short) / (large - small)
    return long + (case.batch - large) * each


def measure(lab: Lab, case: Case, rounds: int) -> dict[str, Any]:
    """Return a case's figures; a rival that fails is absent, for a reason; ours must not fail."""
    inputs = [case.make(lab, seed) for seed in range(case.inputs(lab))]
    plans: list[_Plan] = []
    absent: dict[str, str] = {}
    for name, run in case.contenders(lab).items():
        try:
            plans.append(_plan(lab, case, name, run, inputs[0]))
        except Exception as error:  # a rival may refuse anything
            if not plans:
                raise
            absent[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        lab.release()
    seconds: list[list[float]] = [[] for _ in plans]
    gc.disable()
    for turn in range(rounds):
        for plan, found in zip(plans, seconds, strict=True):
            if turn < SLOW_ROUNDS or (plan.part == 0 and plan.seconds <= _SLOW):
                found.append(_sample(lab, case, plan, inputs, turn))
    gc.enable()
    ours = seconds[0]
    return {
        "name": case.name,
        "inputs": len(inputs),
        "absent": absent,
        "rows": [
            harness.row(  # ratios of the turns that both took
                plan.name, mine[: len(ours)], ours[: len(mine)], case.flops, plan.errors
            )
            for plan, mine in zip(plans, seconds, strict=True)
        ],
    }


def beyond_gates(case: Case, result: dict[str, Any]) -> list[str]:
    """Return what our rows got wrong."""
    gates = case.gates or GATES
    return [
        f"{case.name}: {row['contender']} {kind} {error:.3g} > {gates[kind]:g}"
        for row in result["rows"]
        if is_ours(row["contender"])
        for kind, error in row["errors"].items()
        if not error <= gates[kind]
    ]


def all_cases(size: str) -> list[Case]:
    """Return all cases, those that matter most first: there may not be time for all."""
    import gpu_adam
    import gpu_codes
    import gpu_kernels
    import gpu_linalg
    import gpu_pca
    import gpu_topk

    return [
        *gpu_linalg.cases(size),
        *gpu_pca.cases(size),
        *gpu_topk.cases(size),
        *gpu_kernels.cases(size),
        *gpu_codes.cases(size),
        *gpu_adam.cases(size),
        *gpu_linalg.further_cases(size),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--bench", default=gpu_facts.BENCHES, help="comma-separated")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no case after these")
    parser.add_argument("--size", choices=ROUNDS, default="full")
    parser.add_argument("--device", default="cuda", help="cpu tries out the bench itself")
    options = parser.parse_args(argv)
    end = time.monotonic() + options.seconds
    lab = Lab(options.device)
    results: dict[str, Any] = {
        "ceilings": lab.ceilings(),
        "cases": [],
        "left_out": [],
        "wrong": [],
    }
    for case in all_cases(options.size):
        if case.stem not in options.bench.split(","):
            continue
        if time.monotonic() > end:
            results["left_out"].append(f"{case.name} (no time)")
            continue
        need = case.inputs(lab) * case.bytes + case.work_bytes
        if need > lab.free_bytes():
            results["left_out"].append(f"{case.name} (needs {need / 2**30:.1f} GiB)")
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rivals; ours are tested elsewhere
            try:
                result = measure(lab, case, ROUNDS[options.size])
            except Exception as error:
                results["wrong"].append(f"{case.name}: {type(error).__name__}: {error}"[:400])
                print(f"{case.name}: {error}", file=sys.stderr)
            else:
                results["wrong"] += beyond_gates(case, result)
                results["cases"].append(result)
                print(f"{case.name}: {result['rows'][0]['median_s'] * 1e3:.3g} ms", flush=True)
        temporary = options.json.with_suffix(".partial")
        temporary.write_text(json.dumps(results) + "\n", encoding="utf-8")
        temporary.replace(options.json)
    return int(bool(results["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
