"""Figures and the report page: draws results, computes nothing."""
