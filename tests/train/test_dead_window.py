"""When latents count as dead where nothing is said: after a share of the run, the same after a resume."""

from pathlib import Path

import pytest
import torch

from saelab.core.run import Run
from saelab.data import ArraySource
from saelab.sae import SAE
from saelab.sae.activations.topk import TopK
from saelab.sae.losses.auxk import AuxK
from saelab.train import Trainer


def trained(folder: Path, stop: int | None = None) -> tuple[SAE, list[float]]:
    """An SAE after 40 steps of 8 rows, and the auxiliary loss of each step; interrupted before one of them."""
    rows = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(SAE(6, 96, TopK(2), [AuxK(k_aux=4)]), lr=1e-2, batch=8)
    found, real = list[float](), trainer.step

    def step(batch):
        if trainer.step_number == stop:
            raise KeyboardInterrupt
        terms, passed = real(batch)
        found.append(terms["AuxK"].item())
        return terms, passed

    trainer.step = step  # type: ignore[method-assign]
    run = Run(folder) if folder.exists() else Run.create(folder, {})
    trainer.fit(ArraySource(rows), 320, run, save_every=4, show=False)
    return trainer.sae, found


def test_a_short_run_has_dead_latents_by_default_and_goes_on_exactly(tmp_path):
    whole, terms = trained(tmp_path / "whole")
    assert not any(terms[:4])  # an eighth of 320 rows are five batches
    assert all(terms[5:])
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", stop=21)
    again, rest = trained(tmp_path / "cut")
    assert rest == terms[20:]
    for name, part in whole.state_dict().items():
        assert torch.equal(part, again.state_dict()[name]), name


def test_a_window_longer_than_the_run_is_said_with_what_to_do():
    assert AuxK().no_effect_warning(1000) is None
    assert AuxK(dead_after=999).no_effect_warning(1000) is None
    assert AuxK(dead_after=10_000_000).no_effect_warning(2_000_000) == (
        "AuxK has no effect: in 2,000,000 rows no latent is silent for dead_after = 10,000,000; leave dead_after out "
        "for an eighth of them, 250,000"
    )
