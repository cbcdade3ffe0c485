"""``coatcheck bench serve`` itself: beside other clients, and its own limit."""
