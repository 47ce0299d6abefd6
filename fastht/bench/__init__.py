"""Measuring: what ``fastht bench`` and the suites under ``benchmarks/`` share."""
