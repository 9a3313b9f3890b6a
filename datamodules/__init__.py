"""LightningDataModules, one per kind of data."""

from datamodules.citation_graph import CitationGraph
from datamodules.image_patterns import ImagePatterns

__all__ = ["CitationGraph", "ImagePatterns"]
