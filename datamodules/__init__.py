"""LightningDataModules, one per kind of data."""

from datamodules.citation_graph import CitationGraph
from datamodules.image_patterns import ImagePatterns
from datamodules.mnist_splits import MNISTSplits

__all__ = ["CitationGraph", "ImagePatterns", "MNISTSplits"]
