"""What is done with a density: regions with guarantees, and population (hierarchical) inference."""
