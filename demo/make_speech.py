"""Make demo/speech again: short sentences spoken by eSpeak NG, eight voices, 16 kHz mono FLAC, and their manifest.

    python demo/make_speech.py            # needs the program espeak-ng (made with 1.51)

The files are shipped, so nobody has to run this; it documents how they came to be.
"""

from __future__ import annotations

import csv
import io
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE_HZ = 16_000
FOLDER = Path(__file__).parent / "speech"
COLUMNS = ("file", "speaker", "text_or_label", "split")


@dataclass(frozen=True)
class Voice:
    """One synthetic speaker. ``split``: voices of ``test`` are never trained on."""

    speaker: str
    voice: str
    words_per_minute: int
    pitch: int
    split: str
    sentences: tuple[str, ...]


VOICES = (
    Voice("ada", "en-gb+f2", 165, 55, "train", (
        "The kettle sings before the water boils.",
        "Seven small boats came home at night.",
        "She reads the paper on the early train.",
        "Turn left after the old stone bridge.",
    )),
    Voice("ben", "en-us+m3", 175, 40, "train", (
        "Please call me back when you get there.",
        "A thin layer of ice covered the pond.",
        "He fixed the clock with a bent pin.",
        "What time does the bakery open?",
    )),
    Voice("cora", "en-gb-scotland+f4", 160, 62, "train", (
        "Lamps are lit along the harbour wall.",
        "Nobody knew why the door was open.",
        "My brother grows beans and yellow squash.",
        "Switch the radio on, then turn it down.",
    )),
    Voice("dev", "en-gb-x-rp+m7", 185, 30, "train", (
        "The judge asked for a second opinion.",
        "Green leaves turn brown in a dry autumn.",
        "We shipped four thousand boxes in June.",
        "It rained so hard that we could not see.",
    )),
    Voice("eli", "en-us+m1", 155, 48, "train", (
        "Measure twice and cut the board once.",
        "A quick fox jumped across the ditch.",
        "Both engines were checked before the flight.",
        "Could you spell your last name for me?",
    )),
    Voice("fay", "en-029+f3", 170, 70, "train", (
        "Bring fresh bread and a jar of honey.",
        "The museum is closed on Mondays.",
        "They whisper so the child can sleep.",
        "Thunder rolled over the empty valley.",
    )),
    Voice("gus", "en-gb-x-gbclan+m4", 168, 36, "test", (
        "Cold wind pushed the gate wide open.",
        "Set an alarm for half past six.",
        "The choir sang without any music.",
        "Who left these muddy boots in the hall?",
    )),
    Voice("hana", "en-us-nyc+f5", 178, 58, "test", (
        "Play the next song a little louder.",
        "Our garden has a path of white stones.",
        "The pilot gave a short and clear reply.",
        "Fold the letter and seal the envelope.",
    )),
)  # fmt: skip


def speak(voice: Voice, sentence: str) -> np.ndarray:
    """The sentence as (T,) float32 at 16 kHz, peak 0.25, with 120 ms of near-silence at both ends."""
    command = [
        "espeak-ng",
        "-v",
        voice.voice,
        "-s",
        str(voice.words_per_minute),
        "-p",
        str(voice.pitch),
        "--stdout",
        sentence,
    ]
    wave = subprocess.run(command, check=True, capture_output=True).stdout
    samples, rate_hz = soundfile.read(io.BytesIO(wave), dtype="float32")
    samples = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ)
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    edge = np.zeros(round(0.12 * SAMPLE_RATE_HZ), np.float32)
    trimmed = np.concatenate([edge, samples[loud[0] : loud[-1] + 1], edge])
    return (0.25 * trimmed / np.abs(trimmed).max()).astype(np.float32)


def with_room(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A little noise 54 dB below the peak: recordings are never digitally silent."""
    return samples + (0.25 * 10 ** (-54 / 20) * rng.standard_normal(len(samples))).astype(np.float32)


def main() -> None:
    """Write every file and the manifest."""
    FOLDER.mkdir(exist_ok=True)
    rng = np.random.default_rng(16)
    rows, seconds = [], 0.0
    for voice in VOICES:
        for number, sentence in enumerate(voice.sentences, start=1):
            samples = with_room(speak(voice, sentence), rng)
            name = f"{voice.speaker}-{number}.flac"
            soundfile.write(FOLDER / name, samples, SAMPLE_RATE_HZ, subtype="PCM_16")
            rows.append((name, voice.speaker, sentence, voice.split))
            seconds += len(samples) / SAMPLE_RATE_HZ
    with (FOLDER / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    size_bytes = sum(path.stat().st_size for path in FOLDER.glob("*.flac"))
    print(f"{len(rows)} files, {seconds:.1f} s, {size_bytes / 1e6:.2f} MB in {FOLDER}")


if __name__ == "__main__":
    main()
