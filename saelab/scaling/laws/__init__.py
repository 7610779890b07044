"""Laws, one a file; found by their class names."""
