"""Images and labels: sources, splits, transforms, batches."""
