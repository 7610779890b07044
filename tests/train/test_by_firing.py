"""Latents by how often they fire in a batch, in the log of every run."""

import torch

from saelab.core.codes import Codes
from saelab.core.log import read_log
from saelab.core.run import Run
from saelab.data.array import ArraySource
from saelab.sae.activations.topk import TopK
from saelab.sae.sae import SAE
from saelab.train.loop import by_firing
from saelab.train.trainer import Trainer


def test_latents_are_counted_in_the_bin_of_their_firings():
    values = torch.zeros(8, 6)
    for latent, count in enumerate([0, 1, 2, 3, 4, 8]):
        values[:count, latent] = -1.5
    assert by_firing(Codes.full(values)).tolist() == [1, 1, 2, 1, 1]
    codes = Codes(torch.ones(5, 1), torch.zeros(5, 1, dtype=torch.int64), 3)
    assert by_firing(codes).tolist() == [2, 0, 0, 1]


def test_every_record_of_a_run_has_them(tmp_path):
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    run = Run.create(tmp_path / "run", {})
    Trainer(SAE(8, 32, TopK(k=3)), batch=16).fit(ArraySource(x), rows=64, run=run, log_every=2, show=False)
    records = read_log(run.log_file)
    assert len(records) >= 2
    for record in records:
        assert sum(record["fired"]) == 32
        assert len(record["fired"]) == 6  # up to all 16 rows
