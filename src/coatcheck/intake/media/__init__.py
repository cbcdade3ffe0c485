"""From encoded bytes to patches. Imported in worker processes only."""
