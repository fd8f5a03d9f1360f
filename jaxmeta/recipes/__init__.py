"""Named experiments, and the run folders they leave."""

from jaxmeta.recipes._adapt import Prediction as Prediction, adapt_run as adapt_run
from jaxmeta.recipes._config import (
    OptimizerRecipe as OptimizerRecipe,
    Recipe as Recipe,
    Training as Training,
    from_json as from_json,
    to_json as to_json,
)
from jaxmeta.recipes._lake import lake_run as lake_run
from jaxmeta.recipes._learner_settings import (
    AnilLearner as AnilLearner,
    BoilLearner as BoilLearner,
    CaviaLearner as CaviaLearner,
    ImamlLearner as ImamlLearner,
    MamlLearner as MamlLearner,
    MamlPlusPlusLearner as MamlPlusPlusLearner,
    MetaCurvatureLearner as MetaCurvatureLearner,
    MetaLstmLearner as MetaLstmLearner,
    MetaSgdLearner as MetaSgdLearner,
    ProtoMamlLearner as ProtoMamlLearner,
    ReptileLearner as ReptileLearner,
)
from jaxmeta.recipes._metric_settings import (
    FeatLearner as FeatLearner,
    MatchingLearner as MatchingLearner,
    PrototypicalLearner as PrototypicalLearner,
    RelationLearner as RelationLearner,
    RidgeLearner as RidgeLearner,
    SiameseLearner as SiameseLearner,
    SubspaceLearner as SubspaceLearner,
    SvmLearner as SvmLearner,
)
from jaxmeta.recipes._optimizer_settings import (
    Cifar10Problem as Cifar10Problem,
    ConvFcLstmOptimizer as ConvFcLstmOptimizer,
    LstmOptimizer as LstmOptimizer,
    MnistProblem as MnistProblem,
    NtmBfgsOptimizer as NtmBfgsOptimizer,
    Pes as Pes,
    QuadraticProblem as QuadraticProblem,
    RnnpropOptimizer as RnnpropOptimizer,
    TruncatedBptt as TruncatedBptt,
)
from jaxmeta.recipes._policy_settings import (
    NavigationTasks as NavigationTasks,
    PolicyMamlLearner as PolicyMamlLearner,
)
from jaxmeta.recipes._run import (
    Run as Run,
    best_meta_params as best_meta_params,
    build as build,
    evaluate_run as evaluate_run,
    open_run as open_run,
    train_run as train_run,
)
from jaxmeta.recipes._settings import (
    Conv4Model as Conv4Model,
    FilmConv4Model as FilmConv4Model,
    GlyphTasks as GlyphTasks,
    MlpModel as MlpModel,
    OmniglotTasks as OmniglotTasks,
    RelationModel as RelationModel,
    SinusoidTasks as SinusoidTasks,
    TaskSplits as TaskSplits,
)
from jaxmeta.recipes._table import DEFAULT as DEFAULT, RECIPES as RECIPES
