"""The recipes of learned optimizers."""

import dataclasses

from jaxmeta.recipes._config import OptimizerRecipe
from jaxmeta.recipes._optimizer_settings import (
    Cifar10Problem,
    ConvFcLstmOptimizer,
    LearnedAdamOptimizer,
    LstmOptimizer,
    MnistProblem,
    NeuralArtProblem,
    NtmBfgsOptimizer,
    Pes,
    QuadraticProblem,
    RnnpropOptimizer,
    SmallNetworks,
    TruncatedBptt,
    WholeRuns,
)

_lstm_quadratic = OptimizerRecipe(
    summary="The LSTM optimizer on random quadratics",
    published="final loss 0.0387, summed over 100 updates 12.41; best other optimizer "
    "0.0511 and 20.5 (Andrychowicz et al. 2016, Figure 4, read off its curves)",
    protocol="uniform W and y, as in the figure; no preprocessing, output added as it "
    "is; {test_problems:,} test problems, which all optimizers share; the others' "
    "rates tuned on one grid. Ours: exact second order, outer rate "
    "{outer_learning_rate:g} along a cosine, {estimator.num_problems} problems a "
    "meta-step",
    problem=QuadraticProblem(),
    optimizer=LstmOptimizer(preprocess="scale", output_scale=1.0, init_scale=1.0),
    estimator=TruncatedBptt(),
    outer_learning_rate=3e-3,
    cosine=True,
    steps=15_000,
    log_every=100,
    validate_every=1500,
    validation_problems=1000,
)

_gac_quadratic = dataclasses.replace(
    _lstm_quadratic,
    summary="The LSTM with global averaging cells on random quadratics",
    published="none; compare lstm-quadratic",
    optimizer=dataclasses.replace(_lstm_quadratic.optimizer, num_averaged=2),
)

_ntm_bfgs_quadratic = dataclasses.replace(
    _gac_quadratic,
    summary="NTM-BFGS, an LSTM with a matrix for memory, on random quadratics",
    optimizer=NtmBfgsOptimizer(),
)

_pes_quadratic = dataclasses.replace(
    _lstm_quadratic,
    summary="The LSTM optimizer on random quadratics, by evolution strategies (PES)",
    published="none; compare lstm-quadratic",
    protocol="as lstm-quadratic, but for the estimator: persistent evolution "
    "strategies over {estimator.num_problems} pairs of runs, no second order, "
    "meta-gradients clipped at norm {clip:g}",
    estimator=Pes(num_problems=64),
    clip=1.0,
)

_lstm_mnist = OptimizerRecipe(
    summary="The LSTM optimizer on a small MNIST classifier",
    published="final loss 0.245, summed over 100 updates 43.7; best other optimizer "
    "0.3235 and 82.3 (Andrychowicz et al. 2016, Figure 4, read off its curves)",
    protocol="20 sigmoid units, batches of {problem.batch_size}, parameters start "
    "normal "
    "with deviation 0.01; meta-trained on one half of the 60,000 training images, "
    "tested on the "
    "other; {test_problems} starts, which all optimizers share; the others' rates "
    "tuned on one "
    "grid. Ours: outer rate {outer_learning_rate:g} along a cosine, meta-gradients "
    "clipped at norm {clip:g}, a "
    "tenth of the usual weights in the LSTM's first read-out",
    problem=MnistProblem(),
    optimizer=LstmOptimizer(),
    # The logarithm's slope at small gradients makes the second order's gradient wild.
    estimator=TruncatedBptt(num_problems=1, second_order=False),
    outer_learning_rate=1e-2,
    cosine=True,
    # Without it and a small read-out, one seed of three stands still from the start.
    clip=1.0,
    steps=4000,
    log_every=25,
    validate_every=250,
    validation_problems=16,
    problems_per_chunk=1,
    test_problems=64,
)

_lstm_mnist_enhanced = dataclasses.replace(
    _lstm_mnist,
    summary="The LSTM optimizer trained to last: curriculum, imitation, random scaling",
    published="no divergence in 10,000 updates, ReLU too (Chen et al. 2020, Figures 3 "
    "and 4)",
    protocol="as lstm-mnist; horizons {curriculum} for equal shares of the meta-steps, "
    "{imitation:.0%} of the meta-steps imitate Adam at {teacher_rate:g}, coordinates "
    "scaled by up to "
    "e. Ours: a fixed schedule instead of one by validation, and scaling beside",
    curriculum=(100, 200, 500),
    imitation=0.3,
    scaling=1.0,
    steps=5000,
    test_steps=500,
)

_rnnprop_mnist_enhanced = dataclasses.replace(
    _lstm_mnist_enhanced,
    summary="RNNprop trained to last: curriculum, imitation, random scaling",
    published="none on this network: the paper shows curves of 2,000 updates with ReLU "
    "and others (Lv et al. 2017, Figures 2 to 5)",
    protocol="as lstm-mnist-enhanced. Ours: coordinates scaled by up to e, where the "
    "paper scales by up to e^3",
    optimizer=RnnpropOptimizer(),
)

_lstm_cifar10 = OptimizerRecipe(
    summary="Two LSTM optimizers on a convolutional network, CIFAR-10",
    published="loss 0.822 after 1,000 updates; best other optimizer 0.793 "
    "(Andrychowicz et al. 2016, Figure 5, read off its curves)",
    protocol="three convolutions with batch norm, ReLU and pooling, 32 dense units, "
    "batches of {problem.batch_size}; meta-trained on one half of the 50,000 training "
    "images, tested on "
    "the other; {test_problems} starts, which all optimizers share; the others' rates "
    "tuned on one "
    "grid. Ours: the network's own He start, updates scaled by "
    "{optimizer.output_scale:g} as in the released "
    "code, outer rate {outer_learning_rate:g} along a cosine",
    problem=Cifar10Problem(),
    optimizer=ConvFcLstmOptimizer(output_scale=0.01, init_scale=1.0),
    estimator=TruncatedBptt(num_problems=1, second_order=False),
    outer_learning_rate=3e-3,
    cosine=True,
    clip=1.0,
    steps=1000,
    log_every=10,
    validate_every=100,
    validation_problems=2,
    test_problems=16,
    problems_per_chunk=1,
)

_lstm_neural_art = OptimizerRecipe(
    summary="The LSTM optimizer on neural art: one picture in the style of another",
    published="curves below those of all other optimizers, on new contents, a new "
    "style and twice the resolution (Andrychowicz et al. 2016, Figure 8)",
    protocol="VGG-16's maps of three blocks; meta-trained on one style at "
    "{problem.size} pixels a side, tested on held-out contents, another style and "
    "twice the side; {test_problems} starts, which all optimizers share; the others' "
    "rates tuned on one grid. Ours: each term of the loss over its target's size, "
    "gradients' logarithms down to -{optimizer.p:g} (a pixel's are small), your "
    "pictures",
    problem=NeuralArtProblem(),
    optimizer=LstmOptimizer(p=18.0),
    estimator=TruncatedBptt(unroll=32, horizon=128, num_problems=1, second_order=False),
    outer_learning_rate=3e-3,
    cosine=True,
    clip=1.0,
    steps=300,
    log_every=5,
    validate_every=50,
    validation_problems=1,
    test_problems=4,
    test_steps=128,
    problems_per_chunk=1,
)

_rnnprop_neural_art = dataclasses.replace(
    _lstm_neural_art,
    summary="RNNprop on neural art: one picture in the style of another",
    published="none; compare lstm-neural-art",
    protocol="as lstm-neural-art; the network sees the directions of Adam and RMSprop, "
    "which do not know how large a pixel's gradient is",
    optimizer=RnnpropOptimizer(),
    steps=600,
)

_general_optimizer = OptimizerRecipe(
    summary='The optimizer to drop in, "general", over unlike small networks',
    published="none; the shipped weights are compared in docs/benchmarks/optimizers.md",
    protocol="evolution strategies over whole runs of {estimator.shortest} to "
    "{estimator.longest:,} updates, {estimator.num_problems} pairs a family and "
    "meta-step; the meta-loss is the logarithm of the full-data loss at the end over "
    "that at the start. Validated and tested after {test_steps:,} updates on five "
    "families of larger networks, losses over their first; the others' rates tuned for "
    "each on one grid",
    problem=SmallNetworks(),
    optimizer=LearnedAdamOptimizer(),
    estimator=WholeRuns(meta_loss="log", shortest=80, longest=4000),
    outer_learning_rate=1e-2,
    cosine=True,
    steps=2000,
    log_every=10,
    validate_every=100,
    validation_problems=4,
    test_problems=16,
    test_steps=1000,
)

RECIPES = {
    "lstm-quadratic": _lstm_quadratic,
    "lstm-gac-quadratic": _gac_quadratic,
    "ntm-bfgs-quadratic": _ntm_bfgs_quadratic,
    "pes-quadratic": _pes_quadratic,
    "lstm-mnist": _lstm_mnist,
    "lstm-mnist-enhanced": _lstm_mnist_enhanced,
    "rnnprop-mnist-enhanced": _rnnprop_mnist_enhanced,
    "lstm-cifar10": _lstm_cifar10,
    "lstm-neural-art": _lstm_neural_art,
    "rnnprop-neural-art": _rnnprop_neural_art,
    "general-optimizer": _general_optimizer,
}
