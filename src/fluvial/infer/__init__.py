"""What is done with a density: regions with guarantees, and what other inference needs."""
