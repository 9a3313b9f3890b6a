"""This project against what a user would pick in its place."""
