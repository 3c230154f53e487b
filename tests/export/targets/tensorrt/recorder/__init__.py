"""A TensorRT that records and a CUDA that lives in main memory, so that everything but NVIDIA's own code is run.

The recorder has the names that the Python bindings of a release have (surfaces.json) and raises on any other, for
reading and for setting. What it builds is the ONNX file itself, run by ONNX Runtime at the addresses that it is given,
and its inspector answers in the documented layout of the release. It proves nothing of what a real builder does.
"""

from .cudart import FakeCudart
from .module import RecordedTensorrt
from .surface import ERAS, SURFACES, Sabotage

__all__ = ["ERAS", "SURFACES", "FakeCudart", "RecordedTensorrt", "Sabotage"]
