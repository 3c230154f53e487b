"""Core ML: what the target ``coreml`` is made of, from the torch module to the saved package and back to numbers."""
