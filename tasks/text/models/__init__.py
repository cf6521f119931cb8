"""Models of texts: a decoder that writes, and those that tell the class of a text."""

from tasks.text.models.classifiers import BagOfWords, BiGRU, CharCNN, Encoder
from tasks.text.models.decoder import Decoder

__all__ = ["BagOfWords", "BiGRU", "CharCNN", "Decoder", "Encoder"]
