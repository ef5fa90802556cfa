"""The thread pool seen from Python: settings, forks, concurrent callers, errors, the GIL."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import subspan
from subspan import Moments, svd, svdvals
from subspan.errors import DtypeError, InvalidArgumentError

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
# Python 3.12 and later warn of any fork in a process with threads; ours is made for it.
quiet_fork = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


# ---- settings ----------------------------------------------------------------------------------


def test_set_and_default(threads):
    default = subspan.get_num_threads()
    assert default >= 1
    for n in (1, 3, np.int64(7), 1024):
        threads(n)
        assert subspan.get_num_threads() == n
    threads(None)
    assert subspan.get_num_threads() == default


@pytest.mark.parametrize(
    ("n", "kind", "text"),
    [
        (0, InvalidArgumentError, r"n must be in 1\.\.1024, got 0"),
        (-2, InvalidArgumentError, r"n must be in 1\.\.1024, got -2"),
        (1025, InvalidArgumentError, r"n must be in 1\.\.1024, got 1025"),
        (2.0, DtypeError, "n must be an integer, got float"),
        (True, DtypeError, "n must be an integer, got bool"),
        ("2", DtypeError, "n must be an integer, got str"),
    ],
)
def test_refused_counts(n, kind, text, threads):
    threads(2)
    with pytest.raises(kind, match=text):
        subspan.set_num_threads(n)
    assert subspan.get_num_threads() == 2


@pytest.mark.parametrize(
    ("ours", "openmp", "wanted"),
    [
        ("3", None, 3),
        ("3", "5", 3),
        (None, "5", 5),
        (None, "4,2", 4),
        ("zero", "5", 5),
        ("0", "5", 5),
        ("-1", None, None),
        ("", None, None),
        (None, None, None),
    ],
)
def test_environment(ours, openmp, wanted, run_python):
    code = (
        "import os, subspan\n"
        "print(subspan.get_num_threads(), len(os.sched_getaffinity(0)))\n"
        "subspan.set_num_threads(9); assert subspan.get_num_threads() == 9\n"
    )
    done = run_python(code, SUBSPAN_NUM_THREADS=ours, OMP_NUM_THREADS=openmp)
    threads, cpus = map(int, done.stdout.split())
    assert threads == (cpus if wanted is None else wanted)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity masks are Linux's")
def test_the_affinity_mask_counts(run_python):
    code = (
        "import os\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import subspan; print(subspan.get_num_threads())\n"
    )
    done = run_python(code, SUBSPAN_NUM_THREADS=None, OMP_NUM_THREADS=None)
    assert done.stdout.strip() == "1"


# ---- fork --------------------------------------------------------------------------------------


def work():
    """Everything that the pool and the BLAS do, as one number."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 40)).astype(np.float32)
    total = float(Moments().update(x).m2.sum())
    total += float(svdvals(rng.standard_normal((64, 12, 9))).sum())
    return round(total + float(svdvals(rng.standard_normal((300, 300))).sum()), 6)


def child_status(body, limit=60):
    """Exit status of a forked child; a child that hangs is ended by its own alarm."""
    child = os.fork()
    if child == 0:
        signal.alarm(limit)
        try:
            os._exit(0 if body() else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@posix
@quiet_fork
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_forked_child_works(n, threads):
    threads(n)
    wanted = work()
    for _ in range(3):
        assert child_status(lambda: work() == wanted) == 0
        assert work() == wanted


@posix
@quiet_fork
def test_a_grandchild_works(threads):
    threads(2)
    wanted = work()
    assert (
        child_status(lambda: work() == wanted and child_status(lambda: work() == wanted) == 0) == 0
    )


@posix
@quiet_fork
def test_a_child_forked_while_another_thread_computes(threads):
    threads(2)
    x = np.random.default_rng(1).standard_normal((20000, 60)).astype(np.float32)
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            Moments().update(x)
            svdvals(x[:300, :50].astype(np.float64))

    wanted = work()
    other = threading.Thread(target=busy)
    other.start()
    try:
        statuses = [child_status(lambda: work() == wanted) for _ in range(8)]
    finally:
        stop.set()
        other.join()
    assert statuses == [0] * 8


@posix
@quiet_fork
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method, threads, run_python):
    threads(2)
    code = (
        "import multiprocessing, numpy as np, subspan\n"
        "def work(seed):\n"
        "    x = np.random.default_rng(seed).standard_normal((3000, 20)).astype(np.float32)\n"
        "    return subspan.Moments().update(x).m2.sum()\n"
    )
    if method == "fork":
        code += (
            "import warnings; warnings.simplefilter('ignore')\n"
            "wanted = [work(s) for s in range(6)]\n"
            "with multiprocessing.get_context('fork').Pool(3) as pool:\n"
            "    assert pool.map_async(work, range(6)).get(60) == wanted\n"
        )
        run_python(code)
    else:
        context = multiprocessing.get_context("spawn")
        with context.Pool(2) as pool:
            assert pool.map_async(np.sqrt, [4.0]).get(60) == [2.0]
            assert pool.apply_async(_moments_of, (5,)).get(60) == _moments_of(5)


def _moments_of(seed):
    x = np.random.default_rng(seed).standard_normal((3000, 20)).astype(np.float32)
    return float(Moments().update(x).m2.sum())


# ---- several callers ---------------------------------------------------------------------------


def test_concurrent_callers(threads):
    threads(2)
    wanted = work()
    results = []

    def call():
        results.extend(work() for _ in range(4))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(120)
    assert results == [wanted] * 16


def test_settings_may_change_under_way(threads):
    x = np.random.default_rng(2).standard_normal((30000, 30)).astype(np.float32)
    wanted = Moments().update(x).m2.tobytes()
    stop = threading.Event()

    def change():
        while not stop.is_set():
            for n in (1, 2, 5, 3):
                subspan.set_num_threads(n)
                time.sleep(0.001)

    other = threading.Thread(target=change)
    other.start()
    try:
        seen = {Moments().update(x).m2.tobytes() for _ in range(30)}
    finally:
        stop.set()
        other.join()
    threads(None)
    assert seen == {wanted}


@pytest.mark.parametrize("n", [1, 2, 4])
def test_errors_leave_the_library_usable(n, threads):
    threads(n)
    rng = np.random.default_rng(3)
    batch, rows = rng.standard_normal((50, 8, 8)), rng.standard_normal((5000, 30))
    wanted = svdvals(batch).tobytes(), Moments().update(rows).m2.tobytes()
    bad_batch, bad_rows = batch.copy(), rows.copy()
    bad_batch[17, 3, 3], bad_rows[4321, 7] = np.nan, np.inf
    for _ in range(20):
        with pytest.raises(InvalidArgumentError, match="matrix 17 of 50"):
            svd(bad_batch)
        with pytest.raises(InvalidArgumentError, match="row 4321, column 7"):
            Moments().update(bad_rows)
        assert (svdvals(batch).tobytes(), Moments().update(rows).m2.tobytes()) == wanted


# ---- the GIL -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda big: Moments().update(big),
        lambda big: svdvals(big.reshape(-1, 50, 50)),
        lambda big: subspan.qr(big.reshape(-1, 50, 50)),
        lambda big: subspan.eigvalsh(big.reshape(-1, 50, 50)),
    ],
    ids=["moments", "svd", "qr", "eigh"],
)
def test_other_python_threads_go_on(call, threads):
    """The longest pause of a ticking thread is far below the length of the call."""
    threads(1)
    big = np.random.default_rng(4).standard_normal((60000, 250))
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    other = threading.Thread(target=tick)
    other.start()
    try:
        start = time.perf_counter()
        call(big)
        end = time.perf_counter()
    finally:
        stop.set()
        other.join()
    inside = [t for t in ticks if start <= t <= end]
    assert len(inside) >= 2, f"no tick within {end - start:.3f} s"
    assert max(np.diff([start, *inside, end])) < 0.7 * (end - start)


def test_exit_with_sleeping_workers():
    """The interpreter ends though workers sleep, also from another thread's last call."""
    code = (
        "import threading, numpy as np, subspan\n"
        "subspan.set_num_threads(6)\n"
        "x = np.ones((5000, 20), np.float32)\n"
        "subspan.Moments().update(x)\n"
        "threading.Thread(target=lambda: subspan.Moments().update(x)).start()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0
