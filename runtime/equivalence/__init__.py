"""Streamed features against whole utterances: the self-test, the gate's checks and the certificate."""
