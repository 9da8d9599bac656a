"""Jets and muons at a collider: p(reconstructed object | generator-level object)."""
