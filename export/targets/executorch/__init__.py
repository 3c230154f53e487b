"""ExecuTorch: what the target ``executorch`` is made of."""
