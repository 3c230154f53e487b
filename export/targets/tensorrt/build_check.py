"""``rd-export check --build``: what NVIDIA's own parser and builder say of the graphs of a bundle, without a GPU."""

from __future__ import annotations

from pathlib import Path

from reuse_distill.export.targets.tensorrt_rtx.rtx_build import CHECKED, build, capabilities_of
from reuse_distill.runtime.bundle import MANIFEST, read_bundle
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ
from reuse_distill.runtime.tensorrt.build_request import REQUEST, Profile, read_request

BEST_SECONDS, LONGEST_SECONDS = 10, 30  # of an ONNX file that comes without a request
TYPED = "typed.onnx"


def build_check(path: Path, gpu: str | None, precision: str | None) -> int:
    """Build for every compute capability by itself and print one line each; 1 where one does not build."""
    file, precision, profiles = _graph(path, precision)
    failed = 0
    for capability in CHECKED if gpu is None else capabilities_of(gpu):
        head = f"TensorRT for RTX, compute capability {capability:<4} {precision:<9} {file.name:<12}"
        try:
            built = build(file, profiles, (capability,), precision=precision)
        except RdError as error:
            if error.hint is not None:  # the package is missing: nothing was said of the graph
                raise
            failed += 1
            print(f"{head} no: {error.message}")
            continue
        size = f"{len(built.engine) / 1e6:.1f} MB"
        seconds = f"parsed in {built.parse_seconds:.1f} s, built in {built.build_seconds:.1f} s"
        print(f"{head} yes, {built.layers} layers, {size}, {seconds}, {len(built.warnings)} warnings")
        for warning in built.warnings[:3]:
            print(f"    {warning}")
    return 1 if failed else 0


def _graph(path: Path, precision: str | None) -> tuple[Path, str, tuple[Profile, ...]]:
    """(the strongly typed file, its precision, the ranges of its free axes). Raises RdError where there is none."""
    if not (path / MANIFEST).is_file():
        if path.suffix != ".onnx" or not path.is_file():
            raise RdError(f"{path}: neither an ONNX file nor a bundle with one")
        return path, precision or "fp32", _profiles(path)
    manifest = read_bundle(path).manifest
    if precision not in (None, manifest.precision):
        raise RdError(f"{path} is {manifest.precision}, not {precision}", hint="leave --precision out")
    if (path / REQUEST).is_file():
        request = read_request(path)
        variant = next((one for one in request.variants if one.typing == "strong"), None)
        if variant is None:
            raise RdError(f"{path}: has no strongly typed graph", hint="export it without --jetpack")
        return path / variant.onnx, manifest.precision, request.profiles
    file = path / (TYPED if (path / TYPED).is_file() else manifest.artifact)
    if file.suffix != ".onnx":
        raise RdError(f"{path}: {manifest.artifact} is no ONNX file", hint="export with --target tensorrt")
    return file, manifest.precision, _profiles(file)


def _profiles(file: Path) -> tuple[Profile, ...]:
    """For samples of any length; other free axes are left to the builder to refuse."""
    import onnx

    inputs = {value.name: value.type.tensor_type.shape.dim for value in onnx.load(str(file)).graph.input}
    if "wave" not in inputs or inputs["wave"][1].dim_value:
        return ()
    best, most = BEST_SECONDS * SAMPLE_RATE_HZ, LONGEST_SECONDS * SAMPLE_RATE_HZ
    return (Profile("wave", (1, RECEPTIVE_FIELD_SAMPLES), (1, best), (1, most)),)
