"""The graph proof: what a finished artifact computes, read off the artifact itself."""

from reuse_distill.export.proof.graph import ProofGraph, ProofNode
from reuse_distill.export.proof.onnx_graph import read_onnx
from reuse_distill.export.proof.prove import prove

__all__ = ["ProofGraph", "ProofNode", "prove", "read_onnx"]
