"""Top-AFA's selection: the authors' worked examples, the definition row by row, and its edge cases."""

import pytest
import torch
from torch import Tensor

from saelab.sae import SAE
from saelab.sae.activations.top_afa import TopAFA, nearest_norm
from saelab.sae.dictionaries.dense import Dense

B, D, L = 8, 10, 40


def rows(n: int = B) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def make(spread: float = 0.3) -> SAE:
    """An SAE whose directions are not of unit norm."""
    sae = SAE(D, L, TopAFA()).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return sae


def k_of(acts: list[float], norms: list[float], wanted: float) -> int:
    """The number of latents to keep, straight from the definition."""
    squares = sorted(((a * n) ** 2 for a, n in zip(acts, norms, strict=True)), reverse=True)
    distances = [abs(sum(squares[: m + 1]) ** 0.5 - wanted) for m in range(len(squares) - 1)]
    return distances.index(min(distances)) + 1 if distances else 1


def mask_of(acts: Tensor, norms: Tensor, wanted: Tensor) -> Tensor:
    mask = torch.zeros_like(acts)
    for row in range(len(acts)):
        k = k_of(acts[row].tolist(), norms.tolist(), wanted[row].item())
        order = sorted(range(acts.shape[1]), key=lambda j: -(acts[row, j] * norms[j]).item())
        mask[row, order[:k]] = 1
    return mask


@pytest.mark.parametrize(("acts", "kept"), [([5, 4, 3], [0, 4, 3]), ([1, 1, 1], [0, 1, 1]), ([1, 10, 2], [0, 10, 2])])
def test_the_authors_examples(acts, kept):
    directions = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    acts = torch.tensor([acts]).float()
    contributions, wanted = acts * directions.norm(dim=1), (acts @ directions).norm(dim=1)
    chosen = nearest_norm(contributions, wanted)
    assert torch.equal(acts * chosen, torch.tensor([kept]).float())
    # and through an SAE that has these activations for a row of that norm
    sae = SAE(2, 3, TopAFA(), dictionary=Dense())
    with torch.no_grad():
        sae.dictionary.W_dec.copy_(directions)
        sae.dictionary.W_enc.zero_()
        sae.dictionary.b_enc.copy_(acts[0])
    x = (acts @ directions).clone()
    assert torch.equal(sae.encode(x).dense(), torch.tensor([kept]).float())


def test_codes_and_gradients_are_those_of_the_definition():
    sae, x = make(), rows()
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    W_enc, b_enc, W_dec, b_dec = (getattr(sae.dictionary, name).detach().clone().requires_grad_() for name in names)
    acts = ((x - b_dec) @ W_enc.T + b_enc).clamp_min(0)
    mask = mask_of(acts.detach(), W_dec.detach().norm(dim=1), (x - b_dec).detach().norm(dim=1))
    assert len(set(mask.sum(1).tolist())) > 1
    assert (mask.sum(1) < (acts > 0).sum(1)).any()
    expected = (acts * mask @ W_dec + b_dec - x).square().mean()
    expected.backward()
    terms, step = sae.objective(x)
    terms["reconstruction"].backward()
    torch.testing.assert_close(step.codes.dense(), acts * mask, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x).dense(), acts * mask, rtol=1e-12, atol=1e-12)
    for name, by_hand in zip(names, (W_enc, b_enc, W_dec, b_dec), strict=True):
        torch.testing.assert_close(getattr(sae.dictionary, name).grad, by_hand.grad, rtol=1e-9, atol=1e-12)


def test_the_norm_is_that_of_the_centred_row():
    """Moving a row and the decoder's bias together changes nothing."""
    sae, x = make(), rows()
    before = sae.encode(x).dense()
    with torch.no_grad():
        sae.dictionary.b_dec += 3
    torch.testing.assert_close(sae.encode(x + 3).dense(), before)


def test_contributions_count_not_activations():
    """A latent with half the activation and a direction three times as long comes first."""
    chosen = nearest_norm(torch.tensor([[2.0, 1.0, 0.5]]) * torch.tensor([1.0, 3.0, 1.0]), torch.tensor([3.0]))
    assert chosen.tolist() == [[False, True, False]]


def test_the_nearest_norm_wins_not_the_first_to_exceed():
    contributions = torch.tensor([[3.0, 4.0, 0.0, 0.0]])  # norms 4, 5
    assert nearest_norm(contributions, torch.tensor([4.49])).sum() == 1
    assert nearest_norm(contributions, torch.tensor([4.51])).sum() == 2  # by squares it would be 1


def kept_positives(acts: list[float], wanted: float) -> list[float]:
    acts = torch.tensor([acts])
    chosen = nearest_norm(acts, torch.tensor([wanted]))
    return sorted((acts * chosen)[acts * chosen > 0].tolist())


def test_too_short_altogether_keeps_every_positive_one():
    assert kept_positives([3.0, 0.0, 1.0, 2.0, 0.0], 100.0) == [1.0, 2.0, 3.0]


def test_but_never_all_of_them():
    assert kept_positives([3.0, 1.0, 2.0], 100.0) == [2.0, 3.0]


def test_at_least_one_is_kept():
    assert kept_positives([3.0, 1.0, 2.0], 0.0) == [3.0]
    assert kept_positives([3.0], 1.0) == [3.0]


def test_nothing_positive_is_no_codes():
    sae = make()
    with torch.no_grad():
        sae.dictionary.b_enc.fill_(-1000.0)
    assert (sae.encode(rows()).l0() == 0).all()


def test_it_is_not_for_transcoders():
    with pytest.raises(ValueError, match="TopAFA is for SAEs"):
        SAE(D, L, TopAFA(), d_out=D)
