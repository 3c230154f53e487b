"""ONNX Runtime: the backend, states that stay in a provider's memory, and what an ONNX file may open."""
