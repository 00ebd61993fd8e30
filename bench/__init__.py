"""Measurements: one file a question; and the demonstration."""
