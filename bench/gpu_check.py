"""Everything that needs a CUDA GPU, in one command: build, tests, sanitizers, benches.

make gpu-check [ARGS='--only build,tests'] [RESULTS=folder] [WHEELS=folder]

Builds this tree for the GPU at hand into build/gpu, runs the tests marked gpu and small calls under
compute-sanitizer against that build, and times it against torch and cupy. Every section has a time
limit and leaves what it found, so that there are results in any case; a full run writes them to
bench/results/gpu-NAME-DATE.json and .md. The exit status is 1 if a section failed.

Python is the one that has torch or cupy for CUDA. What the build needs and this Python lacks is
installed into build/gpu/tools: from the folder of wheels if one is given, else from the index that
pip is set up for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import gpu_facts
import gpu_report

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "gpu"
SITE, TOOLS, LOGS = BUILD / "site", BUILD / "tools", BUILD / "logs"
RESULTS = ROOT / "bench" / "results"

SECTIONS = ("build", "tests", "sanitize", "bench")
SANITIZERS = ("memcheck", "racecheck", "synccheck")
# Seconds: of everything, and of each section within it.
TOTAL = 520.0
LIMITS = {"build": 260.0, "tests": 120.0, "sanitize": 120.0, "bench": 240.0}
_LEAST_BENCH = 40.0
_AFTER = 5.0  # seconds that a child gets to stop by itself
_LOG_TAIL = 2500  # characters of a failed section's log


class Outcome(NamedTuple):
    """What came of a section."""

    ok: bool
    seconds: float
    detail: str

    def to_dict(self) -> dict[str, Any]:
        return self._asdict()


class Job:
    """A child process that adds to a section's log; at its limit all its children end with it."""

    running: ClassVar[list[Job]] = []

    def __init__(self, name: str, command: Sequence[str], limit: float, env: Mapping[str, str]):
        self.name, self.limit = name, max(limit, 1.0)
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{name}.log"
        self.start = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=env, cwd=ROOT, start_new_session=True
            )
        self.running.append(self)

    def wait(self) -> tuple[int | None, float]:
        """Return the exit status, None if it ran out of time, and the seconds."""
        code: int | None = None
        try:
            code = self.process.wait(max(0.1, self.start + self.limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.stop()
        self.running.remove(self)
        return code, time.monotonic() - self.start

    def stop(self) -> None:
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_AFTER)
                return

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def last_line(self) -> str:
        lines = self.text().strip().splitlines()
        return lines[-1].strip() if lines else ""

    def reason(self) -> str:
        """Return the first line that speaks of an error, else the last line."""
        found = re.search(r"^.*\berror\b.*$", self.text(), re.IGNORECASE | re.MULTILINE)
        return (found[0].strip() if found else self.last_line())[:200]


# ---- sections ----------------------------------------------------------------------------------


class Check:
    """One run: its time, its environment, its results."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.end = time.monotonic() + options.limit
        path = [str(SITE), str(TOOLS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.env = os.environ | {
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONUNBUFFERED": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PATH": os.pathsep.join(
                [str(TOOLS / "bin"), os.environ.get("PATH", ""), *_toolkit_folders()]
            ),
        }
        nvcc = gpu_facts.tool("nvcc")
        self.results: dict[str, Any] = {
            "schema": 1,
            "bench": "gpu",
            "facts": {
                "gpu": gpu_facts.device(),
                "nvcc": gpu_facts.nvcc_release(nvcc) if nvcc else "unknown",
                "size": "quick" if options.quick else "full",
                "date": gpu_facts.date(),
            },
            "sections": {},
            "cases": [],
            "left_out": [],
            "wrong": [],
        }

    def left(self, section: str) -> float:
        """Return the seconds that a section may take."""
        return min(LIMITS[section], self.end - time.monotonic())

    def note(self, name: str, outcome: Outcome) -> None:
        self.results["sections"][name] = outcome.to_dict()
        verdict = "ok" if outcome.ok else "FAILED"
        print(f"{name}: {verdict}, {outcome.seconds:.0f} s, {outcome.detail}", flush=True)
        self.write()

    def write(self) -> list[Path]:
        """Write what there is: to build/gpu, to --results, and, when all ran, to bench/results."""
        facts = self.results["facts"]
        stem = f"gpu-{gpu_facts.short_name(facts['gpu']['name'])}-{facts['date']}"
        folders = [BUILD]
        if self.options.results:
            folders.append(self.options.results)
        if self.options.full and "bench" in self.results["sections"]:
            folders.append(RESULTS)
        written = []
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            for suffix, text in (
                (".json", json.dumps(self.results, indent=1) + "\n"),
                (".md", gpu_report.page(self.results)),
            ):
                path = folder / f"{stem}{suffix}"
                temporary = path.with_suffix(".partial")
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(path)
                written.append(path)
        if self.options.results:
            for log in LOGS.glob("*.log"):
                shutil.copy(log, self.options.results)
        return written

    def build(self) -> bool:
        """Install what is missing, then the package; find out what was built."""
        start = time.monotonic()

        def failed(job: Job, code: int | None, what: str) -> bool:
            why = "ran out of time" if code is None else f"failed: {job.reason()}"
            self.note("build", Outcome(False, time.monotonic() - start, f"{what} {why}"))
            return False

        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--upgrade"]
        wheels = self.options.wheels
        source = ["--no-index", "--find-links", str(wheels.resolve())] if wheels else []
        if lacking := gpu_facts.to_install():
            constraints = ["-c", str(ROOT / "constraints.txt")]
            command = [*pip, *source, *constraints, "--target", str(TOOLS), *lacking]
            job = Job("build", command, self.left("build"), self.env)
            code, _ = job.wait()
            if code != 0:
                return failed(job, code, f"installing {' '.join(lacking)} (see WHEELS)")
        defines = {"SUBSPAN_CUDA": "ON", "CMAKE_CUDA_ARCHITECTURES": "native"}
        settings = [f"--config-settings=cmake.define.{k}={v}" for k, v in defines.items()]
        settings.append(f"--config-settings=build-dir={BUILD / 'cmake'}")
        command = [*pip, "--verbose", "--no-index", "--no-build-isolation", *settings]
        job = Job("build", [*command, "--target", str(SITE), "."], self.left("build"), self.env)
        code, _ = job.wait()
        if code != 0:
            return failed(job, code, "the build")
        script = str(ROOT / "bench" / "gpu_facts.py")
        job = Job("build", [sys.executable, script], 60.0, self.env)
        code, _ = job.wait()
        if code != 0:
            return failed(job, code, "the import")
        known = json.loads(job.last_line())
        package, config = known.pop("package"), known["subspan"]
        self.results["facts"] |= known
        ours = Path(package).resolve() == (SITE / "subspan").resolve()
        detail = f"subspan {config['subspan']}, capability "
        detail += self.results["facts"]["gpu"]["capability"]
        if not ours:
            detail = f"Python imports another subspan: {package}"
        elif not config["cuda"]:
            detail = (
                "the package finds no CUDA library or no device: show_config()['cuda'] is False"
            )
        ok = ours and bool(config["cuda"])
        self.note("build", Outcome(ok, time.monotonic() - start, detail))
        return ok

    def start_tests(self) -> Job:
        """All tests marked gpu, of the files that have any: others need more packages."""
        files = [
            str(path)
            for path in sorted((ROOT / "tests").glob("test_*.py"))
            if "pytest.mark.gpu" in path.read_text(encoding="utf-8")
        ]
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--durations=8"]
        command += ["-p", "no:cacheprovider", f"--junitxml={BUILD / 'tests.xml'}", *files]
        (BUILD / "tests.xml").unlink(missing_ok=True)
        # What else is installed there is not to have a say in the outcome.
        env = self.env | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return Job("tests", command, self.left("tests"), env)

    def finish_tests(self, job: Job) -> None:
        code, seconds = job.wait()
        counts = count_tests(BUILD / "tests.xml")
        detail = ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)
        if code is None:
            detail = f"ran out of time; {job.last_line()[:200]}"
        ok = code == 0 and counts["passed"] > 0
        self.note("tests", Outcome(ok, seconds, detail or f"no test ran; {job.last_line()[:200]}"))
        self.results["sections"]["tests"]["counts"] = counts

    def start_sanitizers(self) -> list[Job]:
        limit = self.left("sanitize")
        # A process under a sanitizer starts slowly; what it has begun must end, too.
        seconds = max(10.0, limit - 40.0) / (4 if self.options.quick else 1)
        driver = [sys.executable, str(ROOT / "tools" / "gpu_sanitize.py"), f"--seconds={seconds}"]
        sanitizer = str(gpu_facts.tool("compute-sanitizer"))
        # Errors that CUDA functions return are ours to check, and some are no errors (a question
        # whether a pointer is the device's, say).
        options = ["--report-api-errors", "no", "--error-exitcode", "9", "--print-limit", "5"]
        return [
            Job(tool, [sanitizer, "--tool", tool, *options, *driver], limit, self.env)
            for tool in SANITIZERS
        ]

    def finish_sanitizer(self, job: Job) -> None:
        code, seconds = job.wait()
        text = job.text()
        found = re.findall(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", text)
        errors = sum(int(number) for pair in found for number in pair if number)
        calls = re.findall(r"^(\d+ of \d+ calls, \d+ wrong results)", text, re.MULTILINE)
        ok = code == 0 and bool(found) and bool(calls) and errors == 0
        detail = f"{errors} errors" if found else "no verdict"
        detail += f"; {calls[-1]}" if calls else f"; {job.last_line()[:200]}"
        if code is None:
            detail = f"ran out of time; {job.last_line()[:200]}"
        self.note(job.name, Outcome(ok, seconds, detail))

    def bench(self) -> None:
        limit = self.left("bench")
        if limit < _LEAST_BENCH:
            self.note("bench", Outcome(False, 0.0, f"no time: {limit:.0f} s are left"))
            return
        path = BUILD / "bench.json"
        path.unlink(missing_ok=True)
        size = "quick" if self.options.quick else "full"
        command = [sys.executable, str(ROOT / "bench" / "gpu_bench.py"), "--json", str(path)]
        command += ["--bench", self.options.bench, "--size", size]
        command += [f"--seconds={max(1.0, limit - 25.0)}"]
        job = Job("bench", command, limit, self.env)
        code, seconds = job.wait()
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            self.results["facts"]["ceilings"] = found.pop("ceilings")
            self.results |= found
        count, wrong = len(self.results["cases"]), self.results["wrong"]
        detail = f"{count} cases"
        if wrong:
            detail += f", {len(wrong)} wrong: {'; '.join(wrong)[:600]}"
        if code is None:
            detail += ", ran out of time"
        elif code != 0 and not wrong:
            detail += f", stopped: {job.reason()}"
        self.note("bench", Outcome(code == 0 and count > 0, seconds, detail))


def _toolkit_folders() -> list[str]:
    found = [gpu_facts.tool(name) for name in ("nvcc", "compute-sanitizer")]
    return sorted({str(Path(path).parent) for path in found if path})


def count_tests(path: Path) -> dict[str, int]:
    """Return how many tests passed, failed, broke and were skipped, from pytest's XML file."""
    counts = dict.fromkeys(("passed", "failed", "broken", "skipped"), 0)
    if path.is_file():
        for suite in ET.parse(path).getroot().iter("testsuite"):
            number = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors")}
            skipped = int(suite.get("skipped", 0))
            counts["failed"] += number["failures"]
            counts["broken"] += number["errors"]
            counts["skipped"] += skipped
            counts["passed"] += number["tests"] - number["failures"] - number["errors"] - skipped
    return counts


# ---- command line ------------------------------------------------------------------------------


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_check", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, comma-separated")
    parser.add_argument("--bench", default=gpu_facts.BENCHES, help="benches, likewise")
    parser.add_argument("--quick", action="store_true", help="an eighth of the inputs, 3 rounds")
    parser.add_argument("--results", type=Path, help="a folder for results and logs, besides")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels; the index is not asked")
    parser.add_argument("--limit", type=float, default=TOTAL, help="seconds for everything")
    options = parser.parse_args(argv)
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(SECTIONS):
        parser.error(f"--only must name some of {', '.join(SECTIONS)}, got {', '.join(unknown)}")
    if options.wheels and not options.wheels.is_dir():
        parser.error(f"--wheels must be a folder, got {options.wheels}")
    whole = parser.get_default("bench")
    options.full = len(options.only) == len(SECTIONS) and options.bench == whole
    options.full = options.full and not options.quick
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    if lacks := gpu_facts.missing(options.only):
        print(f"gpu-check needs what this machine lacks: {'; '.join(lacks)}.", file=sys.stderr)
        return 2
    shutil.rmtree(LOGS, ignore_errors=True)
    check = Check(options)
    try:
        run(check)
    finally:
        for job in Job.running:
            job.stop()
    written = check.write()
    for name, section in check.results["sections"].items():
        log = LOGS / f"{name}.log"
        if not section["ok"] and log.is_file():
            tail = log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:]
            print(f"\n---- the end of {log.relative_to(ROOT)}\n{tail}")
    print(f"\n{gpu_report.compact(check.results)}\n")
    print("results:", *written)
    sections = check.results["sections"].values()
    return int(not sections or not all(section["ok"] for section in sections))


def run(check: Check) -> None:
    """Run the sections that were asked for."""
    only = check.options.only
    ready = check.build() if "build" in only else SITE.is_dir()
    if not ready:
        return
    # One after the other: the tests fill the device's memory, and times need the machine to
    # themselves. The sanitizers take CPU time for the most part, so they run side by side.
    if "tests" in only:
        check.finish_tests(check.start_tests())
    sanitizers = check.start_sanitizers() if "sanitize" in only else []
    for job in sanitizers:
        check.finish_sanitizer(job)
    if "bench" in only:
        check.bench()


if __name__ == "__main__":
    sys.exit(main())
