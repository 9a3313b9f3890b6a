"""What reproduces a table or a figure: a file each, all run by ``python -m experiments NAME``."""
