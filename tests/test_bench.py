"""The benches run, their figures are complete, and the tools around them judge rightly."""

import copy
import importlib
import json
import mmap
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import subspan

pytest.importorskip("threadpoolctl")
BENCH = Path(__file__).parent.parent / "bench"
pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="needs the source tree")


@pytest.fixture(autouse=True)
def bench_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    yield
    for name in ("harness", "machine", "batched", "grids", "compare", "publish"):
        sys.modules.pop(name, None)


def run(stem, *arguments):
    """Run a bench at its smallest size, in this process."""
    return importlib.import_module(f"bench_{stem}").main(["--smoke", *arguments])


@pytest.mark.parametrize(
    "stem",
    [
        *("svd", "eigh", "qr", "cholesky", "solve_triangular", "gram", "pca", "topk"),
        *("encode", "knn", "adam", "angles", "cka", "batches", "sae", "kernel_matvec"),
        "compression",
        "joint_kernel_sums",
        "tensor_power",
        "mttkrp",
    ],
)
@pytest.mark.filterwarnings("default")  # of rivals
def test_bench_runs_and_writes_what_it_prints(stem, tmp_path, capsys):
    threads = subspan.get_num_threads()
    results = run(stem, "--threads", "1", "--json", str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / f"{stem}.json").read_text()) == results
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / f"{stem}.json"]
    assert subspan.get_num_threads() == threads
    assert results["facts"]["threads"] == results["facts"]["subspan"]["threads"] == 1
    assert all(
        pool["threads"] == 1 for pool in results["facts"]["thread_pools"] if not pool["ours"]
    )
    assert results["facts"]["cpu"]
    printed = capsys.readouterr().out
    for case in results["cases"]:
        assert case["name"] in printed
        ours, *rivals = case["rows"]
        assert ours["contender"].startswith("subspan.")
        assert ours["ratio"] == 1.0
        assert rivals
        assert all(0 < row["min_s"] <= row["median_s"] <= row["max_s"] for row in case["rows"])
        limit = 1e-14 if "float64" in case["name"] else 1e-5
        assert ours["errors"]
        assert all(error <= limit for error in ours["errors"].values()), case["name"]


def result(ours, rival, error=1e-7):
    row = {"ratio": 1.0, "ratio_min": 1.0, "ratio_max": 1.0, "gflops": None, "extra_mib": None}
    rows = [
        row | {"contender": name, "median_s": s, "min_s": s, "max_s": s, "errors": {"error": e}}
        for name, s, e in (("subspan.svd", ours, error), ("numpy", rival, 1e-7))
    ]
    facts = {
        "cpu": "C",
        "threads": 2,
        "size": "full",
        "load_at_start": 0.1,
        "versions": {"numpy": "2"},
        "subspan": {"cpu_level": "v3"},
        "date": "2026-01-01",
    }
    case = {"name": "svd 1x(2x2)", "foreign_cores": 0.0, "rows": rows}
    return {"bench": "svd", "facts": facts, "cases": [case]}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (result(1.0, 1.0), 0),
        (result(1.05, 1.0), 0),
        (result(1.3, 1.0), 1),
        (result(1.3, 1.3), 0),  # the machine got slower, for everybody
        (result(1.0, 0.7), 1),  # a faster machine did not help us
        (result(0.5, 1.0), 0),
        (result(0.5, 1.0, error=3e-7), 1),  # faster, but less exact
    ],
)
def test_compare_tells_a_regression_from_a_slower_machine(change, code, tmp_path, capsys):
    compare = importlib.import_module("compare")
    files = []
    for name, content in (("base", result(1.0, 1.0)), ("change", change)):
        files.append(str(tmp_path / f"{name}.json"))
        Path(files[-1]).write_text(json.dumps(content))
    assert compare.main(files) == code
    assert "svd 1x(2x2)" in capsys.readouterr().out


def test_compare_refuses_runs_of_different_machines(tmp_path, capsys):
    other = copy.deepcopy(result(1.0, 1.0))
    other["facts"]["cpu"] = "D"
    (tmp_path / "a.json").write_text(json.dumps(result(1.0, 1.0)))
    (tmp_path / "b.json").write_text(json.dumps(other))
    compare = importlib.import_module("compare")
    assert compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "cpu differs" in capsys.readouterr().err


def test_publish_fills_marked_places_only():
    publish = importlib.import_module("publish")
    rest = "b\n<!-- bench:qr * -->\nc\n<!-- /bench -->\n<!-- bench:svd 2* -->\n<!-- /bench -->\n"
    page = f"a\n<!-- bench:svd svd 1x* -->\nold\n<!-- /bench -->\n{rest}"
    filled = publish.fill(page, {"svd": result(0.25, 0.5)})
    assert "old" not in filled
    assert "| subspan.svd | 250 |" in filled
    assert "under load" not in filled
    assert filled.startswith("a\n")
    assert filled.endswith(rest)
    assert publish.fill(filled, {"svd": result(0.25, 0.5)}) == filled


def test_a_grid_gives_a_line_for_each_case_and_calls_out_jumps():
    grids, publish = importlib.import_module("grids"), importlib.import_module("publish")
    results = result(1.0, 2.0)
    times = {(1, 4): 1e-4, (10, 4): 1e-4, (10, 5): 1.9e-4, (10, 6): 4e-4, (9, 12): 4e-3}
    results["cases"] += [
        result(seconds, seconds)["cases"][0] | {"name": f"svd grid {count}x({n}x{n}) float32"}
        for (count, n), seconds in times.items()
    ]
    cases = grids.of(results["cases"])
    assert len(cases) == len(times)
    head, *lines = grids.table(cases)
    assert head == ["", "us of one", "x n before", "x numpy", "error"]
    assert [line[1] for line in lines] == ["100", "10", "19", "40", "444"]
    assert [line[2] for line in lines] == ["", "", "1.90", "2.11", "11.11"]
    assert grids.jumps(cases) == [
        "!!! svd grid 10x(6x6) float32: 2.11 times the time of n = 5, one less"
    ]
    page = "<!-- bench:svd svd grid * -->\n<!-- /bench -->\n"
    filled = publish.fill(page, {"svd": results})
    assert filled.count("float32 |") == len(times)
    assert "svd 1x(2x2)" not in filled


def test_a_forced_blas_kernel_is_called_out():
    machine = importlib.import_module("machine")
    assert any(
        "OPENBLAS_CORETYPE=Haswell" in s
        for s in machine.warn_about({"OPENBLAS_CORETYPE": "Haswell"})
    )
    assert not any("OPENBLAS" in said for said in machine.warn_about({}))


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("lib/site-packages/subspan/.libs/libscipy_openblas.so", True),
        ("lib/site-packages/subspan.libs/libscipy_openblas-1f.so", True),
        ("lib/site-packages/scipy_openblas32/lib/libscipy_openblas.so", True),
        ("subspan/.venv/lib/site-packages/numpy.libs/libscipy_openblas64_-1f.so", False),
    ],
)
def test_our_own_blas_is_told_from_others(path, ours):
    assert importlib.import_module("machine").is_ours(path) is ours


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("kind", ["peak", "anonymous"])
def test_memory_sees_what_a_contender_allocates(kind):
    harness = importlib.import_module("harness")
    pause = threading.Event()

    def allocate(_):
        # A mapping of its own: malloc might serve it from pages that this long process has already.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        with mmap.mmap(-1, 32 << 20, flags) as big:
            for page in range(0, len(big), mmap.PAGESIZE):
                big[page] = 1
            pause.wait(0.05)
        return 0

    case = harness.Case("memory", lambda: np.zeros(1), {"subspan": allocate}, dict, memory=kind)
    assert 31 <= harness.extra_memory(case, "subspan") <= 48
