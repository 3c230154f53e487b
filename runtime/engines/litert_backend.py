"""A LiteRT model as a backend. An interpreter has one working memory: calls are made one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.runtime.bundle_format.bundle import Bundle
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.engines.backend import Port
from reuse_distill.runtime.engines.denormals import flushed
from reuse_distill.runtime.errors import RdError, install_hint, nearest
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ

PROVIDERS = ("auto", "cpu", "xnnpack")
LENGTH = "length"  # input of whole utterances: how many samples of the wave exist
WAVE = "wave"
SIGNATURE = "signature"  # of manifest.device: what the calls go by
DEFAULT_SIGNATURE = "serving_default"
OLDEST = (2, 0)
IDENTIFIER = b"TFL3"


class LitertBackend:
    """A loaded model. Raises RdError where LiteRT is missing or too old, or the file is damaged or has other ports."""

    provider = "cpu"
    placement: Mapping[str, int] | None = None  # LiteRT does not say which operations XNNPACK took

    def __init__(self, bundle: Bundle, *, threads: int) -> None:
        module = load_litert()
        self.artifact = bundle.artifact
        self.versions: Mapping[str, str] = {"ai-edge-litert": litert_version(), "numpy": np.__version__}
        self._lock = threading.Lock()
        self._interpreter = open_model(module, self.artifact, threads)
        signature = str((bundle.manifest.device or {}).get(SIGNATURE, DEFAULT_SIGNATURE))
        runner = _runner(self._interpreter, signature, self.artifact)
        self._inputs, self._outputs = runner.get_input_details(), runner.get_output_details()
        self.inputs, self.outputs = _ports(self._inputs), _ports(self._outputs)
        self._longest = _longest(bundle.manifest, self.inputs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See ``Backend.run``. Of a whole utterance ``wave`` alone is needed: it is filled up with zeros."""
        if self._longest is not None and LENGTH not in inputs:
            inputs = self._filled(inputs[WAVE])
        with self._lock:
            self._invoke(inputs)
            return {name: self._interpreter.get_tensor(row["index"]) for name, row in self._outputs.items()}

    def bind(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """See ``Backend.bind``. Inputs and outputs are copied: the interpreter's memory is its own."""
        given, results = dict(inputs), dict(outputs)

        def run() -> None:
            with self._lock:
                self._invoke(given)
                for name, target in results.items():
                    # A view that is dropped at once: while one lives the interpreter refuses to run.
                    np.copyto(target, self._interpreter.tensor(self._outputs[name]["index"])())

        return run

    def _invoke(self, inputs: Mapping[str, np.ndarray]) -> None:
        for name, row in self._inputs.items():
            array = inputs[name]
            if tuple(array.shape) != tuple(row["shape"]):
                raise RdError(
                    f"{self.artifact.name}: {name} has shape {list(array.shape)}, the file has {row['shape'].tolist()}"
                )
            np.copyto(self._interpreter.tensor(row["index"])(), array)
        try:
            flushed(self._interpreter.invoke)
        except (RuntimeError, ValueError) as error:
            raise RdError(
                f"{self.artifact}: LiteRT failed while running it: {error}", hint="out of memory? stream in chunks"
            ) from error

    def _filled(self, wave: np.ndarray) -> dict[str, np.ndarray]:
        """``wave`` (1, T) as the file takes it: zeros after it, and how many samples it has."""
        samples, longest = wave.shape[-1], self._longest or 0
        if samples > longest:
            raise RdError(
                f"{samples / SAMPLE_RATE_HZ:.1f} s at once: {self.artifact.name} was exported for up to "
                f"{longest / SAMPLE_RATE_HZ:.1f} s",
                hint="use a stream (rd-stream), or export with a longer --max-seconds",
            )
        whole = np.zeros((1, longest), np.float32)
        whole[0, :samples] = wave[0]
        return {WAVE: whole, LENGTH: np.full((1, 1), samples, np.float32)}


def load_litert() -> Any:
    """The module with ``Interpreter``; raises RdError where it is missing or too old."""
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        raise RdError(f"LiteRT cannot be imported: {error}", hint=install_hint("litert")) from None
    version = litert_version()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        least = ".".join(map(str, OLDEST))
        raise RdError(
            f"ai-edge-litert {version} is installed, {least} or later is needed",
            hint=f"with --upgrade: {install_hint('litert')}",
        )
    return interpreter


def litert_version() -> str:
    """The installed version of ``ai-edge-litert``."""
    try:
        return metadata.version("ai-edge-litert")
    except metadata.PackageNotFoundError:
        return "unknown"


def check_litert_provider(provider: str, path: object) -> None:
    """Raise RdError for a provider that is not LiteRT's: its Python package runs on the CPU, by XNNPACK."""
    if provider not in PROVIDERS:
        raise RdError(
            f"{path}: a LiteRT model runs on provider cpu here, {provider!r} was requested",
            hint=nearest(provider, list(PROVIDERS)),
        )


def open_model(module: Any, file: Path, threads: int, **options: Any) -> Any:
    """An interpreter with its memory; raises RdError for what is no model, with LiteRT's own words."""
    try:
        with file.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise RdError(f"{file}: cannot be read: {error.strerror}", hint="export the bundle again") from None
    if head[4:] != IDENTIFIER:
        raise RdError(f"{file}: not a LiteRT model: it does not begin as a .tflite does", hint="export it again")
    try:
        interpreter = module.Interpreter(model_path=str(file), num_threads=threads, **options)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise RdError(
            f"{file}: LiteRT {litert_version()} cannot load it: {str(error).strip().splitlines()[0]}",
            hint="export the bundle again, or install the version that its manifest names under tools",
        ) from error
    return interpreter


def _runner(interpreter: Any, signature: str, file: Path) -> Any:
    known = list(interpreter.get_signature_list())
    if signature not in known:
        raise RdError(
            f"{file}: no signature {signature!r}, it has {', '.join(known) or 'none'}", hint="export the bundle again"
        )
    if len(known) > 1:
        raise RdError(f"{file}: {len(known)} signatures, a bundle has one", hint="export the bundle again")
    return interpreter.get_signature_runner(signature)


def _ports(details: Mapping[str, Any]) -> dict[str, Port]:
    return {
        name: Port(name, np.dtype(row["dtype"]).name, tuple(int(size) for size in row["shape"]))
        for name, row in details.items()
    }


def _longest(manifest: Manifest, inputs: Mapping[str, Port]) -> int | None:
    """Samples of the longest utterance, where the file takes whole ones."""
    if manifest.kind != "offline" or LENGTH not in inputs or WAVE not in inputs:
        return None
    size = inputs[WAVE].shape[-1]
    return size if isinstance(size, int) else None
