"""``coatcheck doctor``: what is installed here, and what will work."""
