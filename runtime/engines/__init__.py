"""Inference engines behind the runtime's own interface, imported when a bundle needs one.

TensorRT, which also builds its engines on the device, is in ``runtime.tensorrt``.
"""
