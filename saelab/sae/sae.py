"""The sparse autoencoder: a dictionary, an activation and losses, and the files it is saved to.

    codes = activation(dictionary.pre(scale(x)))          x_hat = unscale(dictionary.decode(codes))

Training belongs to `saelab.train`; this file knows only what one batch's objective is.
"""

# Shape letters: B rows, D input width, L latents.

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from saelab.core.codes import Codes
from saelab.core.components import Component, check_kinds, near_miss
from saelab.core.mesh import ALONE, Mesh
from saelab.core.rows import Rows, flat_rows
from saelab.sae.autoencoder import FORMAT, write_files
from saelab.sae.base import Activation, Composed, Dictionary, Forward, Loss, Sizes
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.firing import Firing
from saelab.sae.quantile import BLOCK_ENTRIES
from saelab.sae.scale import Scale
from saelab.sae.scales.data_scale import DataScale


class SAE(Composed):
    """A sparse autoencoder.

    Args:
        d_in: width D of the rows it reads.
        n_latents: number L of latents.
        activation: turns pre-activations into codes, e.g. `TopK(k=32)`.
        losses: further terms of the objective, e.g. `[AuxK()]`.
        dictionary: the two linear maps; `Dense()` by default.
        seed: of the starting weights.
        mesh: the processes that train it together; by default this one alone.
        d_out: makes it a transcoder, which reconstructs other rows, of this width, than it reads.
        scale: how rows are scaled before they are encoded; `DataScale()` by default.

    Raises:
        ValueError: for sizes below 1, what is no component or one that does not fit, or latents that cannot be dealt
            to the mesh's shards evenly.

    A component belongs to one SAE: one that another SAE has already is copied, settings only.
    """

    def __init__(
        self,
        d_in: int,
        n_latents: int,
        activation: Activation,
        losses: Sequence[Loss] = (),
        dictionary: Dictionary | None = None,
        seed: int = 0,
        mesh: Mesh = ALONE,
        d_out: int | None = None,
        scale: Scale | None = None,
    ):
        super().__init__()
        sizes = Sizes.checked(d_in, n_latents, d_out, seed, mesh)
        self.d_in, self.n_latents, self.seed, self.mesh = sizes.d_in, sizes.n_latents, seed, mesh
        self.d_out = sizes.d_out if sizes.is_transcoder else None
        if isinstance(losses, str) or not isinstance(losses, Iterable):
            raise ValueError(f"losses must be a list of losses, such as [AuxK()]; got {losses!r}")
        self.activation = Activation.unused(activation)
        self.losses = nn.ModuleList([Loss.unused(loss) for loss in losses])
        self.dictionary = Dense() if dictionary is None else Dictionary.unused(dictionary)
        self._check_losses()
        for part in self._parts():
            part.setup(sizes)
            part.in_use = True
        self.scale = (DataScale() if scale is None else Scale.unused(scale)).setup(self.d_in, self.dictionary.sites)
        if self.d_out:
            # Of the rows to be written nothing is known but what codes of other rows say.
            written = DataScale() if self.scale.per_row else type(self.scale)()
            self.written_scale = written.setup(self.d_out, self.dictionary.sites)
        self.firing = Firing(sizes.local_latents, mesh)
        # Mean squared deviation of a scaled entry from its mean, fixed once from a sample: the loss's unit.
        self.register_buffer("variance", torch.ones(()))

    @property
    def target_scale(self) -> Scale:
        """The scaling of the rows that are reconstructed; `scale` itself unless this is a transcoder."""
        return self.written_scale if self.d_out else self.scale

    def _losses(self) -> list[Loss]:
        return cast(list[Loss], list(self.losses))  # a ModuleList forgets what it holds

    def _parts(self) -> list[Dictionary | Activation | Loss]:
        return [self.dictionary, self.activation, *self._losses()]

    def _check_losses(self) -> None:
        names = [type(loss).__name__ for loss in self.losses]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the loss {name} is given {names.count(name)} times; give it once")

    def encode(self, x: Rows) -> Codes:
        """Codes of rows x [..., D], never in the full layout; their values are in units of the scaled input (`scale`).

        They are what rows are read by, the same with gradients on and off; `forward_train` has those of training.

        Args:
            x: rows, as a tensor or a NumPy array; all but the last dimension become those of the codes.

        Raises:
            ValueError: for rows of another width, or what is no array of numbers.
        """
        rows, leading = flat_rows(x, self.d_in, self.device)
        numbers = self.scale.numbers(rows)
        codes = self.activation(self.dictionary.pre(self.scale.apply_to(rows, numbers)))
        codes = (codes.compact() if codes.is_full else codes).with_row_scale(numbers)
        return codes if len(leading) == 1 else codes.unflatten(leading)

    def decode(self, codes: Codes, x: Rows | None = None) -> Tensor:
        """Reconstructed rows [..., D], in the units of the data.

        Args:
            codes: of the rows, as `encode` gives them: with the rows' own numbers, where each has a scale of its own.
            x: the rows [..., D] themselves, needed where there is a skip connection only.
        """
        rows, flat = None if x is None else flat_rows(x, self.d_in, self.device)[0], codes.flat()
        x_hat = self.target_scale.undo(self._past_latents(self.dictionary.decode(flat), rows), flat.row_scale)
        return x_hat.view(*codes.values.shape[:-1], x_hat.shape[1])

    def _past_latents(self, x_hat: Tensor, x: Tensor | None) -> Tensor:
        scaled = None if x is None else self.scale.apply_to(x)
        skipped = None if scaled is None else self.dictionary.skip(scaled)
        if scaled is None and self.dictionary.skip(x_hat.new_zeros(1, self.d_in)) is not None:
            raise ValueError("this transcoder has a skip connection: decode(codes, x) needs the rows x too")
        return x_hat if skipped is None else x_hat + skipped

    def _rows(self, x: Tensor, width: int | None = None) -> Tensor:
        width = width or self.d_in
        if x.ndim != 2 or x.shape[1] != width:
            raise ValueError(f"expected rows of shape [B, {width}], got {list(x.shape)}")
        return x

    @torch.no_grad()
    def initialise(
        self, sample: Tensor, scale: tuple[Tensor, Tensor] | None = None, target: Tensor | None = None
    ) -> None:
        """Fit scaling, starting weights and the loss's unit to a sample of rows [n, D].

        Args:
            sample: rows, at least 2; the authors of the method use 32,768.
            scale: the data set's mean [D] and scale, where they are known from more rows than the sample.
            target: the rows [n, D] that a transcoder reconstructs from the sample.
        """
        sample = self._rows(sample).to(self.device, self.dtype)
        if len(sample) < 2:
            raise ValueError(f"initialising needs at least 2 rows, got {len(sample)}")
        self.scale.fit(sample, scale)
        rows = self.scale.apply_to(sample)
        wanted = rows
        if self.d_out:
            target = self._target(target).to(self.device, self.dtype)
            self.target_scale.fit(target)
            wanted = self.target_scale.apply_to(target)
        self.variance.copy_((wanted - wanted.mean(0)).square().mean())
        self.dictionary.initialise(rows, wanted, self.activation, torch.Generator().manual_seed(self.seed))

    def _target(self, target: Tensor | None) -> Tensor:
        if target is None:
            raise ValueError("a transcoder needs the rows to reconstruct: give target")
        return self._rows(target, self.d_out)

    def objective(
        self,
        x: Tensor,
        target: Tensor | None = None,
        gradient: Tensor | None = None,
        downstream: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], Forward]:
        """The terms of the training objective on rows, whose sum is minimised, and the pass that led to them.

        Nothing is counted: see `forward_train`, whose arguments these are, and `observe`.
        """
        step = self.forward_train(x, target, gradient, downstream)
        return self.terms(step), step

    def forward_train(
        self,
        x: Tensor,
        target: Tensor | None = None,
        gradient: Tensor | None = None,
        downstream: Callable[[Tensor], Tensor] | None = None,
    ) -> Forward:
        """The training pass on rows x [B, D].

        Args:
            x: rows that are read.
            target: rows to reconstruct; a transcoder needs them, any other SAE may be given them.
            gradient: of a loss downstream with respect to the rows [B, D], for components that ask for it.
            downstream: gives the model's loss for reconstructions [B, D], for components that ask for it.
        """
        numbers = self.scale.numbers(self._rows(x))
        x = self.scale.apply_to(x, numbers)
        if self.d_out or target is not None:
            target = self._rows(self._target(target), self.d_out)
            target = self.target_scale.apply_to(target, None if self.d_out else numbers)
        pre = self.dictionary.pre(x)
        pre.gradient = gradient
        codes = self.activation.forward_train(pre).with_row_scale(numbers)
        x_hat, skipped = self.dictionary.decode(codes), self.dictionary.skip(x)
        x_hat = x_hat if skipped is None else x_hat + skipped
        return Forward(self, x, x if target is None else target, pre, codes, x_hat, downstream)

    def observe(self, step: Forward) -> None:
        """Count a training batch, once and before its terms, which may ask which latents are dead."""
        self.firing.update(step.codes)
        self.activation.observe(step.codes, self.mesh)

    def terms(self, step: Forward) -> dict[str, Tensor]:
        """The terms of the objective from a training pass.

        `reconstruction` is mean (x_hat - target)^2 over all entries, divided by the variance fixed at initialisation.
        """
        terms = {"reconstruction": step.error(step.x_hat)} | self.activation.penalties(step)
        return terms | {type(loss).__name__: loss(step) for loss in self._losses()}

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set exactly, for these weights, what is estimated while training and read by later, such as a threshold.

        Args:
            x: rows [n, D] with n >= 1, on any device; the same on every process of the mesh, which share them out.
        """
        if not self.activation.calibration_rows:
            return
        own = self._rows(x)[self.mesh.replica :: self.mesh.replicas]
        parts = own.split(max(1, BLOCK_ENTRIES // self.n_latents))
        pres = (self.dictionary.pre(self.scale.apply_to(part.to(self.device))) for part in parts)
        self.activation.calibrate(pres, len(x), self.mesh)

    def before_step(self) -> None:
        """What components do between the backward pass and the optimizer's step."""
        self.dictionary.before_step()
        for loss in self._losses():
            loss.before_step()

    def after_step(self) -> None:
        """What components do after the optimizer's step."""
        self.dictionary.after_step()
        for loss in self._losses():
            loss.after_step()

    @torch.no_grad()
    def unit_directions(self) -> None:
        """Bring directions to unit norm where they are not; reconstructions stay the same."""
        self.activation.rescale(self.dictionary.unit_directions())

    @torch.no_grad()
    def fold(self) -> "SAE":
        """Absorb the input scaling into the weights: same reconstructions, `scale` is the identity.

        Codes become larger, as they are then in the units of the data: by the factor `scale.scale` where there is one
        scale.

        Raises:
            ValueError: where every row has a scale of its own.
        """
        read, written = self.scale.fixed(), self.target_scale.fixed()
        self.activation.rescale(self.dictionary.fold(read, written))
        # With one scale this is exact; with one a site, sites weigh differently in the unit of the data.
        self.variance *= written.size.square().mean()
        self.scale.reset()
        self.target_scale.reset()
        return self

    def thresholds(self) -> Tensor | None:
        """Each latent's threshold on pre-activations, [L] float64; None where one has to be set on rows.

        Raises:
            ValueError: where more than a threshold of its own decides whether a latent is active.
        """
        own = self.activation.thresholds()
        return None if own is None else own.to(self.device).expand(self.n_latents // self.mesh.shards)

    def select(self, latents: Tensor) -> "SAE":
        """A copy with some of the latents alone, without losses; each has the codes that it has here.

        Args:
            latents: their numbers [n] in the order wanted, or which they are [L] bool.

        Raises:
            ValueError: for no latents, latents that depend on each other, or an SAE dealt to several shards.
        """
        if self.mesh.shards > 1:
            raise ValueError("latents are taken out of an SAE on one process: load it there")
        if not self.dictionary.is_separable:
            raise ValueError(f"latents of the dictionary {type(self.dictionary).__name__} cannot be separated")
        if self.thresholds() is None:
            raise ValueError(
                f"latents of {type(self.activation).__name__} cannot be separated: a row keeps some of all"
            )
        latents = latents.nonzero().squeeze(1) if latents.dtype == torch.bool else latents
        if not len(latents):
            raise ValueError("an SAE needs at least one latent; none was chosen")
        latents, own = latents.to(self.device), self.sharded_names()
        state = {name: part[latents] if name in own else part for name, part in self.state_dict().items()}
        return self.with_state(len(latents), state)

    def with_state(self, n_latents: int, state: Mapping[str, Tensor]) -> "SAE":
        """An SAE of the same components, without losses, with so many latents and the tensors of a `state_dict`.

        Raises:
            ValueError: where a component does not have that many latents.
        """
        made = SAE(
            self.d_in, n_latents, self.activation, (), self.dictionary, self.seed, d_out=self.d_out, scale=self.scale
        )
        made.to(self.device, self.dtype)
        made.load_state_dict({name: part for name, part in state.items() if not name.startswith("losses.")})
        return made.train(self.training)

    def config(self) -> dict[str, Any]:
        """What rebuilds this SAE, without its weights."""
        return {
            "format": FORMAT,
            "d_in": self.d_in,
            "n_latents": self.n_latents,
            "activation": self.activation.config(),
            "losses": [loss.config() for loss in self._losses()],
            "dictionary": self.dictionary.config(),
            "seed": self.seed,
        } | self._unusual()

    def _unusual(self) -> dict[str, Any]:
        """What a config holds only where it is not the default, as files had it before there was a choice."""
        scale = {} if type(self.scale) is DataScale else {"scale": self.scale.config()}
        return ({"d_out": self.d_out} if self.d_out else {}) | scale

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SAE":
        """An SAE with fresh weights from `config()`; components are looked up by name among the known ones."""
        known = ("d_in", "n_latents", "activation", "losses", "dictionary", "seed", "d_out", "scale")
        for key in config:
            if key not in known and key != "format":
                raise ValueError(f"unknown key '{key}' of an SAE{near_miss(key, known)}")
        for key in known[:3]:
            if key not in config:
                raise ValueError(f"an SAE's config needs the key '{key}'")
        check_kinds(cls, {key: config[key] for key in ("d_in", "n_latents", "seed", "d_out") if key in config})
        if not isinstance(config.get("losses", []), list):
            raise ValueError(f"losses must be a list, got {config['losses']!r}")
        return cls(
            d_in=config["d_in"],
            n_latents=config["n_latents"],
            activation=Activation.build(config["activation"]),
            losses=[Loss.build(loss) for loss in config.get("losses", [])],
            dictionary=Dictionary.build(config.get("dictionary", {"name": "Dense"})),
            seed=config.get("seed", 0),
            d_out=config.get("d_out"),
            scale=Scale.build(config["scale"]) if "scale" in config else None,
        )

    def sharded_names(self) -> set[str]:
        """Names of the parameters and buffers of which a shard holds its own latents' part."""
        found = set()
        for prefix, module in self.named_modules():
            found |= {f"{prefix}.{name}" for name in getattr(module, "sharded", ())}
        return found

    def gathered(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by parameter or buffer name with the latents of all shards; every process has to call it."""
        sharded = self.sharded_names()
        return {
            name: self.mesh.gather_latents(part) if name in sharded and part.ndim else part
            for name, part in named.items()
        }

    def local_part(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The other way round: this shard's part of whole tensors."""
        sharded = self.sharded_names()
        return {
            name: self.mesh.local_latents(full) if name in sharded and full.ndim else full
            for name, full in named.items()
        }

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `weights.safetensors` into a folder, each whole or not at all."""
        folder, tensors = Path(folder), self.gathered(self.state_dict())
        if self.mesh.is_first:
            write_files(folder, self.config(), tensors)
        self.mesh.wait()

    def __repr__(self) -> str:
        parts: list[Component] = [self.activation, *self._losses()]
        if self.dictionary.config() != Dense().config():
            parts.append(self.dictionary)
        words = ", ".join(part.sentence() for part in parts)
        return f"SAE(d_in={self.d_in}, n_latents={self.n_latents}, {words})"
