"""OpenVINO as an engine: an IR (``model.xml`` and ``model.bin``) on Intel's and other processors."""
