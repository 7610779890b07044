"""The sparse autoencoder: its objective, its start, its file, and what it says to wrong input."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import saelab
from saelab.core.files import read_tensors, write_tensors
from saelab.sae import SAE
from saelab.sae import activations as home
from saelab.sae.activations.jump_relu import JumpReLU
from saelab.sae.activations.relu import ReLU
from saelab.sae.activations.topk import TopK
from saelab.sae.base import Activation
from saelab.sae.dictionaries.dense import Dense
from saelab.sae.ensemble import Ensemble
from saelab.sae.losses.auxk import AuxK
from saelab.sae.reading import reread

D, L = 6, 20
CONFIG = SAE(D, L, TopK(4), [AuxK()]).config()


def rows(n: int = 30, seed: int = 0) -> Tensor:
    return 3 * torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) + 1


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a saved SAE."""
    sae = SAE(D, L, TopK(4), [AuxK()])
    sae.initialise(rows())
    sae.save(tmp_path / "sae")
    return tmp_path / "sae"


def edit(folder: Path, **changes: object) -> None:
    """Change some keys of a saved config."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_map_is_scaling_encoding_decoding_and_scaling_back():
    sae, x = SAE(D, L, TopK(4)), rows()
    sae.initialise(x)
    mean, scale = sae.scale.mean, sae.scale.scale
    dictionary = sae.dictionary
    pre = ((x - mean) / scale - dictionary.b_dec) @ dictionary.W_enc.T + dictionary.b_enc
    largest = pre.topk(4)
    f = torch.zeros_like(pre).scatter(1, largest.indices, largest.values.relu())
    expected = (f @ dictionary.W_dec + dictionary.b_dec) * scale + mean
    torch.testing.assert_close(sae(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.encode(x).dense(), f)


def test_initialising_scales_rows_to_mean_zero_and_square_one():
    sae, x = SAE(D, L, TopK(4)), rows()
    sae.initialise(x)
    scaled = sae.scale.apply_to(x)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(D), rtol=0, atol=1e-6)
    torch.testing.assert_close(scaled.square().mean(), torch.tensor(1.0))
    torch.testing.assert_close(sae.variance, torch.tensor(1.0))


def test_initialising_takes_the_data_sets_own_scale_where_it_is_known():
    sae, x = SAE(D, L, TopK(4)), rows()
    sae.initialise(x, (torch.full((D,), 2.0), torch.tensor(4.0)))
    assert torch.equal(sae.scale.mean, torch.full((D,), 2.0))
    assert sae.scale.scale == 4
    torch.testing.assert_close(sae.variance, ((x - x.mean(0)) / 4).square().mean())


def test_the_losss_unit_is_fixed_at_the_start():
    sae, x = SAE(D, L, TopK(4)), rows()
    sae.initialise(x)
    sae.variance.fill_(5.0)
    terms, step = sae.objective(x)
    torch.testing.assert_close(terms["reconstruction"], (step.x_hat - step.x).square().mean() / 5)
    assert sae.variance == 5


def test_another_target_is_what_is_reconstructed():
    sae, x, target = SAE(D, L, TopK(4)), rows(), rows(seed=1)
    sae.initialise(x)
    terms, step = sae.objective(x, target)
    scaled = (target - sae.scale.mean) / sae.scale.scale
    torch.testing.assert_close(step.target, scaled)
    torch.testing.assert_close(terms["reconstruction"], (step.x_hat - scaled).square().mean())


def test_a_batch_counts_once_it_is_observed():
    sae = SAE(D, L, TopK(4))
    _, step = sae.objective(rows(7))
    assert sae.firing.rows == 0
    sae.observe(step)
    assert torch.equal(sae.firing.since, torch.where(step.codes.counts() > 0, 0, 7))
    assert sae.firing.rows == 7


def test_codes_need_not_come_from_the_sae_that_decodes_them():
    sae, x = SAE(D, L, TopK(4)), rows()
    codes = sae.encode(x)
    torch.testing.assert_close(sae.decode(codes.compact()), sae.decode(codes))


def test_folding_keeps_the_loss():
    sae, x = SAE(D, L, TopK(4), [AuxK(dead_after=1)]), rows()
    sae.initialise(x)
    before, _ = sae.objective(x)
    after, _ = sae.fold().objective(x)
    for name, term in before.items():
        torch.testing.assert_close(after[name], term, rtol=1e-4, atol=1e-6)


def test_text_says_what_it_is():
    assert repr(SAE(D, L, TopK(4), [AuxK()])) == (
        f"SAE(d_in={D}, n_latents={L}, TopK(k=4), AuxK(k_aux=None, weight=0.03125, dead_after=None, share=0.1))"
    )
    other = SAE(D, L, ReLU(), dictionary=Dense(decoder_bias=False))
    dense = "Dense(decoder_bias=False, encoder_bias=True, tied=False, skip_connection=False)"
    assert repr(other) == f"SAE(d_in={D}, n_latents={L}, ReLU(l1=0.01), {dense})"


def test_a_new_activation_is_one_new_file(tmp_path, saved):
    (tmp_path / "absolute.py").write_text(
        "from torch.nn import Module\n"
        "from saelab.core.codes import Codes\n"
        "from saelab.sae.base import Activation\n\n\n"
        "class Absolute(Activation):\n"
        "    def __init__(self, power: int = 1):\n"
        "        Module.__init__(self)\n"
        "        self.power = power\n\n"
        "    def forward(self, pre):\n"
        "        return Codes.full(pre.dense().abs() ** self.power)\n"
    )
    path = list(home.__path__)
    home.__path__.append(str(tmp_path))
    try:
        edit(saved, activation={"name": "Absolute", "power": 2})
        sae = saelab.load(saved)
        assert sae.activation.power == 2
        assert torch.equal(sae.encode(rows()).dense(), sae.dictionary.pre(sae.scale.apply_to(rows())).dense() ** 2)
    finally:
        home.__path__[:] = path
        # Whoever lists the activations after this test must not find it: its base knows it for as long as it lives.
        sys.modules.pop("saelab.sae.activations.absolute").Absolute.__bases__ = (torch.nn.Module,)
        del home.absolute
    assert "Absolute" not in Activation.variants()


# Files.


def test_a_run_folder_will_do_for_its_sae(saved):
    assert saelab.load(saved.parent).config() == CONFIG


def test_files_are_only_the_two(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "weights.safetensors"]


def test_a_wider_precision_comes_back_as_it_was(tmp_path):
    sae = SAE(D, L, TopK(4)).double()
    sae.initialise(rows())
    sae.save(tmp_path)
    again = saelab.load(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(rows()), sae(rows()))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*/nowhere/config\.json"):
        saelab.load(tmp_path / "nowhere")


def test_a_newer_format_is_named(saved):
    edit(saved, format=99)
    with pytest.raises(ValueError, match=r"config\.json .*99, newer than 1"):
        saelab.load(saved)


def test_a_foreign_config_is_named(saved):
    (saved / "config.json").write_text('{"architecture": "topk"}')
    with pytest.raises(ValueError, match=r"config\.json has no format number"):
        saelab.load(saved)


def test_damaged_weights_are_named(saved):
    path = saved / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
        saelab.load(saved)


def test_missing_weights_are_named(saved):
    (saved / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match=r"there is no file .*weights\.safetensors"):
        saelab.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_in": D + 1}, rf"dictionary\.W_dec should be \[{L}, {D + 1}\], the file holds \[{L}, {D}\]"),
        ({"n_latents": L + 1}, rf"dictionary\.W_dec should be \[{L + 1}, {D}\], the file holds \[{L}, {D}\]"),
    ],
    ids=["d_in", "n_latents"],
)
def test_weights_that_do_not_fit_are_named_always_the_same_way(saved, change, message):
    edit(saved, **change)
    with pytest.raises(ValueError, match=message):  # the first tensor by name
        saelab.load(saved)


@pytest.mark.parametrize(("name", "found"), [("dictionary.b_enc", "nothing"), ("dictionary.extra", r"\[1\]")])
def test_a_tensor_too_few_or_too_many_is_named(saved, name, found):
    path = saved / "weights.safetensors"
    tensors, metadata = read_tensors(path)
    if tensors.pop(name, None) is None:
        tensors[name] = torch.ones(1)
    write_tensors(path, tensors, metadata)
    with pytest.raises(ValueError, match=f"{name} should be .*holds {found}"):
        saelab.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": {"name": "TopK", "k": 21}}, f"k must be from 1 to the number of latents, {L}; got k=21"),
        ({"activation": {"name": "Topk", "k": 4}}, "unknown activation 'Topk'; did you mean 'TopK'"),
        ({"activation": {"name": "TopK", "K": 4}}, "unknown key 'K' of activation TopK"),
        ({"activation": {"k": 4}}, "activation.name: expected a text, got nothing"),
        ({"losses": [{"name": "AuxK", "wieght": 1}]}, "unknown key 'wieght' of loss AuxK; did you mean 'weight'"),
        ({"losses": [{"name": "AuxK"}, {"name": "AuxK"}]}, "the loss AuxK is given 2 times; give it once"),
        ({"dictionary": {"name": "Dence"}}, "unknown dictionary 'Dence'; did you mean 'Dense'"),
        ({"n_latent": 5}, "unknown key 'n_latent' of an SAE; did you mean 'n_latents'"),
        ({"d_in": 0}, "d_in must be at least 1, got 0"),
    ],
)
def test_a_wrong_setting_in_a_file_is_named_with_the_file(saved, change, message):
    edit(saved, **change)
    with pytest.raises(ValueError, match=rf"config\.json: .*({message})"):
        saelab.load(saved)


@pytest.mark.parametrize("key", ["d_in", "n_latents", "activation"])
def test_a_missing_setting_is_named(key):
    config = {name: value for name, value in CONFIG.items() if name != key}
    with pytest.raises(ValueError, match=f"an SAE's config needs the key '{key}'"):
        SAE.from_config(config)


def test_settings_that_may_be_left_out():
    config = {name: CONFIG[name] for name in ("d_in", "n_latents", "activation")}
    assert SAE.from_config(config).config() == CONFIG | {"losses": []}


@pytest.mark.parametrize(
    "change",
    [
        {"d_in": "6"},
        {"n_latents": None},
        {"seed": "x"},
        {"activation": "TopK"},
        {"activation": {"name": "TopK", "k": "4"}},
        {"activation": {"name": "TopK", "k": 2.5}},
        {"losses": None},
        {"losses": {"name": "AuxK"}},
        {"losses": [{"name": "AuxK", "weight": "heavy"}]},
    ],
    ids=str,
)
def test_a_setting_of_another_kind_is_named_with_the_file(saved, change):
    edit(saved, **change)
    with pytest.raises(ValueError, match=r"config\.json"):
        saelab.load(saved)


# Wrong input.


def test_a_duplicated_loss_is_refused():
    with pytest.raises(ValueError, match="AuxK is given 2 times"):
        SAE(D, L, TopK(4), [AuxK(), AuxK(k_aux=3)])


@pytest.mark.parametrize(("sizes", "message"), [((0, L), "d_in must be .* 0"), ((D, -1), "n_latents must be .* -1")])
def test_sizes_below_one_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message.replace(".*", "at least 1, got")):
        SAE(*sizes, TopK(4))


def test_sizes_may_be_whole_numbers_of_any_type():
    sae = SAE(np.int64(D), np.int32(L), TopK(4))
    assert type(sae.config()["d_in"]) is type(sae.config()["n_latents"]) is int
    with pytest.raises(ValueError, match="n_latents .*got float"):
        SAE(D, 20.0, TopK(4))
    with pytest.raises(ValueError, match="d_in .*got ndarray"):
        SAE(np.zeros((3, D)), L, TopK(4))


@pytest.mark.parametrize("shape", [(3, D + 1), (D,), (2, 3, D), ()])
def test_training_rows_of_another_shape_are_refused(shape):
    sae, x = SAE(D, L, TopK(4)), torch.zeros(shape)
    message = rf"expected rows of shape \[B, {D}\], got \[{', '.join(map(str, shape))}\]"
    for function in (sae.objective, sae.initialise, lambda x: sae.objective(rows(), x)):
        with pytest.raises(ValueError, match=message):
            function(x)


@pytest.mark.parametrize("shape", [(3, D + 1), (D + 1,), (D, 2), ()])
def test_rows_of_another_width_are_refused(shape):
    sae, x = SAE(D, L, TopK(4)), torch.zeros(shape)
    for function in (sae, sae.encode, Ensemble([sae]).encode):
        with pytest.raises(ValueError, match=rf"\[\.\.\., {D}\], got \["):
            function(x)


@pytest.mark.parametrize("rows", ["text", [["a", "b"]], object(), None], ids=["text", "nested", "object", "None"])
def test_what_is_no_array_of_numbers_is_named(rows):
    with pytest.raises(ValueError, match="tensor or an array of numbers"):
        SAE(D, L, TopK(4)).encode(rows)


@pytest.mark.parametrize("of", [lambda sae: sae, lambda sae: Ensemble([sae, sae])], ids=["sae", "ensemble"])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 0, 3)])
def test_rows_may_have_leading_dimensions(of, leading):
    sae = SAE(D, L, TopK(4))
    sae.initialise(rows())
    sae, x = of(sae), rows()[: math.prod(leading)].view(*leading, D)
    codes, flat = sae.encode(x), sae.encode(x.reshape(-1, D))
    assert codes.values.shape[:-1] == codes.l0().shape == leading
    assert len(codes) == math.prod(leading)
    assert torch.equal(codes.dense(), flat.dense().view(*leading, codes.n_latents))
    assert torch.equal(codes.compact().dense(), codes.dense())
    assert torch.equal(codes.counts(), flat.counts())
    assert torch.equal(sae(x), sae(x.reshape(-1, D)).view(*leading, D))


def test_a_transcoder_with_a_skip_connection_takes_leading_dimensions():
    sae = SAE(D, L, TopK(4), dictionary=Dense(skip_connection=True), d_out=3)
    with torch.no_grad():
        sae.dictionary.W_skip.normal_(generator=torch.Generator().manual_seed(0))
    assert torch.equal(sae(rows(6).view(2, 3, D)), sae(rows(6)).view(2, 3, 3))


@pytest.mark.parametrize("kind", ["<f4", ">f4", "f8", "f2", "i8"])
def test_rows_may_be_a_numpy_array(kind):
    sae, x = SAE(D, L, TopK(4)), rows().numpy().astype(kind)[::-1]
    x.flags.writeable = False
    expected = sae.encode(torch.tensor(x.astype("f4").tolist()))
    assert torch.equal(sae.encode(x).values, expected.values)
    assert torch.equal(sae(x), sae.decode(expected))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"activation": "topk"}, r"expected an activation such as TopK\(\), got 'topk'"),
        ({"activation": TopK}, r"TopK is given as a class; write TopK\(\)"),
        ({"activation": AuxK()}, r"expected an activation such as \w+\(\), got something of type AuxK"),
        ({"activation": None}, r"expected an activation such as \w+\(\), got something of type NoneType"),
        ({"losses": ["AuxK"]}, r"expected a loss such as AuxK\(\), got 'AuxK'"),
        ({"losses": AuxK()}, r"losses must be a list of losses, such as \[AuxK\(\)\]; got AuxK"),
        ({"losses": "AuxK"}, r"losses must be a list of losses, such as \[AuxK\(\)\]; got 'AuxK'"),
        ({"losses": [AuxK]}, r"AuxK is given as a class; write AuxK\(\)"),
        ({"dictionary": "dense"}, r"expected a dictionary such as Dense\(\), got 'dense'"),
    ],
    ids=str,
)
def test_what_is_no_component_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        SAE(D, L, **({"activation": TopK(4)} | wrong))


def test_a_component_of_two_saes_is_copied_for_the_second():
    parts = {"activation": JumpReLU(bandwidth=0.5), "losses": [AuxK(k_aux=3)], "dictionary": Dense(encoder_bias=False)}
    first, second = SAE(D, L, **parts), SAE(D + 1, 2 * L, **parts)
    assert first.activation is parts["activation"]
    assert first.config() == second.config() | {"d_in": D, "n_latents": L}
    assert first.activation.log_threshold.shape == (L,)
    assert first(rows()).shape == (30, D)
    third = reread(first, parts["activation"].__class__(bandwidth=0.5))
    assert reread(second, third.activation).activation is not third.activation
    assert third.activation.log_threshold.shape == (L,)


def test_initialising_needs_rows_that_differ():
    sae = SAE(D, L, TopK(4))
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        sae.initialise(rows(1))
    with pytest.raises(ValueError, match="scale positive, got scale 0"):
        sae.initialise(torch.ones(5, D))
