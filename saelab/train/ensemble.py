"""Training the members of an ensemble: bagging and boosting (Gadgil et al. 2025, arXiv 2505.16077, as we read it).

    bagging     S SAEs that differ in their seeds, each trained on the rows
    boosting    SAE s is trained on the residuals x - sum_{r<s} x_hat_r of the ones before it

`saelab.sae.ensemble` puts members together. Members are trained one after another, in memory; runs with folders of
their own can be trained with `BoostedSource` as the source.
"""

# Shape letters: B rows, D width, L latents of all members together, S members.

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from saelab.core.components import near_miss
from saelab.data.source import Batch, Source
from saelab.geometry import nearest
from saelab.sae.ensemble import HOW, Ensemble, check_scale
from saelab.sae.sae import SAE
from saelab.train.trainer import Trainer

BLOCK_ROWS = 2048
"""Rows of a sample whose residuals are worked out at once."""


class BoostedSource(Source):
    """What members trained earlier leave of a source's rows: x - earlier(x). Its places are the source's own.

    Args:
        source: of the rows; not one with targets.
        earlier: an SAE, or the ensemble of all members so far; it is only read.

    Raises:
        ValueError: for a source with targets, or one of another width than `earlier` reads.
    """

    def __init__(self, source: Source, earlier: SAE | Ensemble):
        if source.d_out or earlier.d_out:
            raise ValueError("boosting is for SAEs: neither the source nor the earlier SAE may have targets")
        if source.d_in != earlier.d_in:
            raise ValueError(f"the source's rows are {source.d_in} wide, the earlier SAE reads {earlier.d_in}")
        self.source, self.earlier, self.d_in = source, earlier, source.d_in

    def batches(self, rows: int) -> Iterator[Batch]:
        batches = self.source.batches(rows)
        try:
            for batch in batches:
                yield self._boosted(batch)
        finally:
            batches.close()  # type: ignore[attr-defined]

    def _boosted(self, batch: Batch) -> Batch:
        x_hat, downstream = self._reconstructed(batch.x), batch.downstream
        after = None if downstream is None else lambda rows: downstream(rows + x_hat.to(rows))
        return replace(batch, x=batch.x.to(x_hat) - x_hat, downstream=after)

    @torch.no_grad()
    def _reconstructed(self, x: Tensor) -> Tensor:
        return self.earlier(x.to(self.earlier.device, self.earlier.dtype))

    def sample(self, rows: int) -> Tensor:
        parts = self.source.sample(rows).to(self.earlier.device, self.earlier.dtype).split(BLOCK_ROWS)
        return torch.cat([part - self._reconstructed(part) for part in parts])

    def state(self) -> dict[str, Any]:
        return self.source.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.source.restore(state)


def train_ensemble(
    make: Callable[[int], SAE],
    source: Source,
    members: int,
    rows: int,
    how: str = "bagging",
    settings: Mapping[str, Any] | None = None,
    show: bool = True,
) -> Ensemble:
    """Train an ensemble in memory; every member sees the same rows of the source, in the same order.

    Args:
        make: gives member number s, untrained, e.g. `lambda s: SAE(768, 4096, TopK(32), seed=s)`. Seeds have to
            differ, or bagging averages equal SAEs.
        source: of the rows.
        members: how many.
        rows: rows that each member is trained on.
        how: "bagging" or "boosting".
        settings: of `Trainer`, by name.
        show: whether to show progress.

    Raises:
        ValueError: for fewer than one member, an unknown `how`, and see `Trainer`.
    """
    if how not in HOW:
        raise ValueError(f"unknown kind of ensemble how='{how}'{near_miss(how, HOW)}")
    if members < 1:
        raise ValueError(f"members must be at least 1, got {members}")
    start, trained = source.state(), list[SAE]()
    for number in range(members):
        source.restore(start)
        boosts = how == "boosting" and trained
        seen = BoostedSource(source, Ensemble(trained, how)) if boosts else source
        made = make(number)
        check_scale(made, number, how)  # before hours of training
        trained.append(Trainer(made, **(settings or {})).fit(seen, rows, show=show))
    return Ensemble(trained, how)


@torch.no_grad()
def diversity(saes: Sequence[SAE]) -> Tensor:
    """How far each latent's direction is from all directions of the other SAEs: 1 - max cosine; [L] on the CPU.

    0 for a latent that another SAE has too. Latents are in the order of an ensemble's; its explained variance is
    1 - fvu of `saelab.metrics.measure`.

    Raises:
        ValueError: for fewer than two SAEs.
    """
    if len(saes) < 2:
        raise ValueError(f"diversity needs at least 2 SAEs, got {len(saes)}")
    directions = [sae.data_directions() for sae in saes]
    found = []
    for number, own in enumerate(directions):
        others = torch.cat(directions[:number] + directions[number + 1 :])
        found.append(1 - nearest(own, others)[0].squeeze(1).cpu())
    return torch.cat(found)
