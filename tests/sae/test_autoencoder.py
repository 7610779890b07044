"""What an SAE and an ensemble answer alike: directions in the units of the data, who is alive, what a folder holds."""

import pytest
import torch
import torch.nn.functional as F

import saelab
from saelab.sae import SAE, Autoencoder, Ensemble, load_ensemble, load_sae
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.dictionaries.crosscoder import Crosscoder

D, L = 6, 10


def scaled(sae: SAE) -> SAE:
    """An SAE with a mean and scales that are not those it starts with."""
    for number, scale in enumerate({sae.scale, sae.target_scale}):
        scale.set(torch.linspace(-1, 1, len(scale.mean)), torch.linspace(2, 3, scale.sites).squeeze() + number)
    return sae.eval()


MADE = {
    "sae": lambda: scaled(SAE(D, L, ReLU())),
    "transcoder": lambda: scaled(SAE(D, L, ReLU(), d_out=4)),
    "sites": lambda: scaled(SAE(D, L, ReLU(), dictionary=Crosscoder(sites=2))),
    "ensemble": lambda: Ensemble([scaled(SAE(D, L, ReLU(), seed=seed)) for seed in range(2)]),
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_a_direction_is_what_a_code_of_one_adds_in_the_units_of_the_data(made):
    sae = made()
    assert isinstance(sae, Autoencoder)
    codes = saelab.Codes.full(torch.eye(sae.n_latents)).compact()
    none = saelab.Codes.full(torch.zeros(1, sae.n_latents))
    with torch.no_grad():
        torch.testing.assert_close(sae.data_directions(), sae.decode(codes) - sae.decode(none), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sae.data_directions(normalised=True), F.normalize(sae.data_directions(), dim=1))
        some = torch.tensor([4, 1])
        torch.testing.assert_close(sae.data_directions(some), sae.data_directions()[some])
        torch.testing.assert_close(sae.data_bias(), sae.decode(none)[0])


def test_who_fired_in_the_last_quarter_of_training_is_alive():
    for sae in (SAE(4, 3, TopK(1)), Ensemble([SAE(4, 3, TopK(1))])):
        assert sae.firing.horizon == 0
        assert sae.alive().tolist() == [True] * 3, "without a history nobody is known to be dead"
        sae.firing.rows.fill_(40)
        sae.firing.since.copy_(torch.tensor([0, 9, 10]))
        assert sae.alive().tolist() == [True, True, False]
        assert sae.alive(9).tolist() == [True, False, False]
        sae.firing.rows.fill_(10**12)
        assert sae.firing.horizon == 10_000_000


def test_a_folder_is_opened_as_what_it_holds(tmp_path):
    one, both = SAE(4, 8, TopK(2)), Ensemble([SAE(4, 8, TopK(2), seed=seed) for seed in range(2)])
    one.save(tmp_path / "one")
    both.save(tmp_path / "both")
    assert type(saelab.load(tmp_path / "one")) is type(load_sae(tmp_path / "one")) is SAE
    assert type(saelab.load(tmp_path / "both")) is type(load_ensemble(tmp_path / "both")) is Ensemble
    with pytest.raises(ValueError, match="both is an ensemble"):
        load_sae(tmp_path / "both")
    with pytest.raises(ValueError, match="not the config of an ensemble"):
        load_ensemble(tmp_path / "one")
