"""This checkout against another one, such as one of an earlier commit."""
