"""Is it as we say? Each ends with exit status 1 if it is not."""
