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


def on_policy(policy, env, batch_size, policy_kwargs):
    """Rollouts of 128 steps, 4 epochs of 4 minibatches."""
    return algorithms.PPO(
        policy, env, n_steps=128, n_epochs=4, batch_size=batch_size, policy_kwargs=policy_kwargs, **options
    )


def ppo():
    """4 environments; the layers of 64 are tanh by default."""
    net_arch = {"pi": [64, 64], "vf": [64, 64]}
    return on_policy("MlpPolicy", make_vec_env("CartPole-v1", n_envs=4), 128, {"net_arch": net_arch})


def q_learning(policy, env, **sizes):
    """A constant share of actions is random."""
    return algorithms.DQN(
        policy,
        env,
        gradient_steps=1,
        learning_starts=100,
        exploration_initial_eps=0.05,
        exploration_final_eps=0.05,
        **sizes,
        **options,
    )


def dqn():
    """An update of 128 transitions every step."""
    return q_learning(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=1),
        batch_size=128,
        train_freq=1,
        target_update_interval=500,
        policy_kwargs={"net_arch": [120, 84]},
    )


def sac():
    """An update of 256 transitions every step."""
    return algorithms.SAC("MlpPolicy", **off_policy())


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
    sizes = {"batch_size": 32, "train_freq": 4, "buffer_size": 10_000, "target_update_interval": 1000}
    return q_learning("CnnPolicy", pong(1), **sizes)


def pong_ppo():
    """8 environments; actor and critic see with a convolution each."""
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

    class Convolution(BaseFeaturesExtractor):
        def __init__(self, space):
            channels, height, width = space.shape
            super().__init__(space, 16 * (height - 2) * (width - 2))
            self.layers = torch.nn.Sequential(torch.nn.Conv2d(channels, 16, 3), torch.nn.Tanh(), torch.nn.Flatten())

        def forward(self, pixels):
            return self.layers(pixels)

    network = {
        "features_extractor_class": Convolution,
        "share_features_extractor": False,
        "activation_fn": torch.nn.Tanh,
        "net_arch": [128],
    }
    return on_policy("CnnPolicy", pong(8), 256, network)


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
