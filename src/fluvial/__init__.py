"""fluvial: conditional densities p(target | context) with normalizing flows."""

__version__ = "0.1.0"
