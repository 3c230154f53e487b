"""int8 bundles on a processor without VNNI, emulated: features as on this one, within the bound of the benchmark."""

from __future__ import annotations

import json
import platform
import shutil

import numpy as np
import pytest
from reuse_distill.runtime.geometry import frames_for

from benchmarks import int8_across_cpus as across


@pytest.fixture
def as_if_emulated(monkeypatch):
    """The emulated side is this processor's own, with so much noise; no emulator is needed."""

    def use(noise: float) -> None:
        def emulated(bundle, clips):
            encoder = across.Encoder.load(bundle, provider="cpu", threads=1)
            generator = np.random.default_rng(0)
            return [f + noise * generator.standard_normal(f.shape) for f in across.extract(encoder, clips)]

        monkeypatch.setattr(across, "check_emulator", lambda: None)
        monkeypatch.setattr(across, "emulator_version", lambda: "none")
        monkeypatch.setattr(across, "emulated", emulated)

    return use


@pytest.mark.device
def test_the_shipped_int8_bundle_gives_the_same_without_vnni(tmp_path, capsys):
    if platform.machine() not in ("x86_64", "AMD64") or shutil.which(across.EMULATOR) is None:
        pytest.skip(f"{across.EMULATOR} on an x86-64 machine is needed (apt-get install qemu-user)")
    if not across.processor()["avx512_vnni"]:
        pytest.skip("this processor has no AVX512-VNNI to compare with")
    file = tmp_path / "found.json"
    assert across.main(["--json", str(file)]) == 0, capsys.readouterr().err
    found = json.loads(file.read_text())["bundles"]["pocket-stream"]
    assert found["between"]["mean_cosine"] >= across.BOUND and found["between"]["frames"] == 130
    assert found["between"]["max_abs"] > 0, "bit for bit the same: was the second processor another one?"
    for side in ("here", "emulated"):
        assert found["to_torch"][side]["mean_cosine"] >= 0.99, side


@pytest.mark.skipif(not across.CPUINFO.exists(), reason="no /proc/cpuinfo")
@pytest.mark.parametrize(("noise", "status", "verdict"), [(0.0, 0, "held"), (0.2, 1, "NOT held: pocket-stream")])
def test_the_bound_decides(as_if_emulated, capsys, noise, status, verdict):
    as_if_emulated(noise)
    assert across.main([]) == status
    out = capsys.readouterr().out
    assert out.endswith(f"bound: mean cosine {across.BOUND:g} between the two: {verdict}\n")
    assert "emulated with torch" in out


def test_other_recordings_are_compared_and_torch_on_the_bundles_own(as_if_emulated):
    as_if_emulated(0.0)
    clips = across.read_clips(across.AUDIO.with_name("ada-1.flac"))
    found = across.compare(across.BUNDLE, clips)
    assert found["between"]["max_abs"] == 0 and found["between"]["frames"] == frames_for(len(clips[0])) != 130
    assert found["to_torch"]["here"] == found["to_torch"]["emulated"] and found["to_torch"]["here"]["frames"] == 130


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 only")
def test_a_missing_emulator_is_said_with_its_remedy(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert across.main([]) == 2
    err = capsys.readouterr().err
    assert "qemu-x86_64 is missing" in err and "hint: apt-get install qemu-user" in err


def test_what_a_processor_has_is_read_from_its_flags(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("model name\t: Old One\nflags\t\t: fpu avx2 avx512f\n\n")
    assert across.processor(file) == {"name": "Old One", "avx512_vnni": False, "avx_vnni": False, "avx2": True}
    file.write_text("model name\t: New One\nflags\t\t: fpu avx2 avx512_vnni\n\n")
    assert across.processor(file)["avx512_vnni"] is True
