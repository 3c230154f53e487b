"""TensorRT on the device: build the engine that an export has prepared, check it, run it.

Nothing here needs torch or onnx. The ``tensorrt`` module and CUDA's runtime library are looked for when used.
"""
