"""Optimizers as optax transformations: for inner loops, and learned ones."""

from jaxmeta.optimizers._adam import adam as adam
from jaxmeta.optimizers._coordinates import (
    LstmState as LstmState,
    LstmTheta as LstmTheta,
)
from jaxmeta.optimizers._curvature_sgd import curvature_sgd as curvature_sgd
from jaxmeta.optimizers._learned_rate import learned_rate as learned_rate
from jaxmeta.optimizers._learned_sgd import (
    LearnedSgdState as LearnedSgdState,
    learned_sgd as learned_sgd,
)
from jaxmeta.optimizers._lstm import lstm as lstm, lstm_gac as lstm_gac
from jaxmeta.optimizers._meta_lstm import (
    MetaLstmState as MetaLstmState,
    MetaLstmTheta as MetaLstmTheta,
    meta_lstm as meta_lstm,
)
from jaxmeta.optimizers._mlp import MlpState as MlpState, mlp as mlp
from jaxmeta.optimizers._ntm_bfgs import (
    NtmBfgsState as NtmBfgsState,
    ntm_bfgs as ntm_bfgs,
)
from jaxmeta.optimizers._partition import partition as partition
from jaxmeta.optimizers._preprocess import (
    log_gradient as log_gradient,
    scaled_gradient as scaled_gradient,
)
from jaxmeta.optimizers._rnnprop import (
    RnnpropState as RnnpropState,
    RnnpropTheta as RnnpropTheta,
    rnnprop as rnnprop,
)
from jaxmeta.optimizers._weights import (
    Pretrained as Pretrained,
    load as load,
    load_pretrained as load_pretrained,
    pretrained as pretrained,
    save as save,
)
