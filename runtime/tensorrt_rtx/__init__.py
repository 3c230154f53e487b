"""TensorRT for RTX: engines that are built without a GPU and finish their kernels on the user's."""
