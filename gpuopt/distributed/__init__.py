"""What sends arrays between processes. Knows no optimizer."""
