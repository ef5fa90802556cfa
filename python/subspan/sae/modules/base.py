"""What every sparse autoencoder shares while it is trained: weights, start, hooks, export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from subspan import RaggedCode, SparseCode, sparse_decode
from subspan._checks import choice, integer, real
from subspan._rows import check_finite
from subspan.errors import InvalidArgumentError
from subspan.sae.autoencoder import Autoencoder
from subspan.sae.modules._arithmetic import row_blocks, total
from subspan.sae.modules._initialize import active_subspace, geometric_median, unit_rows
from subspan.sae.modules._inputs import check_dead, checked_rows, float_dtype

__all__ = ["SAE", "LossTerms"]

Code = SparseCode | RaggedCode


class LossTerms(NamedTuple):
    """A loss and what it is made of."""

    total: Tensor
    """(), the sum of the terms."""
    terms: dict[str, Tensor]
    """What each part adds to the total, by name."""
    reconstruction: Tensor
    """x̂, of the shape of x."""
    code: Code
    """Of the rows of x; values of zero may be among them."""


class SAE(torch.nn.Module, ABC):  # type: ignore[misc]
    """A sparse autoencoder that is trained: the base of all architectures.

    ``x̂ = f @ w_dec + b_dec`` with f the entries that the architecture selects of
    ``z = (x - b_dec) @ w_enc + b_enc``

    Only what is selected is stored and differentiated, by the primitives `topk_encode` and its kin,
    so no tensor of batch times n comes to exist; where an architecture's codes are dense at first,
    it says so. The same seed and data give the same bits for any number of threads.

    Parameters
    ----------
    width : int
        Length d of a row.
    n_latents : int
        Number n of latents.
    dtype : torch.dtype or str
        float32, float64, float16 or bfloat16.
    device : torch.device or str
        Where the weights are. The primitives are for the CPU.
    seed : int
        Of the random directions of the latents, and of what an architecture draws in training.
    unit_norm : bool, optional
        Whether rows of w_dec are kept at norm 1 by the hooks; the default is the architecture's.
    pre_bias : bool, optional
        Whether b_dec is subtracted from x before encoding; the default is the architecture's.
    input_norm : float, optional
        `initialize` sets ``scale``, a factor of x that x̂ is divided by, so that the root of the
        mean squared norm of the rows is this; by default the architecture's. 0: x as it is.
    precision : {"certified", "exact"}
        How `topk_encode` makes its products; the bits are the same.

    Raises
    ------
    InvalidArgumentError
        An option is out of its range.
    """

    architecture: ClassVar[str] = ""
    _unit_norm: ClassVar[bool] = True
    _pre_bias: ClassVar[bool] = True
    _input_norm: ClassVar[str] = "none"  # or "one", "sqrt_width"
    _start_norm: ClassVar[float] = 1.0  # of the rows of w_dec
    _encoder: ClassVar[tuple[str, ...]] = ("w_enc", "b_enc")

    def __init__(
        self,
        width: int,
        n_latents: int,
        *,
        dtype: Any = torch.float32,
        device: Any = "cpu",
        seed: int = 0,
        unit_norm: bool | None = None,
        pre_bias: bool | None = None,
        input_norm: float | None = None,
        precision: str = "certified",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        d = integer(name, "width", width, low=1)
        n = integer(name, "n_latents", n_latents, low=1)
        self.seed = integer(name, "seed", seed, low=0)
        self.unit_norm = self._unit_norm if unit_norm is None else bool(unit_norm)
        self.pre_bias = self._pre_bias if pre_bias is None else bool(pre_bias)
        norms = {"none": 0.0, "one": 1.0, "sqrt_width": d**0.5}
        norm = norms[self._input_norm] if input_norm is None else input_norm
        self.input_norm = real(name, "input_norm", norm, low=0.0)
        self.precision = choice(name, "precision", precision, ("exact", "certified"))
        kind = float_dtype(name, dtype)
        rows = unit_rows(n, d, self.seed, kind).to(device) * self._start_norm
        self.w_dec = torch.nn.Parameter(rows)
        # Rows of latents lie in one piece: what a latent learns, and what dead ones are, is rows.
        own = {"w_enc": rows.clone().t(), "b_enc": rows.new_zeros(n)}
        for part, start in own.items():
            made = torch.nn.Parameter(start) if part in self._encoder else None
            self.register_parameter(part, made)
        self.b_dec = torch.nn.Parameter(torch.zeros(d, dtype=kind, device=device))
        # In Python's precision: a factor of float32 would not survive a dtype of 16 bits.
        self.started = False  # once its weights are more than random: a trainer leaves them alone
        self.register_buffer("scale", torch.ones((), dtype=torch.float64, device=device))

    # ---- what it is --------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Length d of a row."""
        return int(self.w_dec.shape[1])

    @property
    def n_latents(self) -> int:
        """Number n of latents."""
        return int(self.w_dec.shape[0])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.w_dec.dtype

    def extra_repr(self) -> str:
        """Return what torch shows of this module."""
        return f"width={self.width}, n_latents={self.n_latents}"

    # ---- use ---------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> Code:
        """Return the code of rows: by the rule of training, or after eval() by that of inference.

        Parameters
        ----------
        x : tensor (..., d)
            Floats; converted to the dtype of the weights.

        Returns
        -------
        SparseCode or RaggedCode
            As of `Autoencoder.encode`, differentiable.

        Raises
        ------
        InvalidArgumentError
            x has another width.
        DtypeError
            x is no tensor of floats.
        """
        return self._code(self._rows("encode", x))

    def decode(self, code: Code) -> Tensor:
        """Return x̂, the rows (..., d) that a code stands for.

        Parameters
        ----------
        code : SparseCode or RaggedCode

        Returns
        -------
        tensor (..., d), or (rows, d) of a RaggedCode
        """
        return self._unscaled(self._decoded(code, self.w_dec))

    def forward(self, x: Tensor) -> tuple[Tensor, Code]:
        """Return x̂ (..., d) and the code of rows x (..., d).

        Parameters
        ----------
        x : tensor (..., d)

        Returns
        -------
        tensor, SparseCode or RaggedCode
        """
        code = self.encode(x)
        return self.decode(code).reshape(x.shape), code

    def loss(self, x: Tensor, *, dead: Tensor | None = None, step: int | None = None) -> LossTerms:
        """Return the loss of a batch, what it is made of, x̂ and the code.

        Parameters
        ----------
        x : tensor (..., d)
            A batch of rows, finite.
        dead : bool tensor (n,), optional
            Latents that have not been active for long, which auxiliary losses revive.
        step : int, optional
            Number of the training step, of which random choices of the loss are a function.

        Returns
        -------
        LossTerms (total, terms, reconstruction, code)

        Raises
        ------
        InvalidArgumentError
            x is empty, of another width, or has NaN or infinity; dead does not fit; or the weights
            are no longer finite.
        DtypeError
            x is no tensor of floats, or dead none of bool.
        """
        rows = self._rows("loss", x)
        rows = rows.reshape(-1, self.width)
        if rows.shape[0] == 0:
            raise InvalidArgumentError("[SAE.loss] x must have rows, got none")
        check_dead(dead, self.n_latents)
        terms, estimate, code = self._terms(rows, dead, 0 if step is None else int(step))
        whole = torch.stack(list(terms.values())).sum()
        if not bool(torch.isfinite(whole)):
            check_finite(x.detach().reshape(-1, self.width), "SAE.loss")
            raise InvalidArgumentError(
                f"[SAE.loss] total must be finite, got {float(whole.detach())} from finite x. The "
                "weights diverged: lower the learning rate, clip gradients or use a wider dtype"
            )
        return LossTerms(whole, terms, self._unscaled(estimate).reshape(x.shape), code)

    # ---- start -------------------------------------------------------------------------------

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def initialize(self, x_sample: Tensor, *, init: str = "tied", rank: int | None = None) -> Self:
        """Set the weights from the seed and a sample of rows.

        b_dec becomes the geometric median, rows of w_dec random directions, w_enc their transposed.

        Parameters
        ----------
        x_sample : tensor (rows, d)
            Finite; some thousands of rows of the data.
        init : {"tied", "active_subspace"}
            Directions of the whole space, or of the first principal components of the sample, which
            leaves fewer latents dead where the data fill a subspace.
        rank : int, optional
            Dimension of the active subspace; by default the smallest with 99 % of the variance.

        Returns
        -------
        self

        Raises
        ------
        InvalidArgumentError
            The sample is empty, of another width, not finite, or of lower rank than asked for.

        Notes
        -----
        Active subspace: Wang et al. 2025, `arXiv:2508.16929 <https://arxiv.org/abs/2508.16929>`_.
        Geometric median: Gao et al. 2024, `arXiv:2406.04093 <https://arxiv.org/abs/2406.04093>`_.
        """
        choice("SAE.initialize", "init", init, ("tied", "active_subspace"))
        if rank is not None and init != "active_subspace":
            raise InvalidArgumentError(
                f"[SAE.initialize] rank must be None for init={init!r}, got {rank}"
            )
        self.started = True
        self.scale.fill_(1.0)
        x = self._rows("initialize", x_sample).reshape(-1, self.width)
        if x.shape[0] == 0:
            raise InvalidArgumentError("[SAE.initialize] x_sample must have rows, got none")
        check_finite(x, "SAE.initialize")
        if self.input_norm > 0:
            mean_square = float(total(x.double() ** 2)) / x.shape[0]
            if mean_square == 0:
                raise InvalidArgumentError("[SAE.initialize] x_sample must not be all zero")
            self.scale.fill_(self.input_norm / mean_square**0.5)
            x = x * float(self.scale)
        n, d = self.w_dec.shape
        if init == "tied":
            rows = unit_rows(n, d, self.seed, self.dtype)
        else:
            rows = active_subspace(x, n, rank, self.seed).to(self.dtype)
        self.w_dec.copy_(rows * self._start_norm)
        if self.w_enc is not None:
            self.w_enc.copy_(self.w_dec.t())
        if self.b_enc is not None:
            self.b_enc.zero_()
        self.b_dec.copy_(geometric_median(x))
        self._start(x)
        return self

    # ---- hooks of training -------------------------------------------------------------------

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def normalize_decoder_(self) -> None:
        """Scale the rows of w_dec to norm 1, where the architecture keeps them there."""
        if self.unit_norm:
            for block in row_blocks(self.w_dec):
                rows = self.w_dec[block]
                norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
                rows.div_(norms + (norms == 0))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def remove_parallel_gradient_(self) -> None:
        """Take out of w_dec.grad what would change the norms, where they are kept."""
        gradient = self.w_dec.grad
        if self.unit_norm and gradient is not None:
            for block in row_blocks(self.w_dec):
                rows = self.w_dec[block]
                square = (rows * rows).sum(-1, keepdim=True)
                along = (gradient[block] * rows).sum(-1, keepdim=True) / (square + (square == 0))
                gradient[block].sub_(rows * along)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def fired(self, code: Code, *, above: float = 0.0) -> Tensor:
        """Return which latents are active in a code.

        Parameters
        ----------
        code : SparseCode or RaggedCode
        above : float
            The magnitude that counts as active is greater than this.

        Returns
        -------
        bool tensor (n,)
        """
        out = torch.zeros(self.n_latents, dtype=torch.bool, device=self.w_dec.device)
        out[code.indices[code.values.abs() > above]] = True
        return out

    def update_threshold_(self, code: Any) -> None:
        """Take note of the code of a training batch, where inference needs it; else do nothing."""

    # ---- files -------------------------------------------------------------------------------

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def export(self) -> Autoencoder:
        """Return a copy of the weights, and of the rule of inference, as an `Autoencoder`."""
        names = ("w_enc", "w_dec", "b_enc", "b_dec")
        given = {name: getattr(self, name) for name in names} | self._exported()
        copied = {k: x.detach().clone() if torch.is_tensor(x) else x for k, x in given.items()}
        return Autoencoder(
            architecture=self.architecture,
            pre_bias=self.pre_bias,
            scale=float(self.scale),
            **copied,
        )

    @classmethod
    def from_autoencoder(cls, autoencoder: Autoencoder, **options: Any) -> SAE:
        """Return a module with the weights of an `Autoencoder`, to train it further.

        Parameters
        ----------
        autoencoder : Autoencoder
        **options
            Further arguments of the architecture's class.

        Returns
        -------
        SAE
            Of the class of the architecture, or of the class that this is called on.

        Raises
        ------
        InvalidArgumentError
            The architecture is another than this class's, or rows are normalised one by one.
        """
        from subspan.sae.modules.make import restored

        return restored(autoencoder, cls, options)

    # ---- for the architectures ---------------------------------------------------------------

    @abstractmethod
    def _code(self, x: Tensor) -> Code:
        """Return the code of prepared rows, by the rule of the mode."""

    @abstractmethod
    def _terms(
        self, x: Tensor, dead: Tensor | None, step: int
    ) -> tuple[dict[str, Tensor], Tensor, Code]:
        """Return the terms of the loss of prepared rows x (rows, d), x̂ and the code."""

    def _start(self, x: Tensor) -> None:
        """Set what else depends on the sample; x is prepared."""

    def _exported(self) -> dict[str, Any]:
        """Return further fields of the Autoencoder."""
        return {}

    def _restore(self, autoencoder: Autoencoder) -> None:
        """Take over further fields of an Autoencoder of tensors."""

    @property
    def _b_pre(self) -> Tensor | None:
        return self.b_dec if self.pre_bias else None

    def _decoded(self, code: Code, w_dec: Tensor) -> Tensor:
        offsets = code.offsets if isinstance(code, RaggedCode) else None
        return sparse_decode(code.values, code.indices, w_dec, self.b_dec, offsets=offsets)

    def _rows(self, method: str, x: Any) -> Tensor:
        x = checked_rows(f"SAE.{method}", x, self.width).to(self.dtype)
        scale = float(self.scale)
        return x if scale == 1 else x * scale

    def _unscaled(self, x: Tensor) -> Tensor:
        scale = float(self.scale)
        return x if scale == 1 else x / scale
