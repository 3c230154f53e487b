"""Latency checks on target hardware: profiles, measurement, budgets, baselines and reports (``rd-latency``).

Imports runtime, NumPy and the standard library only: this package runs on the device itself.
"""
