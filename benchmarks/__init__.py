"""What produced each published number."""
