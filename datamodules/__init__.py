"""The data modules of the example tasks."""

from datamodules.citation_graph import CitationGraph
from datamodules.image_patterns import ImagePatterns
from datamodules.labelled_images import LabelledImages
from datamodules.mazes import Mazes
from datamodules.mnist_splits import MNISTSplits
from datamodules.prefix_sums import PrefixSums
from datamodules.sudoku import Sudoku
from datamodules.sudoku_file import SudokuFile

__all__ = [
    "CitationGraph",
    "ImagePatterns",
    "LabelledImages",
    "MNISTSplits",
    "Mazes",
    "PrefixSums",
    "Sudoku",
    "SudokuFile",
]
