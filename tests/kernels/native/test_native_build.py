"""The library is built once, from the best instructions there are, and its lack is said and not fatal."""

import subprocess

import pytest

from saelab.kernels import native, tier

AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"}


def test_options_follow_the_processor():
    assert native.instructions(frozenset()) == []
    assert native.instructions(frozenset({"avx2", "fma"})) == ["-mavx2", "-mfma"]
    assert "-mavx512vnni" not in native.instructions(frozenset(AVX512))
    assert "-mavx512vnni" in native.instructions(frozenset(AVX512 | {"avx512_vnni"}))


@pytest.mark.parametrize("flags", [set(), {"avx2", "fma"}, AVX512 | {"avx512_vnni"}], ids=["none", "avx2", "avx512"])
def test_every_source_is_sound_for_every_kind_of_processor(flags, tmp_path, compiled):
    here = native.Path(native.__file__).parent
    sources = [str(here / name) for name in native.SOURCES]
    options = [*native.FLAGS, *native.instructions(frozenset(flags)), "-fopenmp", "-fsyntax-only", "-w"]
    done = subprocess.run(
        [native._compiler(), *options, *sources], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_it_is_built_once_and_anew_for_other_flags(tmp_path, monkeypatch, capsys, compiled):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = ["-O0", "-std=c++17", "-fPIC"]
    first = native._built(native._compiler(), flags)
    assert "building" in capsys.readouterr().err
    made = first.stat().st_mtime_ns
    assert native._built(native._compiler(), flags) == first
    assert capsys.readouterr().err == ""
    assert first.stat().st_mtime_ns == made
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_a_folder_that_others_can_write_to_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native._cache() == tmp_path / "saelab" / "kernels"
    (tmp_path / "saelab" / "kernels").chmod(0o777)
    assert native._cache() != tmp_path / "saelab" / "kernels"


def test_without_a_compiler_there_is_a_reason_said_once(monkeypatch, capsys):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    with pytest.raises(native.CannotBuild, match="no C\\+\\+ compiler"):
        native._compiler()
    native._found.cache_clear()
    try:
        assert native.library() is None
        assert native.library() is None
        assert capsys.readouterr().err.count("no compiled kernels (there is no C++ compiler") == 1
    finally:
        native._found.cache_clear()
    monkeypatch.setattr(native, "_found", lambda: (None, "no compiler"))
    with pytest.raises(ValueError, match="no compiler"), tier.using("native"):
        pass


def test_a_tier_that_does_not_exist(monkeypatch):
    with pytest.raises(ValueError, match="auto, reference, .*got 'fast'"), tier.using("fast"):
        pass
    monkeypatch.setattr(tier, "_chosen", "slow")
    with pytest.raises(ValueError, match="SAELAB_KERNELS"):
        tier.chosen()
