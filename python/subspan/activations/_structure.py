"""Find blocks, attention and MLP inside a transformer by its structure, not by a list of classes.

Works on plain attributes of torch modules and imports nothing.
"""

import inspect
from typing import Any, NamedTuple

_ATTENTION = ("attn", "attention")
_MLP = ("mlp", "ffn", "feed_forward", "feedforward", "moe")
_NOT_A_MIXER = ("norm", "ln", "dropout", "drop", "cross")
_KEY = ("key", "k_proj", "k_lin", "key_proj", "to_k", "wk", "k")
_VALUE = ("value", "v_proj", "v_lin", "value_proj", "to_v", "wv", "v")
_LINEAR = ("Linear", "Conv1D", "NonDynamicallyQuantizableLinear")


class Block(NamedTuple):
    """One transformer block: its number, its full module name, and the module."""

    number: int
    name: str
    module: Any


def text_config(hf: Any) -> Any:
    """Return the configuration of the text part (the whole, for a model of text alone)."""
    config = hf.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def find_blocks(hf: Any) -> list[Block]:
    """Return the blocks of a model, or nothing when its structure is not understood.

    The outermost module list as long as the configuration says; the longest when it is silent.
    """
    names = {id(module): name for name, module in hf.named_modules()}
    lists = _outermost_lists(_text_part(hf), names) or _outermost_lists(hf, names)
    n_layers = getattr(text_config(hf), "num_hidden_layers", None)
    if isinstance(n_layers, int):
        lists = [pair for pair in lists if len(pair[1]) == n_layers]
    longest = max((len(modules) for _, modules in lists), default=0)
    lists = [pair for pair in lists if len(pair[1]) == longest]
    if len(lists) > 1:  # parallel lists: only one of them can hold whole blocks
        lists = [pair for pair in lists if attention_output(pair[1][0]) and mlp_output(pair[1][0])]
    if len(lists) != 1:
        return []
    name, modules = lists[0]
    return [Block(i, f"{name}.{i}", module) for i, module in enumerate(modules)]


def attention_output(block: Any) -> tuple[str, Any] | None:
    """Return (name, module) whose output is what attention adds to the residual stream."""
    found = _mixer(block, _ATTENTION)
    if found is None:
        return None
    return _before_residual(*found)


def mlp_output(block: Any) -> tuple[str, Any] | None:
    """Return (name, module) whose output is what the MLP adds to the residual stream."""
    children = dict(block.named_children())
    if "intermediate" in children and "output" in children:  # BERT: two halves, no module around
        return _last_linear("output", children["output"])
    found = _mixer(block, _MLP)
    if found is not None:
        return _before_residual(*found)
    if "fc1" in children and "fc2" in children:  # OPT, XGLM, BioGPT: bare layers in the block
        return "fc2", children["fc2"]
    return ("ff", children["ff"]) if "ff" in children else None


def key_value_linears(block: Any) -> tuple[tuple[str, Any], tuple[str, Any]] | None:
    """Return the linear layers that make keys and values, when they are separate modules."""
    found = _mixer(block, _ATTENTION)
    if found is None:
        return None
    prefix, attention = found
    pair: list[tuple[str, Any]] = []
    for wanted in (_KEY, _VALUE):
        hits = [
            (f"{prefix}.{name}", module)
            for name, module in attention.named_modules()
            if name.rpartition(".")[2] in wanted and _is_linear(module)
        ]
        if len(hits) != 1:
            return None
        pair.append(hits[0])
    return pair[0], pair[1]


def out_features(linear: Any) -> int:
    """Width of the output of a linear layer (GPT-2 stores its weight transposed)."""
    return int(linear.nf if hasattr(linear, "nf") else linear.out_features)


def _text_part(hf: Any) -> Any:
    try:
        return hf.get_decoder()
    except (AttributeError, NotImplementedError, TypeError):
        return hf


def _outermost_lists(root: Any, names: dict[int, str]) -> list[tuple[str, Any]]:
    """Return the module lists below root that lie in no other list, with their full names."""
    found: list[tuple[str, Any]] = []
    for _, module in root.named_modules():
        name = names.get(id(module), "")
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if type(module).__name__ == "ModuleList" and len(module) and name and not inside:
            found.append((name, module))
    return found


def _mixer(block: Any, words: tuple[str, ...]) -> tuple[str, Any] | None:
    for name, child in block.named_children():
        low = name.lower()
        skipped = any(part in _NOT_A_MIXER for part in low.replace("layernorm", "norm").split("_"))
        has_weights = next(child.parameters(), None) is not None
        if any(word in low for word in words) and not skipped and has_weights:
            return name, child
    return None


def _before_residual(name: str, module: Any) -> tuple[str, Any]:
    """Step inside modules that add the residual or normalise before they return (BERT, BLOOM)."""
    adds = {"residual", "input_tensor"} & set(inspect.signature(module.forward).parameters)
    norms = any(
        inner.rpartition(".")[2].lower() in ("layernorm", "layer_norm")
        for inner, _ in module.named_modules()
    )
    if adds or norms:
        return _last_linear(name, module) or (name, module)
    return name, module


def _last_linear(name: str, module: Any) -> tuple[str, Any] | None:
    linears = [(inner, m) for inner, m in module.named_modules() if _is_linear(m)]
    return (f"{name}.{linears[-1][0]}", linears[-1][1]) if linears else None


def _is_linear(module: Any) -> bool:
    return type(module).__name__ in _LINEAR
