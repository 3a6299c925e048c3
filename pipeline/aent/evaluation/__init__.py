"""Held-out questions, scored on the engines."""
