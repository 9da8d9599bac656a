"""Checks: arrays in, results with uncertainty and verdict out."""
