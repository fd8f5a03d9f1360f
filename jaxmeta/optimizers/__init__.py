"""Optimizers as optax transformations: for inner loops, and learned ones."""

from jaxmeta.optimizers._adam import adam, adamw
from jaxmeta.optimizers._celo import (
    CeloAdamState,
    CeloSchedulerState,
    CeloState,
    CeloTheta,
    celo,
    celo_adam,
    load_celo,
    read_celo,
)
from jaxmeta.optimizers._celo2 import Celo2State, Celo2Theta, celo2, load_celo2
from jaxmeta.optimizers._clipping import (
    adaptive_grad_clip,
    clip_by_block_rms,
    clip_by_global_norm,
    normalize_by_update_norm,
)
from jaxmeta.optimizers._coordinates import (
    LstmState,
    LstmTheta,
)
from jaxmeta.optimizers._curvature_sgd import curvature_sgd
from jaxmeta.optimizers._learned_adam import (
    LearnedAdamState,
    LearnedAdamTheta,
    learned_adam,
)
from jaxmeta.optimizers._learned_rate import learned_rate
from jaxmeta.optimizers._learned_sgd import (
    LearnedSgdState,
    learned_sgd,
)
from jaxmeta.optimizers._lstm import lstm, lstm_gac
from jaxmeta.optimizers._meta_lstm import (
    MetaLstmState,
    MetaLstmTheta,
    meta_lstm,
)
from jaxmeta.optimizers._mlp_optimizer import MlpState, mlp
from jaxmeta.optimizers._ntm_bfgs import (
    NtmBfgsState,
    ntm_bfgs,
)
from jaxmeta.optimizers._partition import partition
from jaxmeta.optimizers._preprocess import (
    log_gradient,
    scaled_gradient,
)
from jaxmeta.optimizers._pretrained import Pretrained, load_pretrained, pretrained
from jaxmeta.optimizers._rnnprop import (
    RnnpropState,
    RnnpropTheta,
    rnnprop,
)
from jaxmeta.optimizers._schedulers import LossTrend, RecurrentScheduler
from jaxmeta.optimizers._small_fc_mlp import (
    SmallFcMlpState,
    SmallFcMlpTheta,
    load_small_fc_mlp,
    small_fc_mlp,
)
from jaxmeta.optimizers._velo import VeloState, VeloTheta, load_velo, velo

__all__ = [
    "Celo2State",
    "Celo2Theta",
    "CeloAdamState",
    "CeloSchedulerState",
    "CeloState",
    "CeloTheta",
    "LearnedAdamState",
    "LearnedAdamTheta",
    "LearnedSgdState",
    "LossTrend",
    "LstmState",
    "LstmTheta",
    "MetaLstmState",
    "MetaLstmTheta",
    "MlpState",
    "NtmBfgsState",
    "Pretrained",
    "RecurrentScheduler",
    "RnnpropState",
    "RnnpropTheta",
    "SmallFcMlpState",
    "SmallFcMlpTheta",
    "VeloState",
    "VeloTheta",
    "adam",
    "adamw",
    "adaptive_grad_clip",
    "celo",
    "celo2",
    "celo_adam",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "curvature_sgd",
    "learned_adam",
    "learned_rate",
    "learned_sgd",
    "load_celo",
    "load_celo2",
    "load_pretrained",
    "load_small_fc_mlp",
    "load_velo",
    "log_gradient",
    "lstm",
    "lstm_gac",
    "meta_lstm",
    "mlp",
    "normalize_by_update_norm",
    "ntm_bfgs",
    "partition",
    "pretrained",
    "read_celo",
    "rnnprop",
    "scaled_gradient",
    "small_fc_mlp",
    "velo",
]
