"""Meta-learners: each factory returns a `jaxmeta.MetaLearner`.

The factories are at the top level too (`jaxmeta.maml`); the types of what they learn
(`MamlParams`, ...) are here.
"""

from jaxmeta.learners._anil import anil
from jaxmeta.learners._boil import boil
from jaxmeta.learners._cavia import CaviaParams, cavia
from jaxmeta.learners._feat import FeatParams, feat
from jaxmeta.learners._imaml import ImplicitInfo, imaml
from jaxmeta.learners._maml import MamlParams, maml
from jaxmeta.learners._maml_plus_plus import (
    MamlPlusPlusParams,
    maml_plus_plus,
)
from jaxmeta.learners._matching import LstmParams, MatchingParams, matching
from jaxmeta.learners._meta_curvature import meta_curvature
from jaxmeta.learners._meta_lstm import meta_lstm
from jaxmeta.learners._meta_sgd import meta_sgd
from jaxmeta.learners._metric import MetricParams, MetricTaskParams
from jaxmeta.learners._proto_maml import (
    ProtoMamlParams,
    proto_maml,
)
from jaxmeta.learners._prototypical import prototypical
from jaxmeta.learners._relation import relation
from jaxmeta.learners._reptile import (
    ReptileParams,
    reptile,
    reptile_outer_tx,
)
from jaxmeta.learners._ridge import RidgeParams, ridge
from jaxmeta.learners._siamese import SiameseParams, siamese
from jaxmeta.learners._subspace import (
    SubspaceParams,
    subspace,
)
from jaxmeta.learners._svm import SvmInfo, SvmParams, svm

# The names of the papers' methods.
r2d2, metaoptnet, dsn = ridge, svm, subspace

__all__ = [
    "CaviaParams",
    "FeatParams",
    "ImplicitInfo",
    "LstmParams",
    "MamlParams",
    "MamlPlusPlusParams",
    "MatchingParams",
    "MetricParams",
    "MetricTaskParams",
    "ProtoMamlParams",
    "ReptileParams",
    "RidgeParams",
    "SiameseParams",
    "SubspaceParams",
    "SvmInfo",
    "SvmParams",
    "anil",
    "boil",
    "cavia",
    "dsn",
    "feat",
    "imaml",
    "maml",
    "maml_plus_plus",
    "matching",
    "meta_curvature",
    "meta_lstm",
    "meta_sgd",
    "metaoptnet",
    "proto_maml",
    "prototypical",
    "r2d2",
    "relation",
    "reptile",
    "reptile_outer_tx",
    "ridge",
    "siamese",
    "subspace",
    "svm",
]
