"""Export of a student: captured, converted, quantised, proven, compared."""

import os

# The wheels of ONNX Runtime report to their maker, and keep an identifier in the user's cache and a file in the
# temporary folder for it, unless this is set before they are imported. `0` in the environment asks for it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
