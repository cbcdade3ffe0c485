"""What one piece costs, by itself."""
