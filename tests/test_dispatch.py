"""Instruction-set levels: forced by SUBSPAN_CPU_LEVEL, reported, really used, and in agreement."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import subspan
from subspan import _core

LEVELS = ("baseline", "v3", "v4")
EMPLOYED = LEVELS[: LEVELS.index(_core.cpu_level()) + 1]  # what this CPU has, unless forced below

REPORT = """
import hashlib, json, sys
import numpy as np, subspan
rng = np.random.default_rng(0)
x = rng.standard_normal((5000, 37))
out = {"level": subspan.cpu_level(), "config": subspan.show_config()["cpu_level"], "values": {}}
for name in ("float16", "float32", "float64"):
    m = subspan.Moments().update((x + 3).astype(name))
    out["values"][name] = m.covariance().ravel().tolist()
    out["values"][name + " mean"] = m.mean.tolist()
z = rng.standard_normal((300, 5)).astype("float32")
out["values"]["cross"] = subspan.Moments().update(z, y=z[:, :2]).cross_covariance().ravel().tolist()
out["values"]["svd"] = subspan.svdvals(x[:40]).tolist()
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def reports(run_python):
    cpu = run_python(
        "import subspan; print(subspan.cpu_level())", SUBSPAN_CPU_LEVEL=None
    ).stdout.strip()
    levels = LEVELS[: LEVELS.index(cpu) + 1]
    return {
        level: json.loads(run_python(REPORT, SUBSPAN_CPU_LEVEL=level).stdout) for level in levels
    }


def test_the_forced_level_is_reported(reports):
    assert "baseline" in reports
    for level, report in reports.items():
        assert report["level"] == report["config"] == level


def test_levels_agree(reports):
    """Last bits differ with the lanes and the fused products; no more than rounding does."""
    first = reports["baseline"]["values"]
    for report in reports.values():
        for name, values in report["values"].items():
            # mean: sums in float32 of up to 32 rows; covariance: the bound of float32 products.
            tol = 1e-12 if name.startswith(("float64", "svd")) else 4e-6
            scale = np.abs(first[name]).max()
            np.testing.assert_allclose(values, first[name], rtol=0, atol=tol * scale, err_msg=name)


def test_levels_are_really_different_code(reports):
    if len(reports) == 1:
        pytest.skip("this CPU has the baseline only")
    # v3 and v4 fuse multiply and add, which the baseline cannot: other last bits. Between these two
    # only the width differs, which the test of the built code below sees.
    baseline, *fused = (json.dumps(report["values"]["float32"]) for report in reports.values())
    assert baseline not in fused


@pytest.mark.parametrize("level", ["v9", "avx2", "V3", " v3", "baseline,v3"])
def test_unknown_levels_are_refused(level, run_python):
    code = (
        "import numpy as np, subspan\n"  # the import itself must succeed
        "from subspan.errors import InvalidArgumentError\n"
        "for call in (subspan.cpu_level, subspan.show_config,\n"
        "             lambda: subspan.Moments().update(np.ones((3, 2)))):\n"
        "    try:\n        call()\n"
        "    except InvalidArgumentError as error:\n        print(error)\n"
    )
    lines = run_python(code, SUBSPAN_CPU_LEVEL=level).stdout.splitlines()
    assert lines == [f"[SUBSPAN_CPU_LEVEL] must be baseline, v3 or v4, got {level}"] * 3


def test_levels_that_the_cpu_lacks_are_refused(reports, run_python):
    missing = [level for level in LEVELS if level not in reports]
    if not missing:
        pytest.skip("this CPU has every level")
    code = (
        "import subspan\n"
        "try:\n    subspan.cpu_level()\n"
        "except subspan.errors.UnsupportedError as error:\n    print(error)\n"
    )
    for level in missing:
        text = run_python(code, SUBSPAN_CPU_LEVEL=level).stdout
        assert f"this CPU has no level {level}" in text


def test_an_empty_variable_is_none(reports, run_python):
    best = list(reports)[-1]
    done = run_python("import subspan; print(subspan.cpu_level())", SUBSPAN_CPU_LEVEL="")
    assert done.stdout.strip() == best


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads an ELF file with objdump")
def test_the_built_code_uses_the_registers_of_its_level():
    """Kernels are told apart by their fused products: xmm never, ymm in v3, zmm in v4.

    The shipped object is stripped of names, so registers are counted over all of it.
    """
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("needs objdump")
    header = subprocess.run(
        [objdump, "-f", _core.__file__], capture_output=True, text=True, check=True
    ).stdout
    if "x86-64" not in header:
        pytest.skip("levels are of x86-64")
    listing = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", _core.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    packed = re.findall(r"vfn?m(?:add|sub)\d+p[sd]\s+(.*)", listing)
    # More than a stray one: every tile shape has a whole block of them.
    assert sum("%zmm" in line for line in packed) > 32
    assert sum("%ymm" in line and "%zmm" not in line for line in packed) > 24
    assert len(re.findall(r"\smulps\s", listing)) > 8  # the baseline: no AVX encoding
    assert len(re.findall(r"\smulpd\s", listing)) > 8


def test_this_process_runs_a_level_of_its_cpu():
    assert subspan.cpu_level() in EMPLOYED
    assert subspan.show_config()["cpu_level"] == EMPLOYED[-1]
