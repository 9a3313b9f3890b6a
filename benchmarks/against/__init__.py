"""This checkout compared with another one, such as an earlier commit."""
