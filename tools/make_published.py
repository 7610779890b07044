"""Write docs/published.md: which SAEs of other libraries are read and written, and how equal they are.

    python tools/make_published.py

What is read stands in docs/published.json, what is written is asked of the families, differences are those that
`make parity` measured last, or were measured by hand where a library cannot be installed beside the others.
`tests/interchange/test_published_page.py` fails until the page is as this writes it.
"""

import json
from pathlib import Path

from saelab.interchange.family import written

ROOT = Path(__file__).parents[1]
PAGE, DATA, MEASURED = (
    ROOT / "docs" / "published.md",
    ROOT / "docs" / "published.json",
    ROOT / "parity" / "measured.json",
)
TEXT = """# SAEs of other libraries

`saelab convert PATH NEW` finds out which of these wrote a folder or file. What is refused is refused with the reason;
nothing in a file is executed. Every line is tested against the family's formula in float64, codes and reconstructions;
where the library's own code could be run beside ours, the largest difference found between both, as a share of the
largest entry, is given. A file of none of these is read by a map: `saelab convert FILE NEW --map encoder=NAME ...`; the
complaint lists its tensors and a map to start from. `saelab.interchange.saebench(sae)` is the object that SAEBench
evaluates. This page is written by `tools/make_published.py`.

| `--to` | files of | reads | refuses | writes | codes, reconstructions differ by |
|---|---|---|---|---|---|
"""


def page() -> str:
    """The page's text."""
    measured, writes = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}, written()
    lines = []
    for row in json.loads(DATA.read_text()):
        title = row["family"]
        found = measured.get(title) or row.get("measured")
        differs = f"{found['codes']:.0e}, {found['reconstruction']:.0e} ({found['version']})" if found else ""
        cells = (f"`{title}`", row["of"], row["reads"], row["refuses"], "yes" if title in writes else "", differs)
        lines.append(f"| {' | '.join(cells)} |\n")
    return TEXT + "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
