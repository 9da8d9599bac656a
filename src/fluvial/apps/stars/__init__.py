"""Stars: labels (effective temperature, gravity, metallicity) from spectra, with errors that can be trusted."""
