"""Files that want more than to be read: code, memory, places elsewhere; and how much memory a conversion takes."""

import json
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from interchange.foreign import D, L, save, weights
from safetensors.torch import save_file

from saelab.interchange import read
from saelab.interchange.family import members

AUTOENCODER = {"bias": torch.zeros(D), "encoder.weight": torch.zeros(L, D), "encoder.bias": torch.zeros(L),
               "decoder.weight": torch.zeros(D, L)}  # fmt: skip


class Code:
    def __reduce__(self):
        return (Path("this-was-run").touch, ())


def refused(path: Path, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)


@pytest.mark.parametrize("name", ["ae.pt", "sae.pt", "model.pth", "cc_weights.pt", "weights.pt", "layer3.sae.pt"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_never_run(tmp_path, monkeypatch, name, form):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    content = AUTOENCODER | {"cfg": Code()}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    refused(path, "damaged or holds more than tensors")
    assert not Path("this-was-run").exists()


def test_code_under_a_name_that_an_empty_class_is_put_in_the_place_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"cfg": Code(), "state_dict": weights()}, tmp_path / "it.pt")
    changed = tmp_path / "changed.pt"
    with zipfile.ZipFile(tmp_path / "it.pt") as old, zipfile.ZipFile(changed, "w") as new:
        for entry in old.namelist():
            part = old.read(entry)
            assert not entry.endswith("data.pkl") or b"cpathlib\n" in part
            new.writestr(entry, part.replace(b"cpathlib\n", b"cvit_prisma.os\n"))
    refused(changed, "damaged or holds more than tensors|is damaged")
    assert not Path("this-was-run").exists()


def test_archives_that_would_unpack_to_more_are_refused(tmp_path):
    tensors = {"W_enc": np.zeros((D, 1 << 20), np.float32), "threshold": np.zeros(1, np.float32)}
    np.savez_compressed(tmp_path / "params.npz", **tensors)
    assert (tmp_path / "params.npz").stat().st_size < 100_000
    refused(tmp_path / "params.npz", "would unpack to more than 50 times its size")
    torch.save(AUTOENCODER, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as old, zipfile.ZipFile(tmp_path / "ae.pt", "w", 8) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    refused(tmp_path / "ae.pt", "is packed, which torch does not do")


def test_what_claims_to_be_larger_than_its_file_is_refused(tmp_path):
    huge = torch.zeros(1).expand(1 << 40, 1 << 20)
    torch.save(AUTOENCODER | {"encoder.weight": huge}, tmp_path / "ae.pt")
    refused(tmp_path / "ae.pt", r"encoder.weight says to be \[1099511627776, 1048576\], which is more than")
    name = tmp_path / "params.npz"
    for shape in ("(99, 99)", "(9**9, 9)", "(-1, 9)"):
        about = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        array = b"\x93NUMPY\x01\x00" + len(about).to_bytes(2, "little") + about.encode() + bytes(64)
        with zipfile.ZipFile(name, "w") as archive:
            archive.writestr("W_enc.npy", array)
        refused(name, "params.npz is damaged")


def header(path: Path, change) -> None:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    text = json.dumps(change(json.loads(data[8 : 8 + size]))).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1 << 40, 1 << 40]},
        {"shape": [-1, 2]},
        {"dtype": "X99"},
        {"dtype": 3},
        {"data_offsets": [0, 1 << 50]},
        {"data_offsets": [10, 0]},
        {"shape": "all"},
    ],
)
def test_headers_that_lie(tmp_path, change):
    folder = save(tmp_path, "sae_weights.safetensors", weights(), cfg={"d_in": D, "d_sae": L})
    header(folder / "sae_weights.safetensors", lambda table: table | {"W_enc": table["W_enc"] | change})
    refused(folder / "sae_weights.safetensors", "sae_weights.safetensors is damaged")


def test_random_headers(tmp_path):
    folder, draw = save(tmp_path, "sae_weights.safetensors", weights(), cfg={"d_in": D, "d_sae": L}), random.Random(0)
    path = folder / "sae_weights.safetensors"
    data = path.read_bytes()
    for _ in range(200):
        changed = bytearray(data)
        for _ in range(draw.randrange(1, 6)):
            changed[draw.randrange(700)] = draw.randrange(256)
        path.write_bytes(changed)
        assert "\n" not in complaint(folder)


def complaint(folder: Path) -> str:
    """What reading says of a folder; nothing where it reads it."""
    try:
        read(folder)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(L, D, dtype=torch.int64), "encoder.weight is of int64, expected floating-point numbers"),
        (torch.zeros(L, D, dtype=torch.complex64), "encoder.weight is no ordinary tensor of numbers"),
        (torch.zeros(L, D).to_sparse(), "encoder.weight is no ordinary tensor of numbers"),
        (torch.zeros(L, D, dtype=torch.bool), "encoder.weight is of bool"),
        (torch.full((L, D), torch.nan), "encoder.weight holds NaN or infinity"),
        (torch.full((L, D), torch.inf), "encoder.weight holds NaN or infinity"),
        (
            torch.linspace(-1e300, 1e300, L, dtype=torch.float64)[:, None].repeat(1, D),
            "reconstructed as NaN or infinity",
        ),
    ],
)
def test_tensors_of_the_wrong_kind(tmp_path, tensor, words):
    more = {"decoder.weight": torch.full((D, L), 1e300, dtype=torch.float64)} if tensor.dtype == torch.float64 else {}
    torch.save(AUTOENCODER | {"encoder.weight": tensor} | more, tmp_path / "ae.pt")
    refused(tmp_path / "ae.pt", words)


def test_links_that_lead_nowhere_or_round(tmp_path):
    (tmp_path / "ae.pt").symlink_to(tmp_path / "gone.pt")
    (tmp_path / "round.pt").symlink_to(tmp_path / "round.pt")
    assert members(tmp_path) == {}
    with pytest.raises(ValueError, match="is of no family"):
        read(tmp_path)
    for name in ("ae.pt", "round.pt"):
        with pytest.raises(ValueError, match="there is no file"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["x" * 5000, "gpt2\0", "a/" + "b" * 5000, "\ud800"])
def test_names_of_models_that_no_file_system_takes(tmp_path, name):
    about = {"model_name": name, "hook_name": "blocks.1.hook_resid_pre", "model_from_pretrained_kwargs": {}}
    tensors = weights() | {"W_enc": weights()["W_enc"].T}
    folder = save(tmp_path, "sae_weights.safetensors", tensors, cfg={"d_in": D, "d_sae": L, "metadata": about})
    assert read(folder)[1].source == {}


CONVERT = """
import resource, sys, torch
from saelab.core import files
from saelab.recipes.convert import convert
torch.set_num_threads(1)
files.BLOCK_BYTES >>= 2  # as tensors here are smaller than those that it is for
own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(sys.argv[1], sys.argv[2])
convert(sys.argv[1], sys.argv[3], "sae_lens")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - own) // 1024)
"""


def test_a_conversion_takes_less_memory_than_one_and_a_half_of_the_largest_tensor(tmp_path):
    latents, width = 32_768, 1024
    generator = torch.Generator().manual_seed(0)
    part = torch.randn(width, latents, generator=generator)
    tensors = {"W_enc": part, "b_enc": torch.zeros(latents), "W_dec": part.T.contiguous(), "b_dec": torch.ones(width)}
    (tmp_path / "in").mkdir()
    save_file(tensors, tmp_path / "in" / "sae_weights.safetensors")
    about = {"architecture": "topk", "k": 8, "d_in": width, "d_sae": latents, "apply_b_dec_to_input": False}
    (tmp_path / "in" / "cfg.json").write_text(json.dumps(about))
    command = [sys.executable, "-c", CONVERT, str(tmp_path / "in"), str(tmp_path / "out"), str(tmp_path / "to")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    largest = part.nbytes >> 20
    assert int(done.stdout.split()[-1]) < 1.5 * largest
