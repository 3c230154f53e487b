"""runtime/audio/audio_files.py: good files whole, bad files with a reason and a place."""

import csv
import warnings
import wave as wave_module

import numpy as np
import pytest
import soundfile
from reuse_distill.runtime.audio.audio_files import AudioFile, read_audio
from reuse_distill.runtime.errors import RdError


@pytest.fixture
def speech(toys):
    return toys.speech(40_000)


@pytest.mark.parametrize(
    ("suffix", "subtype", "close"),
    [
        ("wav", "PCM_16", 4e-5),
        ("wav", "PCM_24", 2e-7),
        ("wav", "PCM_32", 1e-7),
        ("wav", "PCM_U8", 1e-2),
        ("wav", "FLOAT", 0),
        ("wav", "DOUBLE", 0),
        ("wav", "ULAW", 5e-2),
        ("flac", "PCM_16", 4e-5),
        ("flac", "PCM_24", 1e-6),
        ("aiff", "PCM_16", 4e-5),
        ("au", "PCM_16", 4e-5),
        ("w64", "PCM_16", 4e-5),
        ("caf", "PCM_16", 4e-5),
        ("ogg", "VORBIS", 1),
        ("mp3", None, 1),
    ],
)
@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100])
@pytest.mark.filterwarnings("error")
def test_formats(tmp_path, speech, suffix, subtype, close, rate_hz):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, speech, rate_hz, subtype=subtype)
    audio = read_audio(path)
    assert audio.sample_rate_hz == rate_hz
    assert audio.samples.dtype == np.float32
    assert abs(len(audio.samples) - len(speech)) <= (0 if suffix != "mp3" else 2304)
    if close < 1:
        assert np.abs(audio.samples - speech).max() <= close
    assert np.abs(np.diff(audio.samples)).max() > 0.01


def test_blocks_join_to_the_whole(tmp_path, speech):
    soundfile.write(tmp_path / "a.flac", speech, 16_000)
    with AudioFile(tmp_path / "a.flac") as audio:
        blocks = list(audio.blocks(777))
    assert {len(block) for block in blocks[:-1]} == {777}
    assert np.array_equal(np.concatenate(blocks), read_audio(tmp_path / "a.flac").samples)


def test_stereo_is_its_mean_and_antiphase_warns(tmp_path, speech):
    soundfile.write(tmp_path / "a.wav", np.stack([speech, 0 * speech], 1), 16_000, subtype="FLOAT")
    assert np.allclose(read_audio(tmp_path / "a.wav").samples, speech / 2)
    soundfile.write(tmp_path / "b.wav", np.stack([speech, -speech], 1), 16_000, subtype="FLOAT")
    with pytest.warns(RuntimeWarning, match="b.wav: the channels cancel each other"):
        assert not read_audio(tmp_path / "b.wav").samples.any()


@pytest.mark.parametrize("samples", [0, 1, 399, 400])
def test_short_files_are_no_error(tmp_path, samples):
    soundfile.write(tmp_path / "a.wav", np.zeros(samples), 16_000)
    assert len(read_audio(tmp_path / "a.wav").samples) == samples


def bad(path, text, hint=None):
    with pytest.raises(RdError) as error:
        read_audio(path)
    assert str(path) in error.value.message
    assert text in error.value.message
    assert hint is None or hint in error.value.hint


def test_files_that_are_not_there(tmp_path):
    bad(tmp_path / "none.wav", "no such file", "check the path")
    bad(tmp_path, "is a folder")
    (tmp_path / "empty.wav").touch()
    bad(tmp_path / "empty.wav", "is empty (0 bytes)")


def test_files_that_are_not_audio(tmp_path):
    (tmp_path / "text.wav").write_text("RIFF is what a wave file starts with.\n" * 100)
    bad(tmp_path / "text.wav", "is not audio, it holds text")
    (tmp_path / "noise.wav").write_bytes(np.random.default_rng(0).bytes(5000))
    bad(tmp_path / "noise.wav", "cannot be read as audio", "ffmpeg -i noise.wav -ar 16000 -ac 1")
    (tmp_path / "a.raw").write_bytes(bytes(5000))
    bad(tmp_path / "a.raw", "cannot be read as audio")
    (tmp_path / "video.m4a").write_bytes(b"\0\0\0\x1cftypM4A \0\0\0\0" + bytes(3000))
    bad(tmp_path / "video.m4a", "cannot be read as audio", "AAC and WMA are not read")


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff", "au", "w64", "caf", "rf64"])
@pytest.mark.parametrize("part", [0.3, 0.98])
def test_truncated_files_say_so(tmp_path, toys, suffix, part):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, toys.speech(80_000), 16_000, format="RF64" if suffix == "rf64" else None)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(RdError, match=r"truncated|damaged after sample \d+|malformed") as error:
        read_audio(path)
    assert str(path) in error.value.message


@pytest.mark.parametrize("suffix", ["mp3", "ogg"])
def test_formats_of_unsure_length_warn(tmp_path, toys, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, toys.speech(160_000), 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.warns(RuntimeWarning, match="probably truncated"):
        samples = read_audio(path).samples
    assert 0 < len(samples) < 100_000


def test_an_ogg_file_without_sound_is_truncated(tmp_path, toys):
    path = tmp_path / "a.ogg"
    soundfile.write(path, toys.speech(160_000), 16_000)
    path.write_bytes(path.read_bytes()[:4000])
    bad(path, "truncated before its first page of sound")


def test_a_wave_file_from_a_pipe_is_whole(tmp_path, speech):
    """Writers that cannot seek leave the sizes at 0xFFFFFFFF: unknown, not wrong."""
    path = tmp_path / "a.wav"
    with wave_module.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((speech * 32767).astype("<i2").tobytes())
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert len(read_audio(path).samples) == len(speech)


def test_a_corrupt_flac_names_the_place(tmp_path, toys):
    path = tmp_path / "a.flac"
    soundfile.write(path, toys.speech(160_000), 16_000)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    with pytest.raises(RdError, match=r"damaged after sample (\d+) \((\d+\.\d+) s of 10\.00 s\)") as error:
        read_audio(path)
    place = int(error.value.message.split("after sample ")[1].split()[0])
    assert 40_000 < place < 100_000
    assert "ffmpeg" in error.value.hint


def test_bad_samples_name_file_and_place(tmp_path, speech):
    speech[20_001] = np.nan
    soundfile.write(tmp_path / "a.wav", speech, 16_000, subtype="FLOAT")
    bad(tmp_path / "a.wav", "sample 20001 is nan", "nan_to_num")


def test_every_oddity(speech_dir):
    """Real files of every kind: ok ones are read whole, the others refused with a reason."""
    rows = list(csv.DictReader((speech_dir / "oddities" / "manifest.csv").open()))
    assert len(rows) > 50
    for row in rows:
        path = speech_dir / row["file"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                audio, error = read_audio(path), None
            except RdError as caught:
                audio, error = None, caught
        if "NaN" in row["text_or_label"]:
            assert error is not None
            assert "sample 100 is nan" in error.message
        elif row["split"] == "ok":
            assert error is None, error
            assert abs(audio.seconds - float(row["seconds"])) < 0.02 + 0.002 * audio.seconds, path
            assert np.isfinite(audio.samples).all()
        else:
            assert error is not None, path
            assert path.name in error.message
            if row["split"] == "ffmpeg_only":
                assert "ffmpeg" in error.hint
