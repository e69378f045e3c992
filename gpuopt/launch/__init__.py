"""What one launch covers: the table of tensors and tiles, the rows of scalars, the stream."""
