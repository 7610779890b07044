"""Write saelab/assets/site_names.json: where families of transformers' models have TransformerLens' places.

    python -m campaigns.site_names

Each family's small random model is asked (`saelab.models.structure`); `tests/models/test_structure.py` compares the
file with the models of today, and the places with their definitions. Blocks that differ within a model have only the
places that they share. Families of one model_type are told apart by `settings` of their config, the first of them being
what a config has that says nothing of these.
"""

import json
import random
from importlib.metadata import version
from typing import Any

from campaigns.architectures import FAMILIES, made
from saelab.core.site_names import FILE
from saelab.models.structure import BlockPlaces, block_at, blocks_of

SETTINGS = {
    "falcon": ("new_decoder_architecture", "parallel_attn"),
    "gpt_neox": ("use_parallel_residual",),
    "opt": ("do_layer_norm_before",),
}
"""By model_type, the settings that decide where places are."""


def table() -> dict[str, Any]:
    """What the file holds."""
    return {"transformers": version("transformers"), "families": {name: entry(name) for name in FAMILIES}}


def entry(family: str) -> dict[str, Any]:
    """What the file holds of one family."""
    model, _ = made(family, random.Random(f"sites of {family}"))
    blocks = [block_at(model, path) for path in blocks_of(model)]
    shared = shared_places(blocks)
    kind = model.config.model_type
    return {
        "model_type": kind,
        "settings": {key: getattr(model.config, key) for key in SETTINGS.get(kind, ())},
        "blocks": blocks[0].path.rpartition(".")[0],
        "sites": shared.sites,
        "absent": shared.absent,
    }


def shared_places(blocks: list[BlockPlaces]) -> BlockPlaces:
    """The places that all blocks of a model have at one site."""
    first, *others = blocks
    sites = {name: site for name, site in first.sites.items() if all(one.sites.get(name) == site for one in others)}
    absent = {name: why for one in reversed(blocks) for name, why in one.absent.items()}
    absent |= {name: "it is not the same in all blocks" for name in first.sites if name not in sites}
    return BlockPlaces(first.path, sites, dict(sorted(absent.items())))


def main() -> None:
    """Write the file."""
    made_table = table()
    lines = [f"{json.dumps(name)}: {json.dumps(one)}" for name, one in made_table.pop("families").items()]
    head = json.dumps(made_table)[1:-1]
    FILE.write_text("{" + head + ', "families": {\n' + ",\n".join(lines) + "\n}}\n")


if __name__ == "__main__":
    main()
