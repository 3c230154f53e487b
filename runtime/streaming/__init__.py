"""Streams: samples in pieces, states between steps, frames out; many streams in one batch; streams as bytes."""
