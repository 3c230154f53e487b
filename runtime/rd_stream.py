"""rd-stream: its options and its entry point. What it does is in ``stream_command``, imported when it is needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from reuse_distill.runtime.cli.command_line import CommandParser
from reuse_distill.runtime.engines.providers import AUTO, PROVIDERS
from reuse_distill.runtime.errors import cli
from reuse_distill.runtime.geometry import WINDOW_CHUNK_FRAMES, WINDOW_LEFT_FRAMES, WINDOW_RIGHT_FRAMES

PCM_FORMATS = ("s16le", "f32le")

ABOUT = "Extract features from audio files, raw PCM on standard input or the microphone, as a stream."
EXAMPLES = """examples:
  rd-stream speech.flac > features.jsonl
  rd-stream speech.flac bundle/ --output features.npy
  rd-stream talks/ more.wav bundle/ --output features/
  rd-stream speech.flac offline-bundle/ --whole --output features.npy
  ffmpeg -i talk.mp4 -f s16le -ar 48000 -ac 1 - | rd-stream - bundle/ --rate 48000 > features.jsonl
  rd-stream --mic bundle/ --output features.npy --stats
  rd-stream --mic bundle/ --head keywords
  rd-stream talk.flac bundle/ --head letters --align "what is said"
  rd-stream talk.flac bundle/ --fps 25 --output features.npy
  rd-stream --certify bundle/
  rd-stream --placement bundle/ --provider cuda

exit status: 0 done (certified), 1 not certified, 2 an error that the message explains
"""


def parser() -> CommandParser:
    """The options of rd-stream and their help."""
    program = CommandParser(prog="rd-stream", description=ABOUT, epilog=EXAMPLES)
    add = program.add_argument
    add(
        "paths",
        nargs="*",
        metavar="INPUT … BUNDLE",
        help="audio files, folders of audio, or - for raw PCM on standard input; then the bundle folder (default: a "
        "small bundle that comes with the package)",
    )
    add("--bundle", metavar="DIR", help="the bundle, if it is not the last path")
    add(
        "--output",
        default="-",
        metavar="OUT",
        help="NAME.npy or NAME.jsonl; npy, jsonl or - for standard output (default: jsonl there); FOLDER/ for one .npy "
        "per input; with --certify: where the certificate goes",
    )
    add(
        "--whole",
        action="store_true",
        help="compute whole utterances at once: exact for offline bundles, where a sliding window is not",
    )
    add("--head", metavar="NAME", help="print the results of this head as they come: words, units, labels")
    add("--align", metavar="TEXT", help="with a ctc --head: print where each word of TEXT is spoken")
    add(
        "--fps",
        metavar="N",
        help="features per second, such as 25, 30 or 29.97, by exact averaging or interpolation (50)",
    )
    add("--stats", action="store_true", help="print real-time factor, time per step and latency on stderr")
    add("--provider", default=AUTO, metavar="NAME", help=f"{AUTO} (default), {', '.join(PROVIDERS)}")
    add(
        "--provider-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of ONNX Runtime's provider, in place of the default; repeatable",
    )
    add("--threads", type=int, default=1, metavar="N", help="threads of the engine (default 1)")
    add("--placement", action="store_true", help="report which provider runs each node of BUNDLE, as JSON lines")
    add("--certify", action="store_true", help="check that BUNDLE streams exactly what its source computes")
    window = program.add_argument_group("sliding window (offline bundles), in frames of 20 ms")
    defaults = {"chunk": WINDOW_CHUNK_FRAMES, "left": WINDOW_LEFT_FRAMES, "right": WINDOW_RIGHT_FRAMES}
    what = {"chunk": "new frames per window", "left": "frames of past context", "right": "frames of future context"}
    for name, default in defaults.items():
        window.add_argument(f"--{name}", type=int, metavar="FRAMES", help=f"{what[name]} (default {default})")
    raw = program.add_argument_group("raw PCM and microphone")
    raw.add_argument("--rate", type=int, metavar="HZ", help="sample rate of stdin (default 16000) or of the microphone")
    raw.add_argument(
        "--format", metavar="FORMAT", help=f"sample format of stdin: {' or '.join(PCM_FORMATS)} (default s16le)"
    )
    raw.add_argument("--channels", type=int, default=1, metavar="N", help="channels of stdin (default 1)")
    raw.add_argument(
        "--mic", action="store_true", help="record from the microphone; Ctrl-C stops and writes the last frames"
    )
    raw.add_argument("--device", metavar="NAME", help="input device, by number or name")
    raw.add_argument("--seconds", type=float, metavar="S", help="stop recording after so many seconds")
    raw.add_argument("--list-devices", action="store_true", help="show input devices and exit")
    return program


@cli
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit statuses are those of the help."""
    args = parser().parse_args(argv)
    from reuse_distill.runtime.cli.stream_command import stream_command

    return stream_command(args)


if __name__ == "__main__":
    sys.exit(main(None))
