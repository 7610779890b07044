"""Write saelab/assets/published.json.gz: where published SAEs lie, and what their registry and names say of them.

    pip download sae_lens --no-deps -d FOLDER
    python tools/index_published.py FOLDER/sae_lens-*.whl

Only facts are taken from the registry of SAELens (`pretrained_saes.yaml` in its wheel): names, repository, path, model,
L0, factors that rows are scaled by, and settings that the file of an SAE says wrongly or not at all. Site and width are
read off the names. What loads is not decided here but in `saelab.interchange.index`.
"""

import gzip
import json
import re
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from saelab.core.files import write_whole
from saelab.interchange.index import FILE, FORMAT, latents
from saelab.interchange.sites import model_called

REGISTRY = "sae_lens/pretrained_saes.yaml"
MODELS = {
    "mistral-7b": "mistralai/Mistral-7B-v0.1", "qwen3-0.6b": "Qwen/Qwen3-0.6B", "qwen3-1.7b": "Qwen/Qwen3-1.7B",
    "qwen3-4b": "Qwen/Qwen3-4B", "qwen3-8b": "Qwen/Qwen3-8B", "qwen3-14b": "Qwen/Qwen3-14B",
}  # fmt: skip
"""Short names of models, and their names on the hub."""
PARTS = {
    "res": "hook_resid_post", "resid_post": "hook_resid_post", "att": "attn.hook_z", "attn_out": "attn.hook_z",
    "mlp": "hook_mlp_out", "mlp_out": "hook_mlp_out", "R": "hook_resid_post", "A": "hook_attn_out", "M": "hook_mlp_out",
    "transcoder": "hook_mlp_in",
}  # fmt: skip
"""What a place is called in names of folders, and its hook."""
SETTINGS = ("model_from_pretrained_kwargs", "normalize_activations")
"""Settings of a release that change what its files compute, or what they were trained on."""


def hook_of(kind: str, repo: str, sae: str, path: str) -> str | None:
    """The hook that an SAE reads, by TransformerLens' names; None where its names do not say."""
    if found := re.match(r"blocks\.\d+\.hook(_[a-z]+)+", sae):
        return found[0].replace(".hook_z", ".attn.hook_z")
    layer = re.search(r"(?:layer_?|L)(\d+)(?:[_.RAM/]|$)", path) or re.search(r"layer_?(\d+)", sae)
    if path.startswith("embedding/"):
        return "hook_embed"
    if not layer:
        return None
    block = f"blocks.{layer[1]}."
    if kind == "gemma_2_transcoder":
        return f"{block}ln2.hook_normalized"
    if kind == "gemma_2":
        return block + PARTS[repo.rsplit("-", 1)[1]]
    if kind == "gemma_3":
        return block + PARTS[re.sub(r"_all$", "", path.split("/")[0])]
    if kind in ("llama_scope", "llama_scope_r1_distill"):
        place = re.search(r"L\d+([RAM])", path)
        return block + PARTS[place[1]] if place else None
    if kind in ("mwhanna_transcoder", "mntss_clt_layer_transcoder"):
        return f"{block}mlp.hook_in"
    return f"{block}hook_resid_post"


def width_of(release: str, repo: str, sae: dict[str, Any]) -> int | None:
    """The number of latents, where the names say it."""
    names = f"{sae['path']} {sae['id']} {sae.get('neuronpedia', '')} {repo} {release}".replace("Math-220k", "")
    if found := re.search(r"width-2pow(\d+)", names):
        return 1 << int(found[1])
    if found := re.search(r"_ds(\d+)_|hook_[a-z_]+_(\d{3,6})(?:[_: ]|$)|_fs(\d+)-", names):
        return int(next(filter(None, found.groups())))
    if found := re.search(r"(?:width_|[-_]w-?|_|-)(\d+k|1m)(?:[-_/ .]|$)", names, re.IGNORECASE):
        return latents(found[1])
    return None


def entry(release: str, about: dict[str, Any], sae: dict[str, Any]) -> dict[str, Any]:
    """One SAE, as far as anything is known of it."""
    path, kind, repo = str(sae["path"]), about["conversion_func"] or "", about["repo_id"]
    listed = sae.get("l0")
    named = re.search(r"average_l0_(\d+)", path)
    l0 = listed if listed is not None else int(named[1]) if named else None
    return {
        "id": sae["id"],
        "path": path,
        "hook": hook_of(kind, repo, sae["id"], path),
        "width": width_of(release, repo, sae),
        "l0": int(l0) if l0 is not None and l0 == int(l0) else l0,
        "factor": sae.get("norm_scaling_factor"),
    }


def model_of(about: dict[str, Any]) -> str:
    """The model's name on the hub."""
    if found := re.match(r"google/gemma-scope-(\d+b)-(pt|it)-", about["repo_id"]):  # one release names another
        return f"google/gemma-2-{found[1]}" + "-it" * (found[2] == "it")
    name = about["model"]
    return MODELS.get(name, model_called(name))


def index_of(registry: dict[str, Any], source: str) -> dict[str, Any]:
    """The whole index: a table a release, with a column for each thing that is known of its SAEs."""
    releases = {}
    for release, about in sorted(registry.items()):
        found = [entry(release, about, sae) for sae in about["saes"]]
        settings = {key: value for key, value in about.get("config_overrides", {}).items() if key in SETTINGS}
        releases[release] = {
            "repo": about["repo_id"],
            "model": model_of(about),
            "kind": about["conversion_func"] or "sae_lens",
            **({"settings": settings} if settings else {}),
            **{key: [one[key] for one in found] for key in found[0] if any(one[key] is not None for one in found)},
        }
    return {"format": FORMAT, "source": source, "date": datetime.now(UTC).date().isoformat(), "releases": releases}


def write_index(wheel: Path, to: Path = FILE) -> dict[str, Any]:
    """Write the index of a wheel of SAELens; the same wheel gives the same bytes on the same day."""
    with zipfile.ZipFile(wheel) as archive:
        registry = yaml.safe_load(archive.read(REGISTRY))
    version = wheel.name.split("-")[1]
    index = index_of(registry, f"the registry of SAELens {version}")
    text = json.dumps(index, separators=(",", ":"), ensure_ascii=False)
    write_whole(to, lambda file: file.write(gzip.compress(text.encode(), mtime=0)))
    return index


if __name__ == "__main__":
    made = write_index(Path(sys.argv[1]))
    count = sum(len(release["id"]) for release in made["releases"].values())
    print(f"{FILE}: {count:,} SAEs of {len(made['releases'])} releases, {FILE.stat().st_size:,} bytes")
