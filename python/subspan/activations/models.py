"""Load a language model from files on this machine, with everything a report must name."""

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from subspan.activations._extras import quiet_and_offline, require
from subspan.activations._locate import locate, weight_files
from subspan.activations._structure import Block, find_blocks, text_config
from subspan.errors import (
    DeviceError,
    DtypeError,
    FileFormatError,
    InvalidArgumentError,
    OutOfMemoryError,
    UnsupportedError,
)

Kind = Literal["causal", "encoder"]

_DTYPES = ("float32", "float16", "bfloat16", "float64", "auto")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.txt",
    "vocab.json",
)


class Model:
    """A transformer with its tokenizer and the facts that identify it; made by `load_model`.

    Attributes
    ----------
    hf : torch.nn.Module
        The Hugging Face module.
    tokenizer : object or None
        Its tokenizer; None when there is none (then text cannot be used).
    name : str
        Short name for titles and tables.
    path : Path or None
        Folder or file the model came from; None for a module made elsewhere.
    kind : {"causal", "encoder"}
        Whether a token sees only earlier tokens, or all tokens of its window.

    """

    def __init__(
        self,
        hf: Any,
        tokenizer: Any = None,
        *,
        name: str | None = None,
        path: Path | None = None,
        weight_files: Iterable[Path] = (),
        absent: Iterable[str] = (),
    ) -> None:
        self.hf = hf
        self.tokenizer = tokenizer
        self.path = path
        self.name = name or Path(getattr(hf.config, "name_or_path", "")).name or type(hf).__name__
        self.kind: Kind = _kind_of(hf.config, type(hf).__name__)
        self._weight_files = tuple(weight_files)
        self._absent = frozenset(absent)

    def __repr__(self) -> str:
        """Return name, kind and size on one line."""
        return (
            f"Model({self.name!r}, {self.kind}, {self.n_layers} layers, width {self.width}, "
            f"{self.n_parameters:,} parameters)"
        )

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The transformer blocks, first to last; empty when the structure is not understood."""
        return tuple(find_blocks(self.hf))

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return len(self.blocks) or int(getattr(text_config(self.hf), "num_hidden_layers", 0))

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return int(text_config(self.hf).hidden_size)

    @property
    def n_parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(int(p.numel()) for p in self.hf.parameters())

    @property
    def device(self) -> str:
        """Device of the first parameter, as text."""
        return str(next(self.hf.parameters()).device)

    @property
    def context(self) -> int | None:
        """Longest window the model can take, in tokens; None when it sets no limit."""
        for module in self.hf.modules():
            # learned positions, of which RoBERTa and OPT keep the first few for padding
            if "PositionalEmbedding" in type(module).__name__ and hasattr(module, "num_embeddings"):
                return int(module.num_embeddings) - int(getattr(module, "offset", 0))
            table: Any = getattr(module, "position_embeddings", None)
            if getattr(table, "padding_idx", None) is not None:
                return int(table.num_embeddings) - int(table.padding_idx) - 1
        limit = getattr(text_config(self.hf), "max_position_embeddings", None)
        return int(limit) if isinstance(limit, int) and limit > 0 else None

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the weight file, or of all weight files one after another by name.

        For a module made elsewhere: of the bytes of its state dict in the order of names.
        Cost: one reading of the weights; computed on first use.
        """
        digest = hashlib.sha256()
        if self._weight_files:
            for file in sorted(self._weight_files):
                with file.open("rb") as stream:
                    while chunk := stream.read(1 << 22):
                        digest.update(chunk)
        else:
            torch = require("torch", function="Model.fingerprint")
            for _, tensor in sorted(self.hf.state_dict().items()):
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                digest.update(flat.view(torch.uint8).numpy())
        return digest.hexdigest()

    def weights(self) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """Yield (name, matrix) for every weight matrix, one at a time.

        The matrix is float32, read-only, of shape (out, in) for linear layers and
        (rows, width) for embeddings. A stack of expert matrices comes as one matrix per expert,
        its number added to the name. Vectors, convolutions, and weights that the file does not
        contain are left out; a tied weight appears once.
        """
        torch = require("torch", function="Model.weights")
        for name, parameter in self.hf.named_parameters():
            if name in self._absent or parameter.ndim not in (2, 3):
                continue
            owner = type(self.hf.get_submodule(name.rpartition(".")[0])).__name__
            if parameter.ndim == 3 and "conv" in owner.lower():
                continue
            stored = parameter.detach().to(device="cpu", dtype=torch.float32).numpy()
            parts = (
                [("", stored)] if stored.ndim == 2 else [(f".{i}", w) for i, w in enumerate(stored)]
            )
            for suffix, matrix in parts:
                # GPT-2 keeps linear weights in its Conv1D class, as (in, out)
                view = matrix.T.view() if owner == "Conv1D" else matrix.view()
                view.setflags(write=False)
                yield f"{name}{suffix}", view


def load_model(
    path: Any, *, device: str = "cpu", dtype: str = "float32", tokenizer: Any = None
) -> Model:
    """Load a causal language model or an encoder from this machine; the network is never used.

    Parameters
    ----------
    path : str, Path or Hugging Face module
        A folder in Hugging Face layout (``config.json`` with safetensors or ``.bin`` weights), a
        weight file in such a folder, a ``.gguf`` file, or a folder with one ``.gguf`` file.
        A module is used as it is, where it is (``device`` and ``dtype`` are not applied to it).
        A `Model` passes through.
    device : str, default "cpu"
        Where to put the weights, as torch names it.
    dtype : {"float32", "float16", "bfloat16", "float64", "auto"}, default "float32"
        Number format to compute in; "auto" is that of the file. GGUF is dequantised to it.
    tokenizer : object, optional
        Tokenizer to use in place of the one beside the weights.

    Returns
    -------
    Model
        In evaluation mode.

    Raises
    ------
    FileNotFoundError
        No such file or folder. Names of a model hub are not looked up.
    FileFormatError
        No model is there, or its files are truncated, damaged or do not fit one another.
    UnsupportedError
        An encoder-decoder model, one that needs code of its own, or a missing package.

    Notes
    -----
    GGUF needs the packages gguf and accelerate; transformers parses the file several times
    (about 30 s for 98 MB on two cores).

    """
    if isinstance(path, Model):
        return path
    if hasattr(path, "named_modules") and hasattr(path, "config"):
        _refuse_seq2seq(path.config)
        return Model(path, tokenizer)
    if not isinstance(path, str | os.PathLike):
        raise DtypeError(
            "[load_model] path must be a folder, a file or a Hugging Face module, "
            f"got {type(path).__name__}"
        )
    if dtype not in _DTYPES:
        raise InvalidArgumentError(
            f"[load_model] dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}"
        )
    torch = require("torch", function="load_model")
    where = _checked_device(torch, device)
    folder, gguf = locate(Path(path).expanduser())
    options: dict[str, Any] = {
        "local_files_only": True,
        "trust_remote_code": False,
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "output_loading_info": True,
    }
    if gguf is not None:
        for package in ("gguf", "accelerate"):
            require(package, function="load_model")
        options["gguf_file"] = gguf.name
    transformers = require("transformers", function="load_model")
    with quiet_and_offline("load_model"), torch.random.fork_rng(devices=[]):
        try:
            hf, info = _auto_class(transformers, folder, gguf).from_pretrained(folder, **options)
            if tokenizer is None:
                tokenizer = _load_tokenizer(transformers, folder, gguf)
            hf = hf.to(where).eval()
        except (UnsupportedError, FileFormatError):
            raise
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise OutOfMemoryError(
                f"[load_model] {path} does not fit in memory: {error}"
            ) from error
        except Exception as error:
            raise _explained(error, gguf or folder) from error
    absent = set(info["missing_keys"])
    lost = sorted(name for name in absent if "pooler" not in name)
    if lost:
        raise FileFormatError(
            f"[load_model] the weights in {folder} must fill the whole model, got no value for "
            f"{len(lost)} tensors, among them {lost[0]}. The file is incomplete or belongs to "
            "another configuration."
        )
    return Model(
        hf,
        tokenizer,
        name=gguf.stem if gguf else folder.resolve().name,
        path=gguf or folder,
        weight_files=[gguf] if gguf else weight_files(folder),
        absent=absent,
    )


def _auto_class(transformers: Any, folder: Path, gguf: Path | None) -> Any:
    if gguf is not None:
        return transformers.AutoModelForCausalLM
    config = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    _refuse_seq2seq(config)
    heads = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    classes = getattr(config, "architectures", None) or []
    if any(name.endswith(heads) for name in classes):
        return transformers.AutoModelForCausalLM
    return transformers.AutoModel


def _kind_of(config: Any, class_name: str) -> Kind:
    auto = require("transformers.models.auto.modeling_auto", function="load_model")
    family = getattr(config, "model_type", "")
    if getattr(config, "is_decoder", False) or class_name.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal"
    causal = family in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return (
        "causal" if causal and family not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES else "encoder"
    )


def _refuse_seq2seq(config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedError(
            "[load_model] the model must be a causal language model or an encoder, got the "
            f"encoder-decoder model {config.model_type!r}. Pass its encoder as a module."
        )


def _load_tokenizer(transformers: Any, folder: Path, gguf: Path | None) -> Any:
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if gguf is not None:
        options["gguf_file"] = gguf.name
    elif not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    return transformers.AutoTokenizer.from_pretrained(folder, **options)


def _checked_device(torch: Any, device: str) -> Any:
    try:
        where = torch.device(device)
        torch.empty(1, device=where)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(
            f"[load_model] device must be one that torch can use here, got {device!r} ({error})"
        ) from error
    return where


def _explained(error: Exception, path: Path) -> Exception:
    if "trust_remote_code" in str(error):
        return UnsupportedError(
            f"[load_model] {path} needs Python code that comes with the model, which is not run. "
            "Build the module yourself and pass it in place of the path."
        )
    if isinstance(error, ImportError):
        return UnsupportedError(
            f"[load_model] a package is missing: {error}. Install: pip install 'subspan[models]'"
        )
    return FileFormatError(
        f"[load_model] {path} must be a whole, readable model, got {type(error).__name__}: "
        f"{error}. The file may be truncated, damaged, or of a kind unknown to transformers."
    )
