"""Trains with Stable-Baselines3 (sb3) or SBX (sbx): train.py LIBRARY WORKLOAD STEPS THREADS.

Imports, compilation and the first steps, in which nothing is learned, fall into the first run,
which is a warm-up. Learning goes on from run to run.
"""

import sys

from measured import serve

library, workload, steps, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if library == "sb3":
    import stable_baselines3 as algorithms
    import torch

    torch.set_num_threads(threads)
    options = {"device": "cpu"}
else:
    import sbx as algorithms

    options = {}

from stable_baselines3.common.env_util import make_vec_env


def ppo():
    """4 environments of 128 steps, 4 epochs of 4 minibatches; the layers of 64 are tanh by default."""
    return algorithms.PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=4),
        n_steps=128,
        batch_size=128,
        n_epochs=4,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}},
        **options,
    )


def dqn():
    """An update of 128 transitions every step; a constant share of actions is random."""
    return algorithms.DQN(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=1),
        batch_size=128,
        train_freq=1,
        gradient_steps=1,
        learning_starts=100,
        target_update_interval=500,
        exploration_initial_eps=0.05,
        exploration_final_eps=0.05,
        policy_kwargs={"net_arch": [120, 84]},
        **options,
    )


def sac():
    """An update of 256 transitions every step."""
    return algorithms.SAC(
        "MlpPolicy",
        make_vec_env("Pendulum-v1", n_envs=1),
        batch_size=256,
        train_freq=1,
        gradient_steps=1,
        learning_starts=100,
        policy_kwargs={"net_arch": [256, 256]},
        **options,
    )


def td3():
    """An update of 256 transitions every step, of the actor every second one."""
    return algorithms.TD3("MlpPolicy", **off_policy())


def ddpg():
    """An update of 256 transitions every step."""
    return algorithms.DDPG("MlpPolicy", **off_policy())


def off_policy():
    return {
        "env": make_vec_env("Pendulum-v1", n_envs=1),
        "batch_size": 256,
        "train_freq": 1,
        "gradient_steps": 1,
        "learning_starts": 100,
        "policy_kwargs": {"net_arch": [256, 256]},
        **options,
    }


def pong(n_envs):
    """The Atari game, preprocessed by Stable-Baselines3's own wrappers."""
    import ale_py
    import gymnasium
    from stable_baselines3.common.atari_wrappers import AtariWrapper
    from stable_baselines3.common.vec_env import VecFrameStack

    gymnasium.register_envs(ale_py)
    envs = make_vec_env("ALE/Pong-v5", n_envs=n_envs, env_kwargs={"frameskip": 1}, wrapper_class=AtariWrapper)
    return VecFrameStack(envs, 4)


def pong_dqn():
    """The network of the Nature paper, which is CnnPolicy's; an update of 32 transitions every fourth step."""
    return algorithms.DQN(
        "CnnPolicy",
        pong(1),
        batch_size=32,
        train_freq=4,
        gradient_steps=1,
        learning_starts=100,
        buffer_size=10_000,
        target_update_interval=1000,
        exploration_initial_eps=0.05,
        exploration_final_eps=0.05,
        **options,
    )


def pong_ppo():
    """8 environments of 128 steps, 4 epochs of 4 minibatches; actor and critic see with a convolution each."""
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

    class Convolution(BaseFeaturesExtractor):
        def __init__(self, space):
            channels, height, width = space.shape
            super().__init__(space, 16 * (height - 2) * (width - 2))
            self.layers = torch.nn.Sequential(torch.nn.Conv2d(channels, 16, 3), torch.nn.Tanh(), torch.nn.Flatten())

        def forward(self, pixels):
            return self.layers(pixels)

    return algorithms.PPO(
        "CnnPolicy",
        pong(8),
        n_steps=128,
        batch_size=256,
        n_epochs=4,
        policy_kwargs={
            "features_extractor_class": Convolution,
            "share_features_extractor": False,
            "activation_fn": torch.nn.Tanh,
            "net_arch": [128],
        },
        **options,
    )


workloads = {
    "ppo": ppo,
    "dqn": dqn,
    "sac": sac,
    "td3": td3,
    "ddpg": ddpg,
    "pong-dqn": pong_dqn,
    "pong-ppo": pong_ppo,
}
model = workloads[workload]()


def run():
    before = model.num_timesteps
    model.learn(steps, reset_num_timesteps=False)
    return model.num_timesteps - before


serve(run)
