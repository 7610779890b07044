"""An SAE as plain tensors: what all libraries' forms have in common, and the way from it to ours and back.

    pre = (x - b_dec) W_enc.T + b_enc        x_hat = f W_dec + b_dec        (a transcoder: x W_enc.T + b_enc,
                                                                             x_hat = f W_dec + b_dec + x W_skip.T)

Forms that do not subtract the decoder's bias before encoding become this one with b_enc + W_enc b_dec for b_enc, added
up in float64. Directions keep the norm they have: codes are those that the other library gives. Matrices stay in their
file until they are written to another (`matrix.py`).
"""

# Shape letters, also those of AXES: L latents, D width read, O width written, S sites.

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from saelab.core.files import fit
from saelab.interchange.files import Tensors
from saelab.interchange.matrix import Matrix
from saelab.sae.activations.abs_topk import AbsTopK
from saelab.sae.activations.batch_topk import BatchTopK
from saelab.sae.activations.gated import Gated
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.autoencoder import Autoencoder, write_files
from saelab.sae.base import Activation, Dictionary, PreActivations
from saelab.sae.dictionaries.cross_layer import CrossLayer
from saelab.sae.dictionaries.crosscoder import Crosscoder
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.dictionaries.expander import Expander
from saelab.sae.sae import SAE
from saelab.sae.scale import Scale
from saelab.sae.scales.identity import Identity

AXES = {
    "W_enc": "LD", "b_enc": "L", "W_dec": "LO", "b_dec": "O", "W_skip": "OD", "threshold": "L", "r_mag": "L",
    "b_mag": "L",
}  # fmt: skip
MATRICES = ("W_enc", "W_dec", "W_skip")
READ_AS = {
    "relu": "ReLU", "topk": "TopK", "abstopk": "AbsTopK", "gated": "Gated", "jumprelu": "JumpReLU",
    "batchtopk": "BatchTopK",
}  # fmt: skip
"""How ours reads each kind."""

Layout = Mapping[str, str]
"""Our name of a part to a library's name of the tensor, with ".T" behind it where it is kept transposed."""


@dataclass
class Plain:
    """Weights and how codes come from them.

    Attributes:
        matrices: by our names, shaped as AXES says: W_enc, W_dec, and W_skip where there is one.
        vectors: b_enc and b_dec, and where they apply threshold, r_mag and b_mag.
        kind: relu, topk, abstopk, gated (with r_mag and b_mag), jumprelu or batchtopk (with a threshold).
        k: latents kept a row, or a row on average where there is a threshold.
        is_transcoder: whether other rows are written than are read.
        dictionary: Dense, Crosscoder, or CrossLayer, whose latents read one site each: W_enc [L, D / S].
        sites: S, of the latter two.
        scale: what rows are divided by before they are encoded and multiplied with after they are decoded: [] or [S].
        mean: what is subtracted from rows before that, [D]; None for nothing.
        written_scale: what rows are multiplied with after they are decoded where it is not `scale`.
        row_scale: how each row is scaled by itself, in the place of these; None where it is not.
        notes: what was done to the weights.
    """

    matrices: dict[str, Matrix]
    vectors: dict[str, Tensor]
    kind: str
    k: float | None = None
    is_transcoder: bool = False
    dictionary: str = "Dense"
    sites: int = 1
    scale: float | Tensor = 1.0
    mean: Tensor | None = None
    written_scale: float | None = None
    row_scale: Scale | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """L, D and O."""
        n_latents, width = self.matrices["W_enc"].shape
        return n_latents, width * (self.sites if self.dictionary == "CrossLayer" else 1), len(self.vectors["b_dec"])

    @property
    def dtype(self) -> torch.dtype:
        """Of the encoder."""
        return self.matrices["W_enc"].dtype

    def shift(self, sign: int = 1) -> None:
        """From a form that encodes x as it is to ours, which subtracts b_dec (sign 1), or back (-1)."""
        self._move(sign * self.matrices["W_enc"].product(self.vectors["b_dec"]))
        if sign > 0:
            self.notes.append("folded b_dec into the encoder's bias, because it is not subtracted there")

    def _move(self, pre: Tensor) -> None:
        """Add to the pre-activations of every row."""
        added = {"b_enc": pre}
        if "b_mag" in self.vectors:
            added["b_mag"] = self.vectors["r_mag"].double().exp() * pre
        for name, part in added.items():
            self.vectors[name] = (self.vectors[name].double() + part).to(self.vectors[name])

    def unit_directions(self, norms: Tensor | None = None) -> None:
        """From a form that multiplies pre-activations by the directions' norms, and divides codes by them, to ours.

        Args:
            norms: [L], what is multiplied by, where it is something else.
        """
        norms = self.matrices["W_dec"].norms() if norms is None else norms.double()
        silent = norms == 0
        if silent.any():
            self.notes.append(f"latents without a direction stay at zero: {int(silent.sum()):,}")
        shorter = 1 / norms.where(~silent, torch.inf)  # their codes would be 0 / 0
        self.matrices["W_enc"] = self.matrices["W_enc"].times(norms[:, None])
        self.matrices["W_dec"] = self.matrices["W_dec"].times(shorter[:, None])
        self.vectors["b_enc"] = (self.vectors["b_enc"] * norms).to(self.vectors["b_enc"])

    def bring_to_unit_norm(self) -> None:
        """Directions of norm 1, codes being larger by the norms they had; ValueError where that is no form of it."""
        if self.kind not in ("relu", "jumprelu", "gated"):
            raise ValueError(f"{READ_AS[self.kind]} may keep other latents of directions of unit norm")
        norms = self.matrices["W_dec"].norms()
        if (norms == 0).any():
            raise ValueError("it has latents whose directions are zero")
        self.unit_directions(norms)
        for name in {"threshold", "b_mag"} & self.vectors.keys():
            self.vectors[name] = (self.vectors[name] * norms).to(self.vectors[name])

    def whiten(self, mean: Tensor, there: Tensor, back: Tensor, is_centred: bool) -> None:
        """From a form for z = (x - mean) there, whose reconstructions become x_hat = z_hat back + mean.

        Args:
            mean: [D].
            there: [D, D].
            back: [D, D], its inverse.
            is_centred: whether it subtracts b_dec before encoding.
        """
        self.matrices["W_enc"] = self.matrices["W_enc"].through(there.T)
        self.matrices["W_dec"] = self.matrices["W_dec"].through(back)
        bias = self.vectors["b_dec"]
        self.vectors["b_dec"] = (bias.double() @ back.double() + mean.double()).to(bias)
        if not is_centred:
            self._move(-self.matrices["W_enc"].product(mean))
        self.notes.append("folded the whitening of rows into the weights")

    def set_threshold(self, threshold: Tensor | float) -> None:
        """One threshold for all latents."""
        one = torch.as_tensor(threshold).to(self.vectors["b_enc"])
        self.vectors["threshold"] = one.expand_as(self.vectors["b_enc"]).clone()


def plain_from(tensors: Tensors, layout: Layout, kind: str, is_transcoder: bool = False) -> Plain:
    """What a file holds under the names of a layout; ValueError unless all are there and fit each other."""
    matrices, vectors = {}, {}
    for name, theirs in layout.items():
        axes = AXES[name] if is_transcoder else AXES[name].replace("O", "D")
        flipped = theirs.endswith(".T")
        if name in MATRICES:
            matrices[name] = tensors.matrix(theirs.removesuffix(".T"), axes[::-1] if flipped else axes, flipped)
        else:
            vectors[name] = tensors.take(theirs, axes)
    return Plain(matrices, vectors, kind, is_transcoder=is_transcoder)


def laid_out(plain: Plain, layout: Layout) -> dict[str, Tensor | Matrix]:
    """Tensors as a library names them."""
    found: dict[str, Tensor | Matrix] = {}
    for name, theirs in layout.items():
        if name in MATRICES:
            part = plain.matrices[name]
            found[theirs.removesuffix(".T")] = part.T if theirs.endswith(".T") else part
        else:
            found[theirs] = plain.vectors[name]
    return found


# ---- to ours ----


def save(plain: Plain, folder: Path, path: Path) -> SAE:
    """Write it as `SAE.save` does, without ever holding a whole matrix; the SAE without its matrices.

    Args:
        plain: what to write.
        folder: where to.
        path: where it is from, for complaints.
    """
    thin, tensors = _thin(plain, path)
    _, d_in, d_out = plain.sizes
    config = thin.config() | {"d_in": d_in} | ({"d_out": d_out} if plain.is_transcoder else {})
    write_files(folder, config, tensors)
    return thin


def built(plain: Plain, path: Path) -> SAE:
    """Our SAE; ValueError that names the file for settings that do not fit its sizes."""
    thin, tensors = _thin(plain, path)
    n_latents, d_in, d_out = plain.sizes
    out = d_out if plain.is_transcoder else None
    sae = SAE(d_in, n_latents, thin.activation, (), thin.dictionary, d_out=out, scale=plain.row_scale).to(plain.dtype)
    fit(sae, {name: part.whole() if isinstance(part, Matrix) else part for name, part in tensors.items()}, path)
    return sae


def skeleton(plain: Plain) -> SAE:
    """Ours with rows as narrow as can be and the same activation, to work out codes from pre-activations."""
    return _thin(plain, Path("the SAE"))[0]


def _thin(plain: Plain, path: Path) -> tuple[SAE, dict[str, Tensor | Matrix]]:
    """Ours with rows as narrow as can be, which costs nothing, and the tensors of the one with rows of their width."""
    sites, (n_latents, d_in, d_out) = plain.sites, plain.sizes
    out = sites if plain.is_transcoder else None
    try:
        activation, state = _activation(plain)
        made, scale = _dictionary(plain), plain.row_scale
        thin = SAE(sites, n_latents, activation, dictionary=made, d_out=out, scale=scale).to(plain.dtype)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    thin.activation.load_state_dict(state)
    own, widths = thin.state_dict(), {"scale.mean": d_in, "written_scale.mean": d_out}
    tensors: dict[str, Tensor | Matrix] = {
        name: part.new_zeros(widths[name]) if name in widths else part for name, part in own.items()
    }
    tensors |= {f"dictionary.{name}": part.to(plain.dtype) for name, part in plain.matrices.items()}
    tensors |= {f"dictionary.{name}": plain.vectors[name].to(plain.dtype) for name in ("b_enc", "b_dec")}
    scales: dict[str, float | Tensor] = {} if plain.row_scale else {"scale.scale": plain.scale}
    if plain.is_transcoder:
        scales["written_scale.scale"] = plain.scale if plain.written_scale is None else plain.written_scale
    for name, factor in scales.items():
        tensors[name] = torch.as_tensor(factor).to(plain.dtype).expand_as(own[name]).clone()
    if plain.mean is not None:
        tensors["scale.mean"] = plain.mean.to(plain.dtype)
    return thin, tensors


def _dictionary(plain: Plain) -> Dictionary:
    if plain.dictionary == "Dense":
        return Dense(skip_connection="W_skip" in plain.matrices)
    return {"Crosscoder": Crosscoder, "CrossLayer": CrossLayer}[plain.dictionary](plain.sites)


def _activation(plain: Plain) -> tuple[Activation, dict[str, Tensor]]:
    """The activation and its tensors."""
    own, k = plain.vectors, plain.k
    if plain.kind == "jumprelu":
        return JumpReLU(), {"log_threshold": own["threshold"].relu().log()}
    if plain.kind == "batchtopk" and k is not None:
        return BatchTopK(k), {"threshold": own["threshold"].relu(), "updates": torch.ones((), dtype=torch.int64)}
    if plain.kind == "gated":
        return Gated(), {"r_mag": own["r_mag"], "b_mag": own["b_mag"]}
    if plain.kind == "relu":
        return ReLU(), {}
    assert k is not None
    return {"topk": TopK, "abstopk": AbsTopK}[plain.kind](int(k)), {}


# ---- what it computes ----


class Given(PreActivations):
    """Pre-activations that were worked out elsewhere, of rows that nobody looks at."""

    def __init__(self, thin: SAE, pre: Tensor, bias: Tensor):
        rows = pre.new_zeros(len(pre), thin.d_in)
        super().__init__(thin.dictionary, rows, rows[0], bias)
        self.values = pre

    def all(self) -> Tensor:
        return self.values

    def for_latents(self, latents: Tensor) -> Tensor:
        return self.values[:, latents]

    def for_rows(self, centred: Tensor) -> "Given":
        raise AssertionError("they are of no rows")


@torch.no_grad()
def check_computes(plain: Plain, path: Path) -> None:
    """ValueError that names the file if a weight, or what becomes of a row, is not finite in the precision kept.

    A row of random numbers is encoded and decoded, some latents at a time.
    """
    thin, tensors = _thin(plain, path)
    for name, part in tensors.items():
        if isinstance(part, Matrix) and part.is_as_stored:
            continue  # which was looked at when it was taken from its file
        blocks = (block for _, block in part.blocks()) if isinstance(part, Matrix) else [part]
        # A threshold of 0 is kept as its logarithm.
        zero = -torch.inf if name == "activation.log_threshold" else 0.0
        found = sum(int((~(block.isfinite() | (block == zero))).sum()) for block in blocks)
        if found:
            raise ValueError(f"{path}: {name} holds NaN or infinity in {found:,} places")
    n_latents, d_in, _ = plain.sizes
    row = torch.randn(d_in, generator=torch.Generator().manual_seed(0)).to(plain.dtype)
    row = row if plain.is_transcoder else row - plain.vectors["b_dec"].to(row)
    if plain.dictionary == "CrossLayer":
        every = plain.matrices["W_enc"].product(row.view(plain.sites, -1).T)
        pre = every.gather(1, (torch.arange(n_latents) // (n_latents // plain.sites))[:, None])[:, 0]
    else:
        pre = plain.matrices["W_enc"].product(row)
    bias = plain.vectors["b_enc"].to(plain.dtype)
    codes = thin.activation(Given(thin, (pre.to(plain.dtype) + bias)[None], bias)).dense()
    x_hat = plain.vectors["b_dec"].to(plain.dtype)
    for span, block in plain.matrices["W_dec"].blocks():
        x_hat = x_hat + codes[0, span] @ block.to(plain.dtype)
    if not (codes.isfinite().all() and x_hat.isfinite().all()):
        raise ValueError(f"{path}: a row of random numbers is reconstructed as NaN or infinity")


# ---- from ours ----


@torch.no_grad()
def apart(sae: Autoencoder) -> Plain:
    """An SAE of ours as plain tensors, scalings that one mean and size make folded into them.

    Raises:
        ValueError: for one that has other parts.
    """
    if not isinstance(sae, SAE) or type(sae.dictionary) not in (Dense, Expander, Crosscoder, CrossLayer):
        found = type(sae.dictionary).__name__ if isinstance(sae, SAE) else type(sae).__name__
        raise ValueError(
            f"{found} cannot be exported: no library that saelab writes for has it, only SAEs with a dense dictionary"
        )
    if sae.mesh.shards > 1:
        raise ValueError("this process holds a part of the SAE's latents: load the saved SAE in one process")
    notes, dtype = [], sae.dtype
    row_scale = type(sae.scale)() if sae.scale.per_row else None
    folded = [one for one in {sae.scale, sae.target_scale} if not (one.per_row or one.is_identity)]
    if folded:
        notes.append("folded the scaling of rows: codes are in the units of the data")
    sae = copy.deepcopy(sae).double()
    if row_scale is None:
        sae.fold()
    elif sae.d_out:
        nothing = Identity().setup(sae.d_in, sae.scale.sites).double().fixed()
        sae.activation.rescale(sae.dictionary.fold(nothing, sae.target_scale.fixed()))
    dictionary = sae.dictionary
    assert isinstance(dictionary, Dense)
    written = dictionary.directions().detach()
    is_tied = isinstance(dictionary, Expander) or dictionary.tied
    matrices = {"W_enc": written if is_tied else dictionary.W_enc.detach(), "W_dec": written}
    if dictionary.skip_connection:
        matrices["W_skip"] = dictionary.W_skip.detach()
    reading = sae.activation.plain()
    vectors = {"b_enc": dictionary.b_enc.detach(), "b_dec": dictionary.b_dec.detach()} | reading.parts
    name = type(dictionary).__name__
    return Plain(
        {name: Matrix([part]).to(dtype) for name, part in matrices.items()},
        {name: part.to(dtype) for name, part in vectors.items()},
        reading.kind,
        reading.k,
        sae.d_out is not None,
        name if dictionary.sites > 1 else "Dense",
        dictionary.sites,
        row_scale=row_scale,
        notes=notes,
    )
