"""TensorRT for RTX: engines for GeForce and RTX GPUs, built on a machine without one."""
