"""What several test files need: other array libraries, processes of their own, undone settings."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import subspan

TEXT = "the cat sat on the mat\nand the <b>dog</b> ran to the red house . " * 40


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)


@pytest.fixture
def threads():
    """Return the function that sets the thread count; the default comes back at the end."""
    yield subspan.set_num_threads
    subspan.set_num_threads(None)


@pytest.fixture(scope="session")
def run_python():
    """Return a function that runs code in a fresh interpreter and gives its output.

    Variables set to None are taken out of the environment.
    """

    def run(code, *, timeout=120, check=True, **variables):
        environment = {**os.environ, **{k: v for k, v in variables.items() if v is not None}}
        for name, value in variables.items():
            if value is None:
                environment.pop(name, None)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            pytest.fail(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


class Library:
    """An array library: `put` numpy arrays in, `get` them out, `owns` tells its own."""

    def __init__(self, name):
        self.name = name
        self.module = np if name == "numpy" else pytest.importorskip(name)

    def put(self, x):
        if self.name == "torch":
            return self.module.from_numpy(np.array(x))
        return self.module.asarray(x)

    def get(self, x):
        if self.name == "torch":
            return x.numpy()
        return np.asarray(x) if self.name == "numpy" else np.from_dlpack(x)

    def owns(self, x):
        kinds = {"numpy": "ndarray", "torch": "Tensor"}
        kind = kinds.get(self.name)
        return isinstance(x, getattr(self.module, kind) if kind else type(self.module.zeros(1)))


@pytest.fixture(params=["numpy", "torch", "array_api_strict"])
def library(request):
    return Library(request.param)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A random Llama with three layers and a word tokenizer, in Hugging Face layout."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    words = ["<unk>", *dict.fromkeys(re.findall(r"\w+|[^\w\s]+|\n", TEXT))]
    vocabulary = {word: number for number, word in enumerate(words)}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=max(64, len(words)), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    (folder.parent / "text.txt").write_text(TEXT)
    return folder
