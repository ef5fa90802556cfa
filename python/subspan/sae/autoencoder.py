"""A finished sparse autoencoder on arrays: what files load into, and what training exports."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from subspan import (
    RaggedCode,
    SparseCode,
    batch_topk_encode,
    sparse_decode,
    threshold_encode,
    topk_encode,
)
from subspan._arrays import dtype_name, library_of, require_array, to_numpy
from subspan._checks import choice, ndim, real
from subspan._rows import check_finite
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.sae._fields import ARRAYS, BY_BATCH, FLOATS, GATED, check_arrays, check_selection
from subspan.sae._normalize import NORMALIZE, normalized, statistics
from subspan.sae._select import gated_encode, namespace, pursue

__all__ = ["ARCHITECTURES", "Autoencoder"]

ARCHITECTURES = (
    *("topk", "batch_topk", "jumprelu", "relu", "gated", "matryoshka", "matching_pursuit"),
    *("mutual_choice", "feature_choice"),
)


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """A sparse autoencoder: a dictionary, an encoder, and the rule that selects latents.

    ``x̂ = f @ w_dec + b_dec`` with f the selected entries of ``z = (x - b_dec) @ w_enc + b_enc``

    All arrays are of one library (numpy or torch) and one float dtype; n latents, rows of width d.

    Parameters
    ----------
    architecture : str
        How f comes from z; see Notes.
    w_enc : array (d, n) or None
        Of "matching_pursuit" it is ``w_dec.T``, whatever is given.
    w_dec : array (n, d)
        The directions of the latents.
    b_dec : array (d,)
    b_enc : array (n,), optional
    k : int, optional
        Latents for each row of "topk", steps of "matching_pursuit"; for architectures that select
        from a batch their average number (a float too).
    threshold : array (n,) or float, optional
        What z must exceed. Negative ones count as 0, but for "feature_choice", whose values may be
        negative.
    r_mag, b_mag, b_gate : array (n,), optional
        Log scale and bias of the magnitudes, bias of the gates of "gated", which has no b_enc.
    pre_bias : bool
        Whether b_dec is subtracted from x before encoding.
    normalize : {"none", "constant_norm_rescale", "layer_norm"}
        What is done to every row first and undone in x̂: scaled to norm sqrt(d); or less its mean
        over its standard deviation (of d - 1), to which 1e-5 is added on the way in.
    scale : float
        A factor of x, after normalize; x̂ is divided by it.
    relu_first : bool
        For "topk": the rectifier stands before the selection (see `topk_encode`).
    tolerance : float
        For "matching_pursuit": a row ends when less than this is left of it.
    no_repeats : bool
        For "matching_pursuit": a row ends after a step that took a latent again.
    group_sizes : tuple of int
        Sizes of the nested groups of "matryoshka", whose sum is n.
    metadata : dict
        What else is known: model, site, origin.

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit, or an option is missing or out of its range.
    DtypeError
        An array is none, or of another library or dtype than w_dec.

    Notes
    -----
    =================  ===========================================================
    architecture       f
    =================  ===========================================================
    topk               the k largest of each row, rectified
    batch_topk         z where it exceeds the threshold; without one the k largest
                       for each row on average of the rows given
    mutual_choice      as batch_topk
    matryoshka         as batch_topk
    jumprelu           z where it exceeds the threshold of its latent
    feature_choice     as jumprelu
    relu               z where it is positive
    gated              ``u exp(r_mag) + b_mag`` where it and ``u + b_gate`` are
                       positive, ``u = (x - b_dec) @ w_enc``
    matching_pursuit   k times the best row of w_dec for what is left of x
    =================  ===========================================================

    Costs are those of `topk_encode`, `threshold_encode` and `sparse_decode`: nothing of rows times
    n is stored.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.sae import Autoencoder
    >>> w_dec = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> sae = Autoencoder("topk", w_dec.T, w_dec, np.zeros(2), k=1)
    >>> sae.encode(np.array([[-3.0, 1.0]]))
    SparseCode(values=array([[3.]]), indices=array([[2]]))
    >>> sae.reconstruct(np.array([[-3.0, 1.0]]))
    array([[-3.,  0.]])
    """

    architecture: str
    w_enc: Any
    w_dec: Any
    b_dec: Any
    b_enc: Any = None
    k: float | None = None
    threshold: Any = None
    r_mag: Any = None
    b_mag: Any = None
    b_gate: Any = None
    pre_bias: bool = True
    normalize: str = "none"
    scale: float = 1.0
    relu_first: bool = False
    tolerance: float = 0.0
    no_repeats: bool = False
    group_sizes: tuple[int, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choice("Autoencoder", "architecture", self.architecture, ARCHITECTURES)
        if self.architecture == "matching_pursuit":
            require_array("Autoencoder", "w_dec", self.w_dec)
            self._set(w_enc=self.w_dec.T)
        check_arrays(self)
        choice("Autoencoder", "normalize", self.normalize, NORMALIZE)
        if self.normalize == "layer_norm" and self.width < 2:
            raise InvalidArgumentError(
                "[Autoencoder] normalize must not be 'layer_norm' for rows of width 1, which have "
                "no standard deviation"
            )
        self._set(tolerance=real("Autoencoder", "tolerance", self.tolerance, low=0.0))
        if real("Autoencoder", "scale", self.scale) == 0 or not np.isfinite(self.scale):
            raise InvalidArgumentError(
                f"[Autoencoder] scale must be finite and not 0, got {self.scale}"
            )
        check_selection(self)
        self._set(metadata=dict(self.metadata), group_sizes=tuple(map(int, self.group_sizes)))
        if self.group_sizes and sum(self.group_sizes) != self.n_latents:
            raise InvalidArgumentError(
                f"[Autoencoder] group_sizes must have the sum n = {self.n_latents}, got "
                f"{self.group_sizes} with {sum(self.group_sizes)}"
            )

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
    def dtype(self) -> str:
        """Name of the dtype of the weights."""
        return dtype_name(self.w_dec)

    @property
    def library(self) -> str:
        """Name of the library of the weights."""
        return library_of(self.w_dec)

    def __repr__(self) -> str:
        """Return what it is in a line, without the weights."""
        k = "" if self.k is None else f", k={self.k}"
        return (
            f"Autoencoder({self.architecture!r}, width={self.width}, n_latents={self.n_latents}"
            f"{k}, {self.library} {self.dtype})"
        )

    # ---- use ---------------------------------------------------------------------------------

    def encode(self, x: Any) -> SparseCode | RaggedCode:
        """Return the code of rows.

        Parameters
        ----------
        x : array (..., d)
            Finite floats of the library of the weights; another float dtype is converted to
            theirs.

        Returns
        -------
        SparseCode or RaggedCode
            SparseCode (..., k) for "topk" (descending) and "matching_pursuit" (in the order of the
            steps, an index may occur twice, values add up); else RaggedCode, with leading axes
            joined.

        Raises
        ------
        InvalidArgumentError
            x has another width, or NaN or infinity.
        DtypeError
            x is no array of floats, or of another library.
        """
        return self._encode(self._rows("encode", x))

    def decode(self, code: SparseCode | RaggedCode, x: Any = None) -> Any:
        """Return the rows that a code stands for.

        Parameters
        ----------
        code : SparseCode or RaggedCode
        x : array (..., d), optional
            The rows of the code; needed where ``normalize`` took from them what x̂ gets back.

        Returns
        -------
        array (..., d), or (rows, d) of a RaggedCode
            Of the dtype of the weights.

        Raises
        ------
        InvalidArgumentError
            x is missing, or it or the code does not fit.
        DtypeError
            Something is of another library or dtype than the weights.
        """
        if self.normalize != "none" and x is None:
            raise InvalidArgumentError(
                f"[Autoencoder.decode] x must be given, as normalize={self.normalize!r} scales "
                "every row by itself, got None. Pass the rows that were encoded, or use reconstruct"
            )
        undo = (0.0, 1.0)
        if self.normalize != "none":
            undo = statistics(self._rows("decode", x, raw=True), self.normalize)
        return self._decode(code, undo)

    def reconstruct(self, x: Any) -> Any:
        """Return x̂, the rows that the code of x stands for.

        Parameters
        ----------
        x : array (..., d)
            As in `encode`.

        Returns
        -------
        array (..., d)
            Of the dtype of the weights.

        Raises
        ------
        InvalidArgumentError
            x has another width, or NaN or infinity.
        DtypeError
            x is no array of floats, or of another library.
        """
        rows = self._rows("reconstruct", x, raw=True)
        undo = statistics(rows, self.normalize)
        return self._decode(self._encode(self._prepared(rows, undo)), undo).reshape(x.shape)

    # ---- other arrays ------------------------------------------------------------------------

    def to_torch(self, device: Any = None, dtype: Any = None) -> Self:
        """Return the same of torch tensors.

        Parameters
        ----------
        device : torch.device or str, optional
            "cpu" if the weights are of numpy.
        dtype : torch.dtype or str, optional

        Returns
        -------
        Autoencoder
        """
        import torch

        if isinstance(dtype, str):
            dtype = getattr(torch, dtype)

        def convert(x: Any) -> Any:
            if not isinstance(x, torch.Tensor):
                half = dtype_name(x) == "bfloat16"  # which torch does not take from numpy
                x = torch.tensor(x.view(np.int16)).view(torch.bfloat16) if half else torch.tensor(x)
            return x.detach().to(device=device, dtype=dtype)

        return self._mapped(convert)

    def to_numpy(self) -> Self:
        """Return the same of numpy arrays; bfloat16 tensors become float32.

        Returns
        -------
        Autoencoder
        """
        return self._mapped(to_numpy)

    def astype(self, dtype: Any) -> Self:
        """Return the same with weights of another float dtype.

        Parameters
        ----------
        dtype : str or dtype of the library
            One of float16, bfloat16, float32 and float64; numpy knows bfloat16 by ml_dtypes.

        Returns
        -------
        Autoencoder
        """
        if self.library == "torch":
            return self.to_torch(dtype=dtype)
        return self._mapped(lambda x: x.astype(dtype))

    # ---- files -------------------------------------------------------------------------------

    def save(self, path: Any, *, format: str = "subspan") -> None:
        """Write it to a folder: `subspan.sae.formats.save`.

        Parameters
        ----------
        path : path
        format : {"subspan", "saelens", "sparsify", "dictionary_learning"}

        Raises
        ------
        UnsupportedError
            The format cannot express it.
        OutputError
            The files cannot be written.
        """
        from subspan.sae import formats

        formats.save(self, path, format=format)

    @staticmethod
    def load(path: Any, **options: Any) -> Autoencoder:
        """Return what a folder or file of any known format holds: `subspan.sae.formats.load`.

        Parameters
        ----------
        path : path
        **options
            Those of the reader of the format, such as ``dtype``.

        Returns
        -------
        Autoencoder
            Of numpy arrays.

        Raises
        ------
        FileFormatError
            There is no file that is known, or it is damaged.
        UnsupportedError
            What it holds is not served.
        """
        from subspan.sae import formats

        return formats.load(path, **options)

    # ---- parts -------------------------------------------------------------------------------

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _mapped(self, convert: Any) -> Self:
        arrays = {name: getattr(self, name) for name in ARRAYS}
        arrays = {name: convert(x) for name, x in arrays.items() if library_of(x)}
        if self.architecture == "matching_pursuit":
            arrays["w_enc"] = None  # the transposed w_dec, again
        return replace(self, **arrays)

    def _rows(self, method: str, x: Any, *, raw: bool = False) -> Any:
        """Return x, checked, as rows (rows, d) of the dtype of the weights; prepared unless raw."""
        function = f"Autoencoder.{method}"
        require_array(function, "x", x)
        if library_of(x) != self.library:
            raise DtypeError(
                f"[{function}] x must be of {self.library} like the weights, got {library_of(x)}. "
                "Convert it, or the autoencoder by to_torch or to_numpy"
            )
        if dtype_name(x) not in FLOATS:
            raise DtypeError(
                f"[{function}] x must be one of {', '.join(FLOATS)}, got {dtype_name(x)}. "
                "Convert it first"
            )
        ndim(function, "x", x, 1, or_more=True)
        if int(x.shape[-1]) != self.width:
            raise InvalidArgumentError(
                f"[{function}] x must have {self.width} columns like the weights, got shape "
                f"{tuple(x.shape)}"
            )
        check_finite(x.reshape((-1, self.width)), function)
        if dtype_name(x) != self.dtype:
            x = x.to(self.w_dec.dtype) if self.library == "torch" else x.astype(self.w_dec.dtype)
        return x if raw else self._prepared(x, statistics(x, self.normalize))

    def _prepared(self, x: Any, undo: tuple[Any, Any]) -> Any:
        x = normalized(x, self.normalize, undo)
        return x if self.scale == 1 else x * self.scale

    def _encode(self, x: Any) -> SparseCode | RaggedCode:
        """Return the code of prepared rows."""
        kind = self.architecture
        b_pre = self.b_dec if self.pre_bias else None
        if kind == "topk":
            first = "relu_first" if self.relu_first else "relu"
            how: dict[str, Any] = {"activation": first, "precision": "certified"}
            return topk_encode(x, self.w_enc, self.b_enc, k=int(self.k or 0), b_pre=b_pre, **how)
        if kind == "matching_pursuit":
            ends: dict[str, Any] = {"tolerance": self.tolerance, "no_repeats": self.no_repeats}
            return pursue(x, self.w_dec, b_pre, int(self.k or 0), **ends)
        if kind == "gated":
            return gated_encode(
                x, self.w_enc, b_pre, **{name: getattr(self, name) for name in GATED}
            )
        if kind in BY_BATCH and self.threshold is None:
            return batch_topk_encode(x, self.w_enc, self.b_enc, k=self.k or 0, b_pre=b_pre)
        bars: Any = 0.0 if kind == "relu" else self.threshold
        if kind != "feature_choice" and library_of(bars):
            xp = namespace(bars)
            bars = xp.where(bars > 0, bars, xp.zeros_like(bars))
        elif kind != "feature_choice":
            bars = max(bars, 0.0)
        return threshold_encode(x, self.w_enc, self.b_enc, threshold=bars, b_pre=b_pre)

    def _decode(self, code: SparseCode | RaggedCode, undo: tuple[Any, Any]) -> Any:
        offsets = code.offsets if isinstance(code, RaggedCode) else None
        out = sparse_decode(code.values, code.indices, self.w_dec, self.b_dec, offsets=offsets)
        if self.scale != 1:
            out = out / self.scale
        if self.normalize != "none":
            shift, factor = undo
            if library_of(shift):
                shift = shift.reshape((*out.shape[:-1], 1))
            out = out * factor.reshape((*out.shape[:-1], 1)) + shift
        return out
