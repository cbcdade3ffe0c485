"""coatcheck: the input path of tensor-parallel multimodal serving, done right."""

from importlib.metadata import version

__version__ = version("coatcheck")
