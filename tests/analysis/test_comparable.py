"""How well SAEs reconstruct rows, and what is said of those that hardly do."""

import pytest
import torch

from saelab.analysis.comparable import check_reads, check_width, error_and_l0, poor_fit_warning
from saelab.analysis.rows import Rows
from saelab.sae import SAE
from saelab.sae.activations.topk import TopK


def test_error_and_l0_are_those_of_a_loop_over_rows():
    torch.manual_seed(0)
    rows = Rows.independent(torch.randn(4096 + 37, 6) * 3 + 1)  # more than a block
    sae = SAE(6, 10, TopK(k=3), seed=1)
    sae.initialise(rows.x[:500])
    mse, l0 = error_and_l0(sae, rows)
    codes = sae.encode(rows.x).dense()
    with torch.no_grad():
        error = sum(((x - sae(x[None])[0]).double() ** 2).sum().item() for x in rows.x) / rows.x.numel()
    assert mse == pytest.approx(error, rel=1e-5)
    assert l0 == pytest.approx((codes != 0).double().sum(1).mean().item(), rel=1e-6)


def test_doubt_begins_below_the_mean_and_says_more_beyond_it():
    assert poor_fit_warning("a", 0.2) == ""
    assert poor_fit_warning("a", 0.899) == ""
    near, beyond, never = poor_fit_warning("a", 0.95), poor_fit_warning("a", 1.2), poor_fit_warning("a", float("nan"))
    assert near.startswith("a reconstructs these rows hardly better than their mean does (FVU 0.95)")
    assert beyond.startswith("a reconstructs these rows worse than their mean does (FVU 1.2)")
    assert "FVU nan" in never
    assert all(said.endswith("do not rely on what is said of its latents") for said in (near, beyond, never))


def test_rows_that_are_not_an_saes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"^a reads rows 6 wide, the data's are 5$"):
        check_width("a", SAE(6, 10, TopK(k=3)), Rows.independent(torch.randn(4, 5)))
    check_reads({"a": 0.99})
    with pytest.raises(ValueError, match=r"^b reconstructs these rows worse .*\(FVU 1; a has 0.5\)"):
        check_reads({"a": 0.5, "b": 1.0})
