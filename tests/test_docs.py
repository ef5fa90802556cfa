"""The examples of docstrings and pages run.

Python blocks of a page run in order in one namespace, in an empty folder. A block that needs what
a test cannot have (a download, a GPU) is left out by `<!-- skip-test: reason -->` on the line
before it. Blocks with prompts are doctests.
"""

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
import warnings
from pathlib import Path

import pytest
import subspan

ROOT = Path(__file__).parent.parent
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
PAGES = [
    page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if page.is_file()
]
# What a part of the package needs beyond numpy.
NEEDS = {
    "subspan.activations": ("torch", "transformers"),
    "subspan.report": ("matplotlib", "rich"),
    "subspan.atlas": ("torch", "matplotlib"),
    "subspan.comparison": ("torch", "matplotlib"),
    "subspan.compression": ("torch", "transformers"),
    "subspan.sae": ("torch", "transformers"),
    "subspan.cli": ("typer", "rich"),
}
BLOCK = re.compile(
    r"(?P<mark><!--\s*skip-test:(?P<reason>[^>]*)-->\s*\n\s*)?"
    r"^(?P<indent>[ ]*)```(?:python|py|pycon)\b[^\n]*\n(?P<code>.*?)^(?P=indent)```\s*$",
    re.MULTILINE | re.DOTALL,
)


def public_modules():
    """Public modules, and the private ones whose classes and functions the package exports."""
    names = {"subspan"}
    for info in pkgutil.walk_packages(subspan.__path__, "subspan."):
        # The CUDA library lies beside the modules, but is none.
        if not any(part.startswith(("_", "lib")) for part in info.name.split(".")[1:]):
            names.add(info.name)
    for name in subspan.__all__:
        thing = getattr(subspan, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            names.add(thing.__module__)
    return sorted(names)


@pytest.mark.parametrize("name", public_modules())
def test_docstrings(name, tmp_path, monkeypatch):
    for prefix, packages in NEEDS.items():
        if name.startswith(prefix):
            for package in packages:
                if importlib.util.find_spec(package) is None:
                    pytest.skip(f"needs {package}")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Modules of other packages may warn while they are imported.
        warnings.simplefilter("ignore", DeprecationWarning)
        module = importlib.import_module(name)
        failed, _ = doctest.testmod(module, optionflags=FLAGS, verbose=False)
    subspan.set_num_threads(None)
    assert failed == 0


def test_the_primitives_have_examples():
    finder = doctest.DocTestFinder()
    without = []
    for name in (
        "svd",
        "svdvals",
        "eigh",
        "eigvalsh",
        "qr",
        "topk",
        "topk_encode",
        "batch_topk_encode",
        "threshold_encode",
        "knn",
        "radius_neighbors",
        "Moments",
        "PCA",
        "show_config",
    ):
        if not any(test.examples for test in finder.find(getattr(subspan, name), name)):
            without.append(name)
    assert without == []


def blocks_of(page):
    text = page.read_text()
    for match in BLOCK.finditer(text):
        if match["mark"]:
            assert match["reason"].strip(), f"{page}: a skipped block must say why"
            continue
        line = text[: match.start("code")].count("\n") + 1
        code = "\n".join(row.removeprefix(match["indent"]) for row in match["code"].splitlines())
        yield line, code + "\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages(page, tmp_path, monkeypatch):
    blocks = list(blocks_of(page))
    if not blocks:
        pytest.skip("no Python on this page")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__page__"}
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    for line, code in blocks:
        if re.search(r"^\s*>>> ", code, re.MULTILINE):
            test = doctest.DocTestParser().get_doctest(
                code, namespace, page.name, str(page), line - 1
            )
            runner.run(test, clear_globs=False)
            namespace.update(test.globs)
        else:
            # Line numbers of tracebacks are those of the page.
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
    subspan.set_num_threads(None)
    assert runner.summarize(verbose=False).failed == 0


def test_the_reader_of_pages(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\na = 1\n```\n\n<!-- skip-test: needs a GPU -->\n```python\nraise SystemExit\n```"
        "\n\n  ```python\n  b = 2\n  ```\n\n```text\nnot code\n```\n"
    )
    assert list(blocks_of(page)) == [(2, "a = 1\n"), (11, "b = 2\n")]
