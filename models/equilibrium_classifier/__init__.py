"""Deep equilibrium classifiers of images."""

from models.equilibrium_classifier.cell import ImageCell
from models.equilibrium_classifier.classifier import EquilibriumClassifier
from models.equilibrium_classifier.convolutional import ConvolutionalImageCell
from models.equilibrium_classifier.multiscale import MultiscaleImageCell

__all__ = ["ConvolutionalImageCell", "EquilibriumClassifier", "ImageCell", "MultiscaleImageCell"]
