"""The rules of the house: who may know whom, what belongs to a stem, what an import costs."""

import ast
import re
from pathlib import Path

import pytest
import subspan

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "python" / "subspan"
CORE = [ROOT / "csrc" / "include", ROOT / "csrc" / "src"]
STEMS = (
    *("svd", "eigh", "qr", "cholesky", "solve_triangular", "gram", "pca"),
    *("topk", "encode", "knn", "adam", "kernel_matvec", "joint_kernel_sums"),
    *("tensor_power", "mttkrp"),
)
# Private modules at the top of the package that every part of it may use.
SEAMS = {
    *("_affine", "_arrays", "_checks", "_config", "_estimator", "_files", "_moments_estimator"),
    *("_multisets", "_rows", "_safetensors", "_spectral", "_spectrum"),
}
OPTIONAL = {
    *("torch", "cupy", "sklearn", "scipy", "matplotlib", "transformers", "rich", "typer"),
    *("safetensors", "gguf", "tokenizers", "accelerate", "pandas"),
}

pytestmark = pytest.mark.skipif(not SOURCE.is_dir(), reason="needs the source tree")


def modules():
    return sorted(SOURCE.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Full names of what a file imports; `from a import b` counts as a and as a.b."""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found.add(source)
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def test_there_is_something_to_check():
    assert len(modules()) > 20
    assert "subspan._core" in imports_of(SOURCE / "_ops" / "svd.py")


def test_rule_1_the_core_knows_no_python():
    forbidden = re.compile(r"#\s*include\s*[<\"](Python\.h|pybind11|torch|ATen|Eigen|.*dlpack)")
    for folder in CORE:
        files = [p for p in folder.rglob("*") if p.is_file()]
        assert files
        for path in files:
            assert not forbidden.search(path.read_text()), path


def test_rule_2_only_ops_imports_the_core():
    for path in modules():
        if path.parent == SOURCE / "_ops":
            continue
        known = {name for name in imports_of(path) if name.startswith("subspan._core")}
        assert not known, f"{path} imports {known}"


def test_rule_3_nobody_uses_anothers_private_modules():
    for path in modules():
        own = name_of(path).split(".")
        home = own[1] if len(own) > 1 else ""
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] != "subspan" or len(parts) < 2:
                continue
            if parts[1] in SEAMS or parts[1] == "_core":
                continue
            if parts[1] == "_ops":  # primitives are private to the top of the package
                top = len(own) <= 2 and (path.parent == SOURCE)
                assert top or home == "_ops", f"{path} imports {name}"
                continue
            private = [part for part in parts[1:] if part.startswith("_") and part != "__version__"]
            assert not private or parts[1] == home, f"{path} imports {name}"


def test_rule_3_optional_packages_are_imported_where_they_are_used():
    """Not at the top of anything that `import subspan` reaches; the packages below may."""
    for path in modules():
        if path.parent not in {SOURCE, SOURCE / "_ops"} or path.name in {"cli.py", "__main__.py"}:
            continue
        for node in ast.parse(path.read_text()).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            used = {name.partition(".")[0] for name in names}
            assert not used & OPTIONAL, path


@pytest.mark.parametrize("stem", STEMS)
def test_rule_4_a_stem_has_all_its_files(stem):
    wanted = [
        f"csrc/include/subspan/{stem}.hpp",
        f"csrc/src/{stem}.cpp",
        f"csrc/bindings/{stem}.cpp",
        f"python/subspan/_ops/{stem}.py",
        f"tests/test_{stem}.py",
        f"bench/bench_{stem}.py",
        f"docs/primitives/{stem}.md",
        f"tests/cpp/{stem}.cpp",
    ]
    assert [name for name in wanted if not (ROOT / name).is_file()] == []


def test_rule_4_every_public_header_is_a_stem_or_shared():
    shared = {"abi", "context", "device", "error", "ragged", "random", "subspan", "types", "view"}
    headers = {path.stem for path in (ROOT / "csrc" / "include" / "subspan").glob("*.hpp")}
    of_encode = {"decode"}  # the way back: no bench and no page of its own
    assert headers == shared | set(STEMS) | of_encode
    whole = (ROOT / "csrc" / "include" / "subspan" / "subspan.hpp").read_text()
    for header in headers - {"subspan", "abi"}:
        assert f'"subspan/{header}.hpp"' in whole, header


def test_an_import_is_light(run_python):
    code = (
        "import sys\n"
        "import subspan\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    loaded = set(run_python(code).stdout.split())
    assert "numpy" in loaded
    assert loaded & OPTIONAL == set()


def test_the_public_names_are_these():
    assert set(subspan.__all__) == {
        *("KNN", "PCA", "QR", "SVD", "Eigh", "EighInfo", "Moments", "Radius", "SVDInfo", "TopK"),
        *("RaggedCode", "SparseCode", "batch_topk_encode", "threshold_encode", "topk_encode"),
        *("CholeskyInfo", "SolveTriangularInfo", "cholesky", "solve_triangular"),
        *("Grams", "gram", "gram_inner", "grams"),
        *("TensorPower", "tensor_power"),
        *("svd", "svdvals", "eigh", "eigvalsh", "qr", "topk", "knn", "radius_neighbors"),
        *("knn_both", "sparse_decode", "adam_step", "gradient_norm", "kernel_matvec"),
        *("kernel_logsumexp", "mttkrp"),
        *("JointSums", "joint_kernel_sums"),
        *("set_num_threads", "get_num_threads", "show_config", "cpu_level"),
        *("errors", "spectrum", "__version__"),
    }


def test_all_modules_say_what_they_are():
    for path in modules():
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_modules_are_short():
    long = {
        str(path.relative_to(ROOT)): count
        for path in modules()
        if (count := len(path.read_text().splitlines())) > 700
    }
    assert long == {}


def test_nothing_is_left_undone():
    mark = re.compile("TO" + "DO|FIX" + "ME|XX" + "X|HA" + "CK")
    folders = ("csrc", "python", "tests", "bench", "docs", "cmake", "tools")
    kinds = {".py", ".pyi", ".hpp", ".cpp", ".cu", ".cuh", ".md", ".cmake", ".txt", ".sh", ".toml"}
    for folder in folders:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in kinds and path.is_file():
                assert not mark.search(path.read_text()), path
