"""Tables in: columns, readers, splits, batches, and column transforms."""
