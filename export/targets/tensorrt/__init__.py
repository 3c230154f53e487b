"""Parts of the TensorRT target: graphs prepared for explicit precision, and the rules that a version sets them."""
