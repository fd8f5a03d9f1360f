"""pytorch-maml-rl (Deleu 2018) on 2-D navigation, run as its own `train.py` does.

CHECKOUT: https://github.com/tristandeleu/pytorch-maml-rl, 21d4ba1
its interpreter: `requirements-pytorch-maml-rl.txt`
"""

import argparse
import json
import math
import pathlib
import sys
import time

import gym
import torch
import yaml


def lstsq(targets, matrix):
    """What PyTorch had under this name when that code was written."""
    return torch.linalg.lstsq(matrix, targets).solution, None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=pathlib.Path)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True, help="timed, after one")
    args = parser.parse_args()
    sys.path.insert(0, str(args.checkout))
    torch.lstsq = lstsq
    from maml_rl import envs  # noqa: F401  # Registers the environments.
    from maml_rl.baseline import LinearFeatureBaseline
    from maml_rl.metalearners import MAMLTRPO
    from maml_rl.samplers import MultiTaskSampler
    from maml_rl.utils.helpers import get_input_size, get_policy_for_env

    text = (args.checkout / "configs/maml/2d-navigation.yaml").read_text()
    config = yaml.safe_load(text)
    torch.manual_seed(0)
    env = gym.make(config["env-name"], **config["env-kwargs"])
    policy = get_policy_for_env(
        env,
        hidden_sizes=config["hidden-sizes"],
        nonlinearity=config["nonlinearity"],
    )
    policy.share_memory()
    sampler = MultiTaskSampler(
        config["env-name"],
        env_kwargs=config["env-kwargs"],
        batch_size=config["fast-batch-size"],
        policy=policy,
        baseline=LinearFeatureBaseline(get_input_size(env)),
        env=env,
        seed=0,
        num_workers=args.workers,
    )
    learner = MAMLTRPO(policy, fast_lr=config["fast-lr"], first_order=False)

    def meta_step():
        tasks = sampler.sample_tasks(num_tasks=config["meta-batch-size"])
        futures = sampler.sample_async(
            tasks,
            num_steps=config["num-steps"],
            fast_lr=config["fast-lr"],
            gamma=config["gamma"],
            gae_lambda=config["gae-lambda"],
            device="cpu",
        )
        learner.step(
            *futures,
            max_kl=config["max-kl"],
            cg_iters=config["cg-iters"],
            cg_damping=config["cg-damping"],
            ls_max_steps=config["ls-max-steps"],
            ls_backtrack_ratio=config["ls-backtrack-ratio"],
        )
        before, after = sampler.sample_wait(futures)
        return sum(math.fsum(episode.lengths) for episode in (*before[0], *after))

    def timed():
        start = time.perf_counter()
        env_steps = meta_step()
        return time.perf_counter() - start, env_steps

    first, _ = timed()
    seconds, env_steps = zip(*(timed() for _ in range(args.steps)), strict=True)
    report = {"first_s": first, "seconds": seconds, "env_steps": env_steps}
    print("report:", json.dumps(report), flush=True)
    sampler.close()


if __name__ == "__main__":
    main()
