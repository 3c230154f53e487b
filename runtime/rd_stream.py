"""rd-stream: its options and its entry point. What it does is in ``stream_command``, imported when it is needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from reuse_distill.runtime.command_line import CommandParser
from reuse_distill.runtime.errors import cli
from reuse_distill.runtime.geometry import WINDOW_CHUNK_FRAMES, WINDOW_LEFT_FRAMES, WINDOW_RIGHT_FRAMES
from reuse_distill.runtime.providers import AUTO, PROVIDERS

PCM_FORMATS = ("s16le", "f32le")

ABOUT = "Features of files, of raw PCM on standard input, or of the microphone, as they come."
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
        "small bundle that is shipped)",
    )
    add("--bundle", metavar="DIR", help="the bundle, where it is not the last of the paths")
    add(
        "--output",
        default="-",
        metavar="OUT",
        help="NAME.npy, NAME.jsonl, or npy, jsonl, - on stdout (default -: jsonl); FOLDER/ for one .npy of each input; "
        "of --certify: the certificate",
    )
    add("--whole", action="store_true", help="features of whole utterances at once: exact where a window is not")
    add("--head", metavar="NAME", help="results of this head of the bundle as they come: words, units, labels")
    add("--align", metavar="TEXT", help="with a ctc --head: where the words of this text are spoken")
    add("--fps", metavar="N", help="features per second: 25, 30, 29.97 … by exact averaging or interpolation (50)")
    add("--stats", action="store_true", help="real-time factor, time per step and latency on stderr")
    add("--provider", default=AUTO, metavar="NAME", help=f"{AUTO} (default), {', '.join(PROVIDERS)}")
    add(
        "--provider-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of ONNX Runtime's provider, over our defaults; may be given more than once",
    )
    add("--threads", type=int, default=1, metavar="N", help="threads of the engine (default 1)")
    add("--placement", action="store_true", help="report which provider runs each node of BUNDLE, as JSON lines")
    add("--certify", action="store_true", help="check that BUNDLE streams exactly what its source computes")
    window = program.add_argument_group("sliding window (offline bundles), in frames of 20 ms")
    defaults = {"chunk": WINDOW_CHUNK_FRAMES, "left": WINDOW_LEFT_FRAMES, "right": WINDOW_RIGHT_FRAMES}
    for name, default in defaults.items():
        window.add_argument(f"--{name}", type=int, metavar="FRAMES", help=f"default {default}")
    raw = program.add_argument_group("raw PCM and microphone")
    raw.add_argument("--rate", type=int, metavar="HZ", help="of stdin (default 16000) or the microphone")
    raw.add_argument("--format", metavar="FORMAT", help=f"of stdin: {' or '.join(PCM_FORMATS)} (default s16le)")
    raw.add_argument("--channels", type=int, default=1, metavar="N", help="of stdin (default 1)")
    raw.add_argument("--mic", action="store_true", help="record; Ctrl-C ends it and writes the last frames")
    raw.add_argument("--device", metavar="NAME", help="input device, by number or name")
    raw.add_argument("--seconds", type=float, metavar="S", help="record for this long")
    raw.add_argument("--list-devices", action="store_true", help="show input devices and exit")
    return program


@cli
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit statuses are those of the help."""
    args = parser().parse_args(argv)
    from reuse_distill.runtime.stream_command import stream_command

    return stream_command(args)


if __name__ == "__main__":
    sys.exit(main(None))
