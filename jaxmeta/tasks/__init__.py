"""Task distributions: pure functions of a key, and the data behind them."""

from jaxmeta.tasks._attributes import load_attributes as load_attributes
from jaxmeta.tasks._augment import random_affine as random_affine
from jaxmeta.tasks._cifar_fs import (
    load_cifar_fs as load_cifar_fs,
    load_fc100 as load_fc100,
)
from jaxmeta.tasks._classification import classification as classification
from jaxmeta.tasks._datasets import (
    IMAGE_SUFFIXES as IMAGE_SUFFIXES,
    ImageClasses as ImageClasses,
    Splits as Splits,
    image_classes as image_classes,
    load_folder as load_folder,
    load_image as load_image,
)
from jaxmeta.tasks._drawing_attributes import (
    image_attributes as image_attributes,
    omniglot_attributes as omniglot_attributes,
)
from jaxmeta.tasks._few_shot import few_shot as few_shot
from jaxmeta.tasks._glyphs import glyphs as glyphs
from jaxmeta.tasks._labelled import (
    LabelledImages as LabelledImages,
    LabelledSplits as LabelledSplits,
    load_cifar10 as load_cifar10,
    load_mnist as load_mnist,
)
from jaxmeta.tasks._lake import (
    load_lake_runs as load_lake_runs,
    make_lake_runs as make_lake_runs,
)
from jaxmeta.tasks._mini_imagenet import load_mini_imagenet as load_mini_imagenet
from jaxmeta.tasks._omniglot import load_omniglot as load_omniglot
from jaxmeta.tasks._quadratics import quadratics as quadratics
from jaxmeta.tasks._scaling import random_scaling as random_scaling
from jaxmeta.tasks._sinusoid import sinusoid as sinusoid
from jaxmeta.tasks._synthetic import (
    language_model as language_model,
    softmax_regression as softmax_regression,
)
from jaxmeta.tasks._zero_shot import (
    AttributeData as AttributeData,
    attribute_world as attribute_world,
    zero_shot as zero_shot,
    zero_shot_test as zero_shot_test,
)
