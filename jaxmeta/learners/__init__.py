"""Meta-learners: each factory returns a `jaxmeta.MetaLearner`."""

from jaxmeta.learners._anil import anil as anil
from jaxmeta.learners._boil import boil as boil
from jaxmeta.learners._cavia import CaviaParams as CaviaParams, cavia as cavia
from jaxmeta.learners._feat import FeatParams as FeatParams, feat as feat
from jaxmeta.learners._imaml import ImplicitInfo as ImplicitInfo, imaml as imaml
from jaxmeta.learners._maml import MamlParams as MamlParams, maml as maml
from jaxmeta.learners._maml_plus_plus import (
    MamlPlusPlusParams as MamlPlusPlusParams,
    maml_plus_plus as maml_plus_plus,
)
from jaxmeta.learners._matching import matching as matching
from jaxmeta.learners._meta_curvature import meta_curvature as meta_curvature
from jaxmeta.learners._meta_lstm import meta_lstm as meta_lstm
from jaxmeta.learners._meta_sgd import meta_sgd as meta_sgd
from jaxmeta.learners._metric import MetricParams as MetricParams
from jaxmeta.learners._proto_maml import (
    ProtoMamlParams as ProtoMamlParams,
    proto_maml as proto_maml,
)
from jaxmeta.learners._prototypical import prototypical as prototypical
from jaxmeta.learners._relation import relation as relation
from jaxmeta.learners._reptile import ReptileParams as ReptileParams, reptile as reptile
from jaxmeta.learners._ridge import RidgeParams as RidgeParams, ridge as ridge
from jaxmeta.learners._siamese import SiameseParams as SiameseParams, siamese as siamese
from jaxmeta.learners._subspace import (
    SubspaceParams as SubspaceParams,
    subspace as subspace,
)
from jaxmeta.learners._svm import SvmInfo as SvmInfo, SvmParams as SvmParams, svm as svm
