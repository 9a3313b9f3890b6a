"""Tests with random invalid and hostile input: a short run in each test run, a long one by ``make fuzz``."""
