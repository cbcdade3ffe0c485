"""What several of the rooms use."""
