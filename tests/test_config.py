"""show_config, the version, and what an import costs."""

import platform
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import subspan
from subspan import _core

ROOT = Path(__file__).parent.parent


def test_show_config(threads):
    threads(3)
    config = subspan.show_config()
    assert config["subspan"] == subspan.__version__
    assert config["python"] == sys.version.split()[0]
    assert config["numpy"] == np.__version__
    assert config["platform"] == platform.platform()
    assert config["cpu_level"] == subspan.cpu_level()
    assert config["threads"] == 3
    assert isinstance(config["cuda"], bool)
    assert isinstance(config["blas"], str)
    assert config["blas"]


def test_the_one_version_number():
    assert subspan.__version__ == _core.__version__
    cmake = ROOT / "CMakeLists.txt"
    if not cmake.is_file():
        pytest.skip("needs the source tree")
    (wanted,) = re.findall(r"project\(subspan VERSION ([0-9.]+)", cmake.read_text())
    assert subspan.__version__ == wanted


def test_public_names():
    assert len(set(subspan.__all__)) == len(subspan.__all__)
    for name in subspan.__all__:
        assert getattr(subspan, name) is not None
        if name != "__version__":
            assert not name.startswith("_")


def test_public_functions_are_documented():
    for name in subspan.__all__:
        if callable(thing := getattr(subspan, name)):
            assert thing.__doc__, name
            assert thing.__module__.startswith("subspan"), name


def test_every_public_name_has_a_home(run_python):
    code = (
        "before = set(dir())\n"
        "from subspan import *\n"
        "import subspan\n"
        "print(*sorted(set(dir()) - before - {'before', 'subspan'}))\n"
    )
    names = run_python(code).stdout.split()
    assert names == sorted(subspan.__all__)


def test_threadpool_libraries_are_left_alone(run_python):
    """Our private BLAS runs on one thread; numpy's keeps its own setting."""
    pytest.importorskip("threadpoolctl")
    code = (
        "import numpy as np, threadpoolctl\n"
        "before = [i['num_threads'] for i in threadpoolctl.threadpool_info()]\n"
        "import subspan\n"
        "subspan.svd(np.eye(300)); subspan.Moments().update(np.eye(5))\n"
        "after = threadpoolctl.threadpool_info()\n"
        "numpys = [i for i in after if 'numpy' in i['filepath']]\n"
        "assert [i['num_threads'] for i in numpys] == before, (before, after)\n"
    )
    run_python(code)
