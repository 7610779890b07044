"""Sparse probing: planted latents, codes of examples against dense ones, pooling."""

import pytest
import torch
from planted_rows import made, sae_of, told, values, whole

from saelab.metrics.probing.codes import TaskCodes, mean_rows, output_directions, spread
from saelab.metrics.probing.sparse_probing import SparseProbing
from saelab.sae.activations.topk import TopK
from saelab.sae.sae import SAE
from saelab.tasks.rows import Examples, TaskRows

N, D = 400, 12


def rows(seed: int = 0) -> torch.Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed))


def test_one_latent_that_is_the_label_answers_everything():
    label = torch.rand(N, generator=torch.Generator().manual_seed(1)) < 0.5
    direction = torch.nn.functional.normalize(torch.ones(D), dim=0)
    x = rows() * 0.1 + label[:, None] * direction * 4
    others = torch.nn.functional.normalize(torch.randn(9, D, generator=torch.Generator().manual_seed(2)), dim=1)
    scores = values(SparseProbing(), made({"t": label}, x), sae_of(torch.cat([others * 0.1, direction[None]])))
    assert scores["sparse_probing_1"] == 1
    assert scores["sparse_probing_full"] == 1
    noise = values(SparseProbing(), made({"t": label}, rows()), sae_of(others))
    for name, value in noise.items():
        assert 0.38 < value < 0.62, name


def test_an_or_of_two_latents_needs_two():
    """Yes where one of two directions is on, no where a third one is: one latent answers three quarters."""
    which = torch.randint(4, (N,), generator=torch.Generator().manual_seed(3))
    label = which < 2
    x = torch.nn.functional.one_hot(which, D).float() * 3 + rows() * 0.05
    scores = told(SparseProbing(), made({"t": label}, x), sae_of(torch.eye(D), bias=-1.0))
    assert scores["sparse_probing_1"].value == pytest.approx(0.75, abs=0.04)
    assert scores["sparse_probing_2"].value >= 0.98 or scores["sparse_probing_5"].value >= 0.98
    assert scores["sparse_probing_1"].low <= scores["sparse_probing_1"].value <= scores["sparse_probing_1"].high
    assert scores["sparse_probing_1"].n == N // 2


def test_codes_of_examples_are_the_mean_of_their_rows_codes():
    generator = torch.Generator().manual_seed(0)
    x = rows()[:30]
    sae = SAE(D, 20, TopK(k=3))
    sae.initialise(rows())
    dense = sae.encode(x).dense().detach()
    task = whole({"t": torch.arange(N) % 2 == 0}, rows()).examples[0].task
    first, count = torch.tensor([0, 3, 10]), torch.tensor([3, 1, 15])
    one = Examples(task, first, count)
    entries = TaskCodes(sae, TaskRows(x, [one], {})).entries(one)
    wanted = torch.stack([dense[0:3].mean(0), dense[3], dense[10:25].mean(0)])
    chosen = torch.tensor([4, 0, 19, 7])
    torch.testing.assert_close(entries.columns(chosen, 20), wanted[:, chosen])
    label, used = torch.tensor([True, False, False]), torch.tensor([True, True, True])
    torch.testing.assert_close(entries.difference(label, used, 20), wanted[0] - wanted[1:].mean(0))
    weight = torch.randn(20, generator=generator)
    torch.testing.assert_close(entries.total(weight[entries.latent]), wanted @ weight)
    some = TaskCodes(sae, TaskRows(x, [one], {})).entries(one, torch.tensor([2, 1]))
    torch.testing.assert_close(some.columns(chosen, 20), wanted[[2, 1]][:, chosen])
    torch.testing.assert_close(
        mean_rows(TaskRows(x, [one], {}), one), torch.stack([x[0:3].mean(0), x[3], x[10:25].mean(0)])
    )


def test_spans_are_spread():
    owner, place = spread(torch.tensor([5, 0, 9]), torch.tensor([2, 0, 3]))
    assert owner.tolist() == [0, 0, 2, 2, 2]
    assert place.tolist() == [5, 6, 9, 10, 11]


def test_directions_are_what_a_code_of_one_adds():
    sae = SAE(D, 20, TopK(k=3))
    sae.initialise(rows() * 7 + 3)
    from saelab.core.codes import Codes

    for latent in (0, 13):
        one, two = (Codes(torch.tensor([[value]]), torch.tensor([[latent]]), 20) for value in (1.0, 2.0))
        torch.testing.assert_close((sae.decode(two) - sae.decode(one))[0], output_directions(sae)[latent])
    with pytest.raises(ValueError, match="this is a transcoder"):
        output_directions(SAE(D, 20, TopK(k=3), d_out=5))
