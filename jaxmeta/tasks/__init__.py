"""Task distributions: pure functions of a key, and the data behind them."""

from jaxmeta.tasks._attributes import load_attributes
from jaxmeta.tasks._augment import random_affine
from jaxmeta.tasks._cifar_fs import (
    load_cifar_fs,
    load_fc100,
)
from jaxmeta.tasks._classification import classification
from jaxmeta.tasks._datasets import (
    IMAGE_SUFFIXES,
    ImageClasses,
    Splits,
    image_classes,
    load_folder,
    load_image,
)
from jaxmeta.tasks._drawing_attributes import (
    image_attributes,
    omniglot_attributes,
)
from jaxmeta.tasks._few_shot import few_shot
from jaxmeta.tasks._glyphs import glyphs
from jaxmeta.tasks._labelled import (
    LabelledImages,
    LabelledSplits,
    load_cifar10,
    load_mnist,
)
from jaxmeta.tasks._lake import (
    load_lake_runs,
    make_lake_runs,
)
from jaxmeta.tasks._mini_imagenet import load_mini_imagenet
from jaxmeta.tasks._omniglot import load_omniglot
from jaxmeta.tasks._quadratics import quadratics
from jaxmeta.tasks._scaling import random_scaling
from jaxmeta.tasks._sinusoid import sinusoid
from jaxmeta.tasks._stream import stream_few_shot
from jaxmeta.tasks._synthetic import (
    language_model,
    softmax_regression,
)
from jaxmeta.tasks._zero_shot import (
    AttributeData,
    attribute_world,
    zero_shot,
    zero_shot_test,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "AttributeData",
    "ImageClasses",
    "LabelledImages",
    "LabelledSplits",
    "Splits",
    "attribute_world",
    "classification",
    "few_shot",
    "glyphs",
    "image_attributes",
    "image_classes",
    "language_model",
    "load_attributes",
    "load_cifar10",
    "load_cifar_fs",
    "load_fc100",
    "load_folder",
    "load_image",
    "load_lake_runs",
    "load_mini_imagenet",
    "load_mnist",
    "load_omniglot",
    "make_lake_runs",
    "omniglot_attributes",
    "quadratics",
    "random_affine",
    "random_scaling",
    "sinusoid",
    "softmax_regression",
    "stream_few_shot",
    "zero_shot",
    "zero_shot_test",
]
