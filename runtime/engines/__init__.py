"""Inference engines behind the runtime's own interface, imported when a bundle needs one."""
