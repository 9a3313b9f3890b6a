"""Graph networks on growing graphs, as a whole and in parts."""
