"""docs/published.md says what the families do."""

import json
import runpy
from pathlib import Path

from saelab.interchange.families.batch_topk import TOPK
from saelab.interchange.families.dictionary_learning import FORMS
from saelab.interchange.families.sae_lens import BY_ROW, WITHOUT
from saelab.interchange.family import families

ROOT = Path(__file__).parents[2]


def test_the_page_is_as_it_would_be_written_now():
    made = runpy.run_path(str(ROOT / "tools" / "make_published.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), "run: python tools/make_published.py"


def test_its_data_names_every_family_and_what_it_knows():
    rows = {row["family"]: row for row in json.loads((ROOT / "docs" / "published.json").read_text())}
    assert sorted(rows) == sorted(families())
    assert all(name in rows["dictionary_learning"]["reads"] for name in FORMS)
    assert all(name in rows["sae_lens"]["reads"] for name in BY_ROW)
    assert all(name in rows["sae_lens"]["refuses"] for name in WITHOUT)
    assert all(name in rows["batch_topk"]["reads"] for name in TOPK[:2])
