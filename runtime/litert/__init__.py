"""LiteRT as an engine: ``.tflite`` files by ``ai-edge-litert``, on XNNPACK."""
