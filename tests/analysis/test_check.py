"""Whether SAEs fit a site: planted faults of SAEs trained in seconds on the bundled model's own rows."""

from pathlib import Path

import pytest
import torch

from saelab.analysis.check import FITS, NO_FIT, OTHER_MODEL, VERDICTS, WRONG_ROWS, WRONG_SITE, check
from saelab.analysis.nearby import Neighbourhood, SitePair
from saelab.cli import main
from saelab.data import ArraySource
from saelab.models.language_model import LanguageModel
from saelab.models.subject import Subject
from saelab.sae import SAE
from saelab.sae.activations import TopK
from saelab.sae.scales import Identity, LayerNorm
from saelab.train import Trainer

SITE = "model.layers.3"
ROWS = 256


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """Python enough for training and for looking."""
    folder = tmp_path_factory.mktemp("text")
    for name in ("argparse", "ast", "typing", "subprocess", "tarfile", "zipfile", "shutil", "inspect"):
        (folder / f"{name}.py").write_text(Path(__import__(name).__file__).read_text()[5000:9000])
    return str(folder)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel("pycode-7m", SITE)


def subject_of(text: str, site: str = SITE, target: str | None = None) -> Subject:
    return Subject(site=site, text=text, seq_len=128, target=target)


def checked(sae: SAE, model: LanguageModel, text: str, site: str = SITE, target: str | None = None):
    """The check of the same model at another site."""
    there = LanguageModel(model.model, site, tokenizer=model.tokenizer, target=target)
    return check(sae, subject_of(text, site, target), ROWS, split="all", model=there)


@pytest.fixture(scope="module")
def rows(model, text) -> torch.Tensor:
    (found,) = [rows.x for _, rows in Neighbourhood(model).rows(subject_of(text), [], 6000, "all")]
    return found


def trained(rows: torch.Tensor, steps: int = 40, **settings) -> SAE:
    sae = SAE(256, 384, TopK(16), **settings)
    Trainer(sae, lr=3e-3, batch=512).fit(ArraySource(rows), rows=512 * steps, show=False)
    return sae.eval()


@pytest.fixture(scope="module")
def sae(rows) -> SAE:
    return trained(rows)


def test_it_fits_where_it_was_trained(sae, model, text, rows):
    found = checked(sae, model, text)
    assert found.verdict == FITS
    assert found.rows == ROWS
    assert found.names["TransformerLens"] == "blocks.3.hook_resid_post"
    x = rows[:ROWS]
    with torch.no_grad():
        fvu = (x - sae(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert found.fvu == pytest.approx(fvu.item(), rel=1e-4)
    assert (found.l0, found.l0_said) == (16, 16)
    assert found.norm == pytest.approx(x.norm(dim=1).mean().item(), rel=1e-5)
    assert found.norm_expected == pytest.approx(found.norm, rel=0.2)
    codes = sae.encode(x)
    fired = torch.zeros(384, dtype=torch.bool).index_fill(0, codes.indices[codes.values != 0].unique(), True)
    assert found.silent == pytest.approx(1 - fired.float().mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    "site", ["model.layers.1", "model.layers.5", "blocks.3.hook_resid_pre", "blocks.3.hook_mlp_out"]
)
def test_at_another_layer_or_side_it_says_where_it_belongs(sae, model, text, site):
    found = checked(sae, model, text, site)
    assert found.verdict == WRONG_SITE
    assert found.reason.endswith(f"at {SITE}")
    assert next(iter(found.elsewhere)) == SITE


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_rows_of_another_size(rows, model, text, factor):
    """Its rows were multiplied by a factor, which the model's are not; its scale or, once folded, its biases know."""
    sae = trained(rows * factor)
    for one in (sae, sae.fold()):
        found = checked(one, model, text)
        assert found.verdict == WRONG_ROWS
        assert f"multiplied by {factor:.3g}" in found.reason or "norm" in found.reason
        assert found.norm_expected == pytest.approx(found.norm * factor, rel=0.2)


def test_missing_layer_norm(rows, model, text):
    """The scale that the SAE was trained with is forgotten, as by a file that does not say it."""
    with_norm = trained(rows, scale=LayerNorm())
    assert checked(with_norm, model, text).verdict == FITS
    forgotten = SAE(256, 384, TopK(16), scale=Identity())
    forgotten.load_state_dict(with_norm.state_dict())
    found = checked(forgotten.eval(), model, text)
    assert found.verdict == WRONG_ROWS


def test_it_learned_nothing(rows, model, text):
    for is_initialised in (False, True):
        sae = SAE(256, 384, TopK(16))
        if is_initialised:
            sae.initialise(rows[:2048])
        found = checked(sae, model, text)
        assert found.verdict == NO_FIT, found
        assert "coordinates are shuffled" in found.reason


def test_another_model(sae, model, text, rows):
    """Of another width, and of the same width with other coordinates."""
    narrow = SAE(96, 384, TopK(16))
    found = checked(narrow, model, text)
    assert (found.verdict, found.fvu) == (OTHER_MODEL, None)
    assert found.reason == f"it reads rows 96 wide, {SITE} gives rows 256 wide, and no site nearby fits"
    turned, _ = torch.linalg.qr(torch.randn(256, 256, generator=torch.Generator().manual_seed(0)))
    assert checked(trained(rows @ turned), model, text).verdict == NO_FIT


def test_at_a_site_of_another_width_it_says_where_it_belongs(sae, model, text):
    found = checked(sae, model, text, f"{SITE}.mlp.down_proj:in")
    assert found.verdict == WRONG_SITE
    assert f"; at {SITE} FVU is" in found.reason


def test_a_transcoder_one_block_off(model, text):
    pair = {"site": f"{SITE}.mlp:in", "target": f"{SITE}.mlp"}
    there = LanguageModel(model.model, pair["site"], tokenizer=model.tokenizer, target=pair["target"])
    (seen,) = [rows for _, rows in Neighbourhood(there).rows(subject_of(text, **pair), [], 6000, "all")]
    transcoder = SAE(256, 384, TopK(16), d_out=256)
    source = ArraySource(seen.x, target=seen.target)
    Trainer(transcoder, lr=3e-3, batch=512).fit(source, rows=512 * 150, show=False)
    assert checked(transcoder.eval(), model, text, **pair).verdict == FITS
    off = {key: site.replace("3", "2") for key, site in pair.items()}
    found = checked(transcoder, model, text, **off)
    assert (found.verdict, found.otherwise) == (WRONG_SITE, {})
    assert found.reason.endswith(f"at {SitePair(**pair)}")


# ---- the command ----


def test_the_command(sae, text, tmp_path, capsys):
    sae.save(tmp_path / "sae")
    words = ["check", str(tmp_path / "sae"), "--text", text, "--split", "all", "--rows", "256", "--device", "cpu"]
    main([*words, "--model", "pycode-7m", "--site", "blocks.4.hook_resid_post"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith(f"{WRONG_SITE}: FVU is ")
    assert printed[-1].endswith(f" at {SITE}")
    assert any(line.startswith("L0            16 (its files say 16)") for line in printed)
    with pytest.raises(SystemExit):
        main(words)
    assert "does not say what it was trained on: give --model and --site" in capsys.readouterr().err
    assert set(VERDICTS) == {FITS, WRONG_SITE, WRONG_ROWS, OTHER_MODEL, NO_FIT}
