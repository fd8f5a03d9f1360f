"""Task distributions: pure functions of a key, and the data behind them."""

from jaxmeta.tasks._attributes import load_attributes
from jaxmeta.tasks._augment import random_affine
from jaxmeta.tasks._cifar_fs import (
    load_cifar_fs,
    load_fc100,
)
from jaxmeta.tasks._datasets import (
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
from jaxmeta.tasks._lake_runs import (
    load_lake_runs,
    make_lake_runs,
)
from jaxmeta.tasks._mini_imagenet import load_mini_imagenet
from jaxmeta.tasks._omniglot import load_omniglot
from jaxmeta.tasks._sinusoid import sinusoid
from jaxmeta.tasks._stream import stream_few_shot
from jaxmeta.tasks._zero_shot import (
    AttributeData,
    attribute_world,
    zero_shot,
    zero_shot_test,
)

__all__ = [
    "AttributeData",
    "ImageClasses",
    "LabelledImages",
    "LabelledSplits",
    "Splits",
    "attribute_world",
    "few_shot",
    "glyphs",
    "image_attributes",
    "image_classes",
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
    "random_affine",
    "sinusoid",
    "stream_few_shot",
    "zero_shot",
    "zero_shot_test",
]
