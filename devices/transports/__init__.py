"""Ways to a device: each runs the worker there and brings its measurement back, leaving nothing behind."""
