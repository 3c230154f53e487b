"""OpenVINO: an IR for Intel's processors and whatever else its plugins run on."""
