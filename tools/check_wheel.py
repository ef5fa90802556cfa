"""Install a wheel or a source distribution into a new environment and use it there.

``python tools/check_wheel.py dist/subspan-*.whl``: no compiler can be seen, and only numpy comes
along. ``... dist/subspan-*.tar.gz``: it is built as a user's ``pip install`` would.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

# Runs in the new environment; prints what it found.
PROBE = """
import importlib.metadata, pathlib, sys, time

began = time.perf_counter()
import numpy as np
numpy_ms = 1e3 * (time.perf_counter() - began)
began = time.perf_counter()
import subspan
own_ms = 1e3 * (time.perf_counter() - began)

heavy = {"torch", "cupy", "sklearn", "scipy", "matplotlib", "transformers", "rich", "typer"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)

rng = np.random.default_rng(0)
x = rng.normal(size=(500, 8)) * 2.0 ** -np.arange(8)
pca = subspan.PCA(n_components=3).fit(x)
s = np.linalg.svd(x - x.mean(0), compute_uv=False)
np.testing.assert_allclose(pca.explained_variance_, s[:3] ** 2 / 499, rtol=1e-10)
u, s, vh = subspan.svd(x)[:3]
np.testing.assert_allclose((u * s) @ vh, x, atol=1e-13)

home = pathlib.Path(subspan.__file__).parent
assert home.is_relative_to(sys.prefix), home
licences = [f.name for f in importlib.metadata.files("subspan") if "licenses" in f.parts]
assert {"LICENSE", "scipy-openblas32.txt"} <= set(licences), licences
assert (home / "py.typed").exists() and (home / "_core.pyi").exists()
assert subspan.__version__ == importlib.metadata.version("subspan")
cuda = (home / "libsubspan_cuda.so").exists()
assert not subspan.show_config()["cuda"] or cuda
shared = sorted(f.name for f in home.parent.glob("subspan*/**/*.so*"))
size = sum(f.stat().st_size for f in home.parent.glob("subspan*/**/*") if f.is_file())
print(f"  import: numpy {numpy_ms:.0f} ms, then subspan {own_ms:.0f} ms")
print(f"  installed: {size / 1e6:.1f} MB; {', '.join(shared)}")
print("  cuda library:", cuda)
print("  blas:", subspan.show_config()["blas"])
"""


def main() -> None:
    """Check the file that is named on the command line."""
    package = Path(sys.argv[1]).resolve()
    wheel = package.suffix == ".whl"
    print(f"{package.name}: {package.stat().st_size / 1e6:.1f} MB", flush=True)
    constraints = Path("constraints.txt").resolve()
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True, symlinks=True)
        python = Path(folder, "bin", "python")
        # A wheel needs no compiler, so none is to be found; the library path must not help either.
        environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
        if wheel:
            environment["PATH"] = str(python.parent)
        install = [python, "-m", "pip", "install", "--quiet", "-c", constraints, package]
        if not wheel:  # the CUDA half was compiled for the wheel, and so was the fast code
            settings = ("cmake.define.SUBSPAN_CUDA=OFF", "cmake.build-type=Debug")
            install += [f"--config-settings={setting}" for setting in settings]
        subprocess.run(install, check=True, env=environment, cwd=folder)
        for _ in range(2):  # the second time with warm file caches
            done = subprocess.run(
                [python, "-c", PROBE],
                check=True,
                env=environment,
                cwd=folder,
                capture_output=True,
                text=True,
            )
        print(done.stdout, end="")
        nvcc = wheel and shutil.which("nvcc") is not None
        if nvcc and "cuda library: True" not in done.stdout:
            raise SystemExit("check_wheel: nvcc is here, but the wheel holds no CUDA library")


if __name__ == "__main__":
    main()
