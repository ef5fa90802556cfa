"""`make gpu-check` where there is no GPU: what it refuses, how it judges, what it writes."""

import importlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("threadpoolctl")
ROOT = Path(__file__).parent.parent
BENCH, TOOLS = ROOT / "bench", ROOT / "tools"
pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="needs the source tree")
MODULES = ("bench", "check", "codes", "facts", "linalg", "pca", "report", "sanitize")


@pytest.fixture(autouse=True)
def bench_on_path(monkeypatch):
    for folder in (BENCH, TOOLS):
        monkeypatch.syspath_prepend(str(folder))
    yield
    for name in ("harness", "machine", "publish", "tables", *(f"gpu_{m}" for m in MODULES)):
        sys.modules.pop(name, None)


def load(name):
    return importlib.import_module(name)


# ---- what must be there ------------------------------------------------------------------------


def test_without_a_gpu_it_says_so_in_one_sentence(monkeypatch, capsys):
    facts = load("gpu_facts")

    def none():
        raise OSError("found no NVIDIA driver (libcuda.so.1)")

    monkeypatch.setattr(facts, "device", none)
    monkeypatch.setattr(facts, "tool", lambda _: None)
    assert load("gpu_check").main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gpu-check needs what this machine lacks: a CUDA GPU (found no NVIDIA")
    assert "nvcc" in said
    assert "compute-sanitizer" in said
    assert said.count("\n") == 1


def test_wrong_options_are_refused(capsys):
    check = load("gpu_check")
    for arguments, text in (
        (["--only", "build,cook"], "--only must name some of build, tests, sanitize, bench"),
        (["--wheels", "no/such/folder"], "--wheels must be a folder"),
    ):
        with pytest.raises(SystemExit):
            check.main(arguments)
        assert text in capsys.readouterr().err


def test_names_of_gpus_in_file_names():
    short = load("gpu_facts").short_name
    assert short("NVIDIA H100 80GB HBM3") == "h100"
    assert short("NVIDIA H200") == "h200"
    assert short("NVIDIA A100-SXM4-80GB") == "a100-sxm4"
    assert short("NVIDIA GeForce RTX 4090") == "rtx-4090"


def test_requirements():
    facts = load("gpu_facts")
    major = np.__version__.partition(".")[0]
    assert facts.satisfied("numpy")
    assert facts.satisfied(f"numpy>={major}")
    assert facts.satisfied(f"numpy == {np.__version__}")
    assert not facts.satisfied("numpy>=1000.1")
    assert not facts.satisfied("no-such-package-of-anybody")


# ---- sections ----------------------------------------------------------------------------------


def test_a_section_ends_at_its_limit_with_its_children(monkeypatch, tmp_path):
    check = load("gpu_check")
    monkeypatch.setattr(check, "LOGS", tmp_path)
    child = "import subprocess, sys; print('begun', flush=True); subprocess.run(['sleep', '60'])"
    start = time.monotonic()
    job = check.Job("slow", [sys.executable, "-c", child], 1.5, {})
    code, seconds = job.wait()
    assert code is None
    assert 1.4 <= seconds <= time.monotonic() - start < 15
    assert job.last_line() == "begun"
    assert check.Job.running == []
    quick = check.Job("quick", [sys.executable, "-c", "print(3); raise SystemExit(7)"], 30, {})
    assert quick.wait()[0] == 7
    assert quick.last_line() == "3"


def test_counts_of_tests(tmp_path):
    file = tmp_path / "tests.xml"
    count = load("gpu_check").count_tests
    assert sum(count(file).values()) == 0
    file.write_text(
        '<testsuites><testsuite tests="9" failures="2" errors="1" skipped="3"/></testsuites>'
    )
    assert count(file) == {"passed": 3, "failed": 2, "broken": 1, "skipped": 3}


@pytest.mark.parametrize(
    ("text", "code", "ok", "detail"),
    [
        ("5 of 5 calls, 0 wrong results\n=== ERROR SUMMARY: 0 errors\n", 0, True, "0 errors; 5 of"),
        ("2 of 5 calls, 0 wrong results\n=== ERROR SUMMARY: 0 errors\n", 0, True, "2 of 5 calls"),
        ("5 of 5 calls, 0 wrong results\n=== ERROR SUMMARY: 3 errors\n", 9, False, "3 errors"),
        (
            "5 of 5 calls, 0 wrong results\n"
            "=== RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)\n",
            0,
            False,
            "2 errors",
        ),
        ("5 of 5 calls, 1 wrong results\n=== ERROR SUMMARY: 0 errors\n", 1, False, "1 wrong"),
        ("Error: Device not supported\n", 0, False, "no verdict; Error: Device not supported"),
    ],
)
def test_verdicts_of_sanitizers(text, code, ok, detail, monkeypatch, tmp_path):
    check = load("gpu_check")
    monkeypatch.setattr(check, "LOGS", tmp_path)
    program = f"import sys; print({text!r}, end=''); sys.exit({code})"
    job = check.Job("memcheck", [sys.executable, "-c", program], 30, {})
    notes = {}

    class Stub:
        def note(self, name, outcome):
            notes[name] = outcome

    check.Check.finish_sanitizer(Stub(), job)
    assert notes["memcheck"].ok is ok
    assert detail in notes["memcheck"].detail


# ---- benches -----------------------------------------------------------------------------------


@pytest.fixture
def one_torch_thread():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_torch_thread")
def test_the_bench_runs_without_a_gpu_and_judges_all(tmp_path):
    file = tmp_path / "bench.json"
    options = ["--device", "cpu", "--size", "tiny", "--bench", "qr,svd,eigh", "--seconds", "60"]
    assert load("gpu_bench").main(["--json", str(file), *options]) == 0
    results = json.loads(file.read_text())
    assert results["wrong"] == results["left_out"] == []
    names = [case["name"] for case in results["cases"]]
    assert len(names) == len(
        load("gpu_linalg").cases("tiny") + load("gpu_linalg").further_cases("tiny")
    )
    for case in results["cases"]:
        ours, *rivals = case["rows"]
        assert ours["contender"].startswith("subspan.")
        assert any(row["contender"].startswith("torch") for row in rivals)
        assert set(ours["errors"]) <= {"R1", "R2", "R3", "R5", "E1", "E2", "E3"}
        assert all(0 <= error < 30 for error in ours["errors"].values()), case["name"]


@pytest.fixture
def lab():
    pytest.importorskip("torch")
    return load("gpu_bench").Lab("cpu")


class Numbers:
    """As many matrices as it says."""

    def __init__(self, count):
        self.count = count

    def part(self, count):
        return Numbers(count)


def test_a_slow_rival_is_extrapolated_by_its_marginal_cost(lab):
    bench = load("gpu_bench")
    case = bench.Case(
        "svd",
        "svd of 500",
        lambda _lab, _seed: Numbers(500),
        lambda _: {
            "subspan": lambda _: time.sleep(1e-4),
            "slow": lambda x: time.sleep(0.02 + 0.005 * x.count),
            "broken": lambda _: 1 // 0,
        },
        lambda x, _: {"R1": float(x.count)},
        bytes=1 << 20,
        work_bytes=0,
        batch=500,
    )
    result = bench.measure(lab, case, rounds=2)
    ours, slow = result["rows"]
    assert slow["contender"] == "slow (from 16 of 500)"
    assert slow["median_s"] == pytest.approx(0.02 + 0.005 * 500, rel=0.3)
    assert slow["ratio"] == pytest.approx(slow["median_s"] / ours["median_s"], rel=0.5)
    assert slow["errors"] == {"R1": 16.0}
    assert result["absent"] == {"broken": "ZeroDivisionError: integer division or modulo by zero"}
    assert bench.beyond_gates(case, result) == ["svd of 500: subspan R1 500 > 30"]


def test_nan_is_beyond_every_gate():
    bench = load("gpu_bench")
    case = bench.Case("svd", "c", None, None, None, bytes=1, work_bytes=0)
    rows = [{"contender": "subspan.svd", "errors": {"R1": float("nan"), "R2": 1.0}}]
    assert bench.beyond_gates(case, {"rows": rows}) == ["c: subspan.svd R1 nan > 30"]


def test_moments_and_pca_are_judged_by_float64(lab):
    pca = load("gpu_pca")
    rows = pca.Rows(lab, 500, 8, "float32", 0)
    truth = rows.x.double().numpy()
    np.testing.assert_allclose(rows.covariance, np.cov(truth.T), rtol=1e-10)
    right = np.cov(truth.T) * 499
    assert pca.judge_moments(rows, right)["error"] < 1e-10
    wrong = right.copy()
    wrong[2, 3] += 1e-3 * np.sqrt(right[2, 2] * right[3, 3])
    assert pca.judge_moments(rows, wrong)["error"] == pytest.approx(1e-3, rel=1e-3)
    values, vectors = np.linalg.eigh(rows.covariance)
    good = pca.judge_pca(rows, (values[::-1][:3], vectors[:, ::-1][:, :3].T))
    assert max(good.values()) < 1e-12
    bad = pca.judge_pca(rows, (values[::-1][:3] * 1.01, vectors[:, ::-1][:, :3].T))
    assert bad["variances"] == pytest.approx(0.01)


def test_the_driver_of_the_sanitizers_sees_wrong_results(monkeypatch, capsys):
    sanitize = load("gpu_sanitize")

    class Host:
        put = staticmethod(np.copy)
        get = staticmethod(np.asarray)

    monkeypatch.setattr(sanitize, "Device", Host)
    assert sanitize.main(["--only", "float32 3"]) == 0
    assert ", 0 wrong results" in capsys.readouterr().out
    monkeypatch.setattr(sanitize.subspan, "svdvals", lambda x: np.ones(x.shape[:-1], x.dtype))
    assert sanitize.main(["--only", "svdvals float32 3x3"]) == 1
    assert "WRONG" in capsys.readouterr().out


# ---- reports -----------------------------------------------------------------------------------


def row(contender, seconds, ours, **errors):
    times = dict.fromkeys(("median_s", "min_s", "max_s"), seconds)
    ratios = dict.fromkeys(("ratio", "ratio_min", "ratio_max"), seconds / ours)
    more = {"contender": contender, "errors": errors, "gflops": None, "extra_mib": None}
    return times | ratios | more


def results():
    gpu = {"name": "NVIDIA H100", "multiprocessors": 132, "memory_gib": 79.1, "driver": "580.1"}
    rows = [
        row("subspan.svd", 1e-3, 1e-3, R1=0.3, R2=0.5, R3=0.4),
        row("subspan.svd no wait", 9e-4, 1e-3, R1=0.3),
        row("torch gesvdj", 0.2, 1e-3, R1=0.7),
        row("torch", 0.01, 1e-3, R1=float("nan")),
    ]
    return {
        "bench": "gpu",
        "facts": {"gpu": gpu, "nvcc": "13.0", "versions": {"torch": "2.11"}, "date": "2026-01-02"},
        "sections": {"tests": {"ok": False, "seconds": 5.0, "detail": "3 passed, 1 failed"}},
        "cases": [{"name": "svd float32 9x(4x4)", "absent": {"cupy": "refused"}, "rows": rows}],
        "left_out": ["svd b (no time)"],
        "wrong": [],
    }


def test_the_report_shows_what_is_fast_slow_and_wrong():
    report = load("gpu_report")
    page, short = report.page(results()), report.compact(results())
    assert "| tests | FAILED | 5 | 3 passed, 1 failed |" in page
    line = "| svd float32 9x(4x4) | 1 | 0.9 | 0.5 | torch 10x (nan) | torch gesvdj 200x (0.7) |"
    assert line in page
    assert "cupy: refused" in page
    assert "Left out: svd b (no time)." in page
    assert "svd float32 9x(4x4) | 1 | 0.9 | 0.5 | torch 10x (nan)" in short
    assert "H100" in short.splitlines()[0]
    empty = results() | {"cases": [], "left_out": []}
    assert "FAILED" in report.compact(empty)
    assert "Summary" not in report.page(empty)


def test_publish_puts_one_line_for_each_case_into_a_page():
    publish = load("publish")
    page = "a\n<!-- bench:gpu svd* -->\nold\n<!-- /bench -->\nb\n"
    filled = publish.fill(page, {"gpu": results()})
    assert "| svd float32 9x(4x4) | 1 | 0.9 | 0.5 |" in filled
    assert "old" not in filled
    assert publish.fill(filled, {"gpu": results()}) == filled
