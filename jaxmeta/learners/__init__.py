"""Meta-learners: each factory returns a `jaxmeta.MetaLearner`."""

from jaxmeta.learners._maml import MamlParams as MamlParams, maml as maml
