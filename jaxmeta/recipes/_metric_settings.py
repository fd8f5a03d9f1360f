"""Settings of metric learners: dataclasses, each of which builds its learner."""

import dataclasses
from typing import ClassVar, Literal, TypeAlias

import jax.numpy as jnp

from jaxmeta import learners
from jaxmeta.recipes._learner_settings import Learner


@dataclasses.dataclass(frozen=True)
class _Metric(Learner):
    embeds: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class PrototypicalLearner(_Metric):
    """Prototypical network."""

    distance: Literal["euclidean", "cosine"] = "euclidean"
    """To the prototypes, squared where Euclidean."""

    def make(self, model, loss):
        """Builds the learner."""
        return learners.prototypical(model, distance=self.distance, loss=loss)


@dataclasses.dataclass(frozen=True)
class MatchingLearner(_Metric):
    """Matching network."""

    similarity: Literal["cosine", "l2"] = "cosine"
    """What the attention is on."""
    full_context: bool = False
    """Embed the set as a whole, by LSTMs."""

    def make(self, model, loss):
        """Builds the learner."""
        return learners.matching(
            model,
            similarity=self.similarity,
            full_context=self.full_context,
            loss=loss,
        )


@dataclasses.dataclass(frozen=True)
class SiameseLearner(_Metric):
    """Siamese network, trained by verification."""

    def make(self, model, loss):
        """Builds the learner; its loss is its own."""
        del loss
        return learners.siamese(model)


@dataclasses.dataclass(frozen=True)
class RelationLearner(_Metric):
    """Relation network."""

    def make(self, model, loss):
        """Builds the learner; its loss is the squared error of its relations."""
        del loss
        return learners.relation(model)

    def probabilities(self, outputs):
        """Relations are between 0 and 1 each."""
        return outputs / jnp.maximum(jnp.sum(outputs, -1, keepdims=True), 1e-12)


@dataclasses.dataclass(frozen=True)
class RidgeLearner(_Metric):
    """Ridge regression on embeddings: R2-D2."""

    def make(self, model, loss):
        """Builds the learner."""
        return learners.ridge(model, loss=loss)


@dataclasses.dataclass(frozen=True)
class SvmLearner(_Metric):
    """A support vector machine on embeddings: MetaOptNet."""

    def make(self, model, loss):
        """Builds the learner."""
        return learners.svm(model, loss=loss)


@dataclasses.dataclass(frozen=True)
class SubspaceLearner(_Metric):
    """Adaptive subspaces: DSN."""

    flip: bool = True
    """Add the mirror image of every support image."""

    def make(self, model, loss):
        """Builds the learner."""
        return learners.subspace(model, flip=self.flip, loss=loss)


@dataclasses.dataclass(frozen=True)
class FeatLearner(_Metric):
    """Prototypes that a transformer adapts to each other: FEAT."""

    temperature: float = 64.0
    """Of the distances."""

    def make(self, model, loss):
        """Builds the learner."""
        return learners.feat(model, temperature=self.temperature, loss=loss)


MetricLearner: TypeAlias = (
    PrototypicalLearner
    | MatchingLearner
    | SiameseLearner
    | RelationLearner
    | RidgeLearner
    | SvmLearner
    | SubspaceLearner
    | FeatLearner
)
