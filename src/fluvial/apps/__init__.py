"""Ready applications on the general library."""
