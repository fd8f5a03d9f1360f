"""Task distributions: pure functions of a key."""

from jaxmeta.tasks._sinusoid import sinusoid as sinusoid
