"""What a model's linear layers see: moments of every distinct input, once, and of gradients."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subspan import Moments, _checks
from subspan.activations import Model, TokenBatch
from subspan.compression._archive import arrays_of, write_arrays
from subspan.compression.layers import Weight, evaluating, find_weights, inputs_of
from subspan.errors import InvalidArgumentError, UnsupportedError

__all__ = ["Calibration", "calibrate", "sampled_loss"]

_SHARE = 20  # writing checkpoints takes no more than one part in this many of the time


class Calibration:
    """Moments of the inputs of layers, and of gradients if they were asked for; by `calibrate`.

    Attributes
    ----------
    shared : dict of str to str
        For each layer, the layer whose entry in ``inputs`` and ``sizes`` is its own: q, k and v
        read one input, and so do gate and up.
    inputs : dict of str to Moments
        Of each distinct input.
    sizes : dict of str to ndarray (n,)
        Sums of absolute values of each distinct input.
    gradients : dict of str to Moments
        Of the gradient of the loss with respect to each layer's output; empty without gradients.
    squares : dict of str to ndarray (m,)
        Sums over batches and columns of squared gradients of each weight; empty without gradients.
    n_tokens, n_batches : int
        Tokens and batches read.
    random : ndarray or None
        State of the generator of drawn tokens after them.
    """

    def __init__(self, shared: dict[str, str]) -> None:
        self.shared = shared
        distinct = dict.fromkeys(shared.values())
        self.inputs = {name: Moments() for name in distinct}
        self.sizes: dict[str, NDArray[np.float64]] = {}
        self.gradients: dict[str, Moments] = {}
        self.squares: dict[str, NDArray[np.float64]] = {}
        self.n_tokens = self.n_batches = 0
        self.random: NDArray[np.uint8] | None = None

    def moments(self, name: str) -> Moments:
        """Return the moments of a layer's input."""
        return self.inputs[self.shared[name]]

    def scale(self, name: str) -> NDArray[np.float64]:
        """Return the mean absolute input (n,), for `activation_svd`."""
        return self.sizes[self.shared[name]] / max(self.n_tokens, 1)

    def importance(self, name: str) -> NDArray[np.float64]:
        """Return the root of the Fisher information of each row (m,), for `fisher_svd`."""
        self._need_gradients("importance")
        root: NDArray[np.float64] = np.sqrt(self.squares[name] / max(self.n_tokens, 1))
        return root

    def outputs(self, name: str) -> Moments:
        """Return the moments of the gradient at a layer's output, for `whitened_svd`."""
        self._need_gradients("outputs")
        return self.gradients[name]

    def _need_gradients(self, what: str) -> None:
        if not self.gradients:
            raise InvalidArgumentError(
                f"[Calibration.{what}] gradients must have been collected, got none. Call "
                "calibrate(..., gradients=True)"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to an ``.npz`` file, whole or not at all."""
        arrays: dict[str, Any] = {
            "names": np.array(list(self.shared)),
            "shared": np.array(list(self.shared.values())),
            "n_tokens": np.array(self.n_tokens),
            "n_batches": np.array(self.n_batches),
        }
        if self.random is not None:
            arrays["random"] = self.random
        for kind, many in (("inputs", self.inputs), ("gradients", self.gradients)):
            for name, one in many.items():
                arrays |= {f"{kind}/{name}/{key}": a for key, a in one.state_dict().items()}
        for kind, sums in (("sizes", self.sizes), ("squares", self.squares)):
            arrays |= {f"{kind}/{name}": value for name, value in sums.items()}
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read what `save` wrote.

        Raises
        ------
        FileFormatError
            The file is damaged or something else.
        """
        with arrays_of("Calibration.load", path, "a whole calibration") as arrays:
            made = cls(dict(zip(arrays["names"].tolist(), arrays["shared"].tolist(), strict=True)))
            made.n_tokens, made.n_batches = int(arrays["n_tokens"]), int(arrays["n_batches"])
            made.random = arrays.get("random")
            states: dict[tuple[str, str], dict[str, Any]] = {}
            for key, value in arrays.items():
                kind, _, rest = key.partition("/")
                if kind in {"sizes", "squares"}:
                    getattr(made, kind)[rest] = value
                elif kind in {"inputs", "gradients"}:
                    name, _, field = rest.rpartition("/")
                    states.setdefault((kind, name), {})[field] = value
            for (kind, name), state in states.items():
                getattr(made, kind)[name] = Moments.from_state_dict(state)
        return made


def calibrate(
    model: Model,
    batches: Sequence[TokenBatch],
    *,
    modules: str | Iterable[str] | None = None,
    gradients: bool = False,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 60.0,
    progress: Callable[[int, int], object] | None = None,
) -> Calibration:
    """Run a model over tokens and collect the moments of the inputs of its linear layers.

    Parameters
    ----------
    model : Model
        A causal language model, or an encoder without gradients.
    batches : TokenStream or sequence of TokenBatch
        Calibration tokens; padding does not enter.
    modules : str or iterable of str, optional
        As `find_weights`.
    gradients : bool
        Also run backward from the cross-entropy of tokens drawn from the model's own predictions,
        summed over the tokens, so that expectations are those of the Fisher information; collected
        are the moments of the gradient at every output, and squared gradients of the rows of every
        weight, batch by batch.
    seed : int
        Of the tokens drawn.
    checkpoint : path, optional
        An ``.npz`` file that holds what was collected so far, written whole or not at all, at the
        end too. If it exists, the run goes on from there, to the same bits, and one that holds all
        batches is returned.
    every : float >= 0
        Seconds from one checkpoint to the next at least; longer ones where writing takes long, so
        that it takes no more than a twentieth of the time.
    progress : callable, optional
        Called as ``progress(done, total)`` in batches.

    Returns
    -------
    Calibration
        Layers that read the same tensor share one entry.

    Raises
    ------
    InvalidArgumentError
        No tokens; NaN or infinity in an input or gradient (the layer is named); patterns as
        `find_weights`; a checkpoint of other layers, tokens or gradients.
    FileFormatError
        A checkpoint that is damaged or something else.
    UnsupportedError
        A layer is not reached, or does not see one row for each token; gradients of an encoder.

    Notes
    -----
    Memory: 16 bytes n² for each distinct input of n columns, and 16 m² for each layer of m outputs
    with gradients. Gradients take about three times as long, and the logits of a batch twice.

    References
    ----------
    J. Martens, R. Grosse: Optimizing neural networks with Kronecker-factored approximate curvature,
    ICML 2015 (second moments of inputs and of output gradients as a model of the loss).
    """
    if not len(batches):
        raise InvalidArgumentError("[calibrate] batches must hold calibration tokens, got none")
    if gradients and model.kind != "causal":
        raise UnsupportedError(
            f"[calibrate] gradients need a causal language model, got the {model.kind} {model.name}"
        )
    _checks.integer("calibrate", "seed", seed, low=0)
    _checks.real("calibrate", "every", every, low=0.0)
    weights = find_weights(model, modules)
    found = Calibration(_shared_inputs(model, weights, batches[0]))
    if checkpoint is not None and Path(checkpoint).exists():
        found = _resumed(checkpoint, found.shared, batches, gradients)
    collector = _Collector(model, weights, found, gradients=gradients, seed=seed)
    wait, written = every, time.monotonic()
    with collector.hooked():
        for number in range(found.n_batches, len(batches)):
            collector.run(batches[number])
            start, last = time.monotonic(), number + 1 == len(batches)
            if checkpoint is not None and (last or start - written >= wait):
                found.save(checkpoint)
                written = time.monotonic()
                wait = max(every, _SHARE * (written - start))
            if progress is not None:
                progress(number + 1, len(batches))
    return found


def _resumed(
    path: str | os.PathLike[str], shared: dict[str, str], batches: Sequence[TokenBatch],
    gradients: bool,
) -> Calibration:  # fmt: skip
    found = Calibration.load(path)
    tokens = sum(len(batches[i]) for i in range(min(found.n_batches, len(batches))))
    for what, same in (
        ("layers", found.shared == shared),
        ("tokens", found.n_batches <= len(batches) and found.n_tokens == tokens),
        ("gradients", bool(found.gradients) == gradients),
    ):
        if not same:
            raise InvalidArgumentError(
                f"[calibrate] checkpoint must be of this run, got {str(path)!r} of other {what}. "
                "Remove it to start anew"
            )
    return found


def sampled_loss(logits: Any, random: Any) -> Any:
    """Return the cross-entropy (summed) of tokens drawn from the predictions (tokens, words)."""
    import torch

    logp = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    drawn = torch.multinomial(logp.detach().exp(), 1, generator=random)
    return -logp.gather(1, drawn).sum()


def _shared_inputs(model: Model, weights: list[Weight], batch: TokenBatch) -> dict[str, str]:
    """Return for each layer the first layer that reads the very same tensor."""
    import torch

    inputs, _ = inputs_of(model, batch)
    few = {name: x[:1, :2] if hasattr(x, "shape") else x for name, x in inputs.items()}
    seen: list[tuple[str, Any]] = []  # the tensors are held, so that no two can share an id
    with contextlib.ExitStack() as undo:
        for weight in weights:

            def hook(_: Any, args: Any, kwargs: Any, name: str = weight.name) -> None:
                seen.append((name, args[0] if args else next(iter(kwargs.values()))))

            handle = weight.module.register_forward_pre_hook(hook, with_kwargs=True)
            undo.callback(handle.remove)
        with evaluating(model.hf), torch.no_grad():
            model.hf(**few)
    first: dict[int, str] = {}
    shared = {name: first.setdefault(id(x), name) for name, x in seen}
    silent = [weight.name for weight in weights if weight.name not in shared]
    if silent:
        raise UnsupportedError(
            f"[calibrate] modules must be reached when the model runs, got {silent[0]!r}, which "
            "was not"
        )
    return {weight.name: shared[weight.name] for weight in weights}


class _Collector:
    """The hooks of one run."""

    def __init__(
        self, model: Model, weights: list[Weight], found: Calibration, *, gradients: bool, seed: int
    ) -> None:
        import torch

        self.model, self.weights, self.found, self.backward = model, weights, found, gradients
        self.mask: Any = None
        self.random = torch.Generator(device=model.device).manual_seed(seed)
        if found.random is not None:
            self.random.set_state(torch.from_numpy(found.random))
        for weight in weights:
            m, n = weight.shape
            if weight.name in found.inputs:
                found.sizes.setdefault(weight.name, np.zeros(n))
            if gradients:
                found.gradients.setdefault(weight.name, Moments())
                found.squares.setdefault(weight.name, np.zeros(m))

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Keep the hooks, the mode and the gradients of the model as they are needed, and undo."""
        before = [(p, p.requires_grad, p.grad) for p in self.model.hf.parameters()]
        ours = {id(weight.module.weight) for weight in self.weights}
        with contextlib.ExitStack() as undo:
            undo.enter_context(evaluating(self.model.hf))
            for weight in self.weights:
                if weight.name in self.found.inputs:
                    handle = weight.module.register_forward_pre_hook(
                        self._on_input(weight.name), with_kwargs=True
                    )
                    undo.callback(handle.remove)
                if self.backward:
                    handle = weight.module.register_forward_hook(self._on_output(weight.name))
                    undo.callback(handle.remove)
            try:
                for p, _, _ in before:
                    p.grad = None
                    p.requires_grad_(self.backward and id(p) in ours)
                yield
            finally:
                for p, wanted, grad in before:
                    p.requires_grad_(wanted)
                    p.grad = grad

    def run(self, batch: TokenBatch) -> None:
        """Run one batch forward, and backward if gradients are wanted."""
        import torch

        inputs, self.mask = inputs_of(self.model, batch)
        with torch.set_grad_enabled(self.backward):
            if not self.backward:
                self.model.hf(**inputs)
            else:
                sampled_loss(self.model.hf(**inputs).logits[self.mask], self.random).backward()
        if self.backward:
            for weight in self.weights:
                grad = weight.module.weight.grad
                rows = grad.T if type(weight.module).__name__ == "Conv1D" else grad
                self.found.squares[weight.name] += rows.double().square().sum(1).cpu().numpy()
                weight.module.weight.grad = None
            self.found.random = self.random.get_state().numpy()
        self.found.n_tokens += len(batch)
        self.found.n_batches += 1

    def _on_input(self, name: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = self._rows(name, args[0] if args else next(iter(kwargs.values())))
            self._update("input", name, self.found.inputs[name], x)
            self.found.sizes[name] += x.abs().double().sum(0).cpu().numpy()

        return hook

    def _on_output(self, name: str) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, y: Any) -> None:
            def receive(grad: Any) -> None:
                rows = self._rows(name, grad)
                self._update("output gradient", name, self.found.gradients[name], rows)

            y.register_hook(receive)

        return hook

    def _rows(self, name: str, x: Any) -> Any:
        shape, wanted = tuple(x.shape), tuple(self.mask.shape)
        if shape[:-1] not in {wanted, (wanted[0] * wanted[1],)}:
            raise UnsupportedError(
                f"[calibrate] {name!r} must see one row for each token, {wanted}, got {shape}. "
                "Leave layers that see a part of the tokens out"
            )
        return x.detach().reshape(-1, shape[-1])[self.mask.reshape(-1)]

    @staticmethod
    def _update(what: str, name: str, moments: Moments, rows: Any) -> None:
        try:
            moments.update(rows)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(
                f"[calibrate] the {what} of {name!r} must be finite, got: {error}"
            ) from error
