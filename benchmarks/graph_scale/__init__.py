"""Graph networks as graphs grow: the whole graph at once, against its parts."""
