"""The graph proof: what a finished artifact computes, read off the artifact itself."""

from export.proof.graph import ProofGraph, ProofNode
from export.proof.onnx_graph import read_onnx
from export.proof.prove import prove

__all__ = ["ProofGraph", "ProofNode", "prove", "read_onnx"]
