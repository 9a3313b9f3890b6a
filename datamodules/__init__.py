"""LightningDataModules, one per kind of data."""

from datamodules.image_patterns import ImagePatterns

__all__ = ["ImagePatterns"]
