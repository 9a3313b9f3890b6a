"""The growth of the cost of a solve and its gradient."""
