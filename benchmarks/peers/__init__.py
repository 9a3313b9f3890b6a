"""This project compared with its alternatives."""
