"""What is done with a density: population (hierarchical) inference."""
