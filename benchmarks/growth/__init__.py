"""How the cost of a solve and its gradient grows."""
