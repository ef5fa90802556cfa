"""Find the files of a model on disk, before any library is asked to read them."""

import json
from pathlib import Path

from subspan.errors import FileFormatError


def locate(path: Path) -> tuple[Path, Path | None]:
    """Return (folder, gguf file or None)."""
    if not path.exists():
        raise FileNotFoundError(
            f"[load_model] path must be an existing folder or file, got {str(path)!r}. Models are "
            "not downloaded; give the folder that holds config.json, or a .gguf file."
        )
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return path.parent, _checked_gguf(path)
        if (path.parent / "config.json").is_file() and path.suffix in (
            ".safetensors",
            ".bin",
            ".json",
        ):
            path = path.parent
        else:
            raise FileFormatError(
                f"[load_model] path must be a .gguf file or lie in a folder with config.json, "
                f"got {str(path)!r}"
            )
    if (path / "config.json").is_file():
        if not weight_files(path):
            raise FileFormatError(
                f"[load_model] {path} must hold model.safetensors, pytorch_model.bin or shards "
                "with their index beside config.json, got none of them"
            )
        return path, None
    found = sorted(path.glob("*.gguf"))
    if len(found) == 1:
        return path, _checked_gguf(found[0])
    if found:
        names = ", ".join(file.name for file in found)
        raise FileFormatError(
            f"[load_model] path must name one model, got a folder with {len(found)} .gguf files "
            f"({names}). Give one of the files."
        )
    below = sorted(str(file.parent) for file in path.glob("*/config.json"))
    hint = f" There is one in {below[0]}." if below else ""
    raise FileFormatError(
        f"[load_model] path must be a folder with config.json or a .gguf file, got {str(path)!r} "
        f"with no model in it.{hint}"
    )


def _checked_gguf(path: Path) -> Path:
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise FileFormatError(
            f"[load_model] {path} must begin with the bytes 'GGUF', got {magic!r}"
        )
    return path


def weight_files(folder: Path) -> list[Path]:
    """List the files that transformers reads, in its order of preference."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{stem}.index.json"
        if (folder / stem).is_file():
            return [folder / stem]
        if index.is_file():
            try:
                names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise FileFormatError(
                    f"[load_model] {index} must be a weight index, got {error!r}"
                ) from error
            missing = sorted(name for name in names if not (folder / name).is_file())
            if missing:
                raise FileFormatError(
                    f"[load_model] {folder} must hold all {len(names)} shards that {index.name} "
                    f"lists, got no {missing[0]}"
                )
            return sorted(folder / name for name in names)
    return []
