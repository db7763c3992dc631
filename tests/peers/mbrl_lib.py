"""Plans and learns models with mbrl-lib: mbrl_lib.py WORKLOAD STEPS THREADS.

Sizes and counts are those of the rows of the speed measurement. Everything that is measured is done by
mbrl-lib's own classes, but for the pendulum's dynamics, of which it has no copy that plans can be tried in.
"""

import sys

import gymnasium
import numpy as np
import torch
from measured import serve
from mbrl.algorithms.mbpo import rollout_model_and_populate_sac_buffer
from mbrl.env import reward_fns, termination_fns
from mbrl.env.cartpole_continuous import CartPoleEnv
from mbrl.models import GaussianMLP, ModelEnv, ModelTrainer, OneDTransitionRewardModel
from mbrl.planning import RandomAgent, TrajectoryOptimizer, create_trajectory_optim_agent_for_model
from mbrl.planning.sac_wrapper import SACAgent
from mbrl.third_party.pytorch_sac_pranz24 import SAC
from mbrl.util import ReplayBuffer
from mbrl.util.common import rollout_agent_trajectories, step_env_and_add_to_buffer
from mbrl.util.replay_buffer import BootstrapIterator
from omegaconf import OmegaConf

workload, steps, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)

# Rollouts of a plan through the ensemble.
PARTICLES = 5


def optimizer(population, elites, iterations):
    return {
        "_target_": "mbrl.planning.CEMOptimizer",
        "num_iterations": iterations,
        "elite_ratio": elites / population,
        "population_size": population,
        "alpha": 0.1,
        "lower_bound": None,
        "upper_bound": None,
        "return_mean_elites": True,
        "clipped_normal": True,
        "device": "cpu",
    }


def cem(population, elites, iterations, horizon):
    """Plans with the pendulum's own dynamics, all plans at once."""
    env = gymnasium.make("Pendulum-v1")
    planner = TrajectoryOptimizer(
        OmegaConf.create(optimizer(population, elites, iterations)),
        env.action_space.low,
        env.action_space.high,
        horizon,
    )

    def returns(plans):
        angle, velocity = (torch.full((population,), float(x)) for x in env.unwrapped.state)
        total = torch.zeros(population)
        for torque in plans[:, :, 0].unbind(1):
            wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
            total -= wrapped**2 + 0.1 * velocity**2 + 0.001 * torque**2
            velocity = (velocity + (15.0 * angle.sin() + 3.0 * torque) * 0.05).clamp(-8.0, 8.0)
            angle = angle + 0.05 * velocity
        return total

    def run():
        env.reset(seed=1)
        planner.reset()
        for _ in range(steps):
            truncated = env.step(planner.optimize(returns)[0])[3]
            if truncated:
                env.reset()
                planner.reset()
        return steps

    return run


def ensemble(env, size, learned_rewards, elites=5):
    """Five networks of two hidden layers, each row of a batch predicted by one of them (TS1)."""
    inputs = env.observation_space.shape[0] + env.action_space.shape[0]
    outputs = env.observation_space.shape[0] + int(learned_rewards)
    networks = GaussianMLP(
        inputs, outputs, "cpu", 2, 5, size, propagation_method="random_model", learn_logvar_bounds=True
    )
    networks.set_elite(range(elites))
    return OneDTransitionRewardModel(networks, normalize=True, learned_rewards=learned_rewards)


def random_data(env, count):
    buffer = ReplayBuffer(count + steps, env.observation_space.shape, env.action_space.shape)
    rollout_agent_trajectories(env, count, RandomAgent(env), {}, replay_buffer=buffer)
    return buffer


def pets(size, batch, starts, frequency, epochs, population, elites, iterations, horizon):
    """Random data and a new model in every run, then a fit every `frequency` steps and a plan each step."""
    env = CartPoleEnv()

    def run():
        buffer, model = random_data(env, starts), ensemble(env, size, False)
        trainer = ModelTrainer(model, optim_lr=1e-3, weight_decay=0.0)
        model_env = ModelEnv(env, model, termination_fns.cartpole, reward_fns.cartpole)
        config = {
            "_target_": "mbrl.planning.TrajectoryOptimizerAgent",
            "_recursive_": False,  # the agent builds its optimizer itself
            "action_lb": "???",
            "action_ub": "???",
            "planning_horizon": horizon,
            "optimizer_cfg": optimizer(population, elites, iterations),
        }
        agent = create_trajectory_optim_agent_for_model(model_env, OmegaConf.create(config), PARTICLES)
        observation, ended = env.reset(seed=1)[0], False
        for step in range(steps):
            if ended:
                observation = env.reset()[0]
                agent.reset()
            if step % frequency == 0:
                data = buffer.get_all()
                model.update_normalizer(data)
                batches = BootstrapIterator(data, batch, 5, shuffle_each_epoch=True, permute_indices=False)
                trainer.train(batches, num_epochs=epochs, evaluate=False, silent=True)
            observation, _, ended, _, _ = step_env_and_add_to_buffer(env, observation, agent, {}, buffer)
        return steps

    return run


def part_of_pets(**counts):
    """With networks and data that leave a fit or a plan to be most of the work."""
    return pets(size=200, batch=250, starts=1000, epochs=1, **counts)


def mbpo(size, batch, updates):
    """Random data and new networks in every run, one fit of 250 minibatches, then in each step rollouts of
    two steps and updates of the learner."""
    env = gymnasium.make("Pendulum-v1")
    learner = {
        "gamma": 0.99,
        "tau": 0.01,
        "alpha": 0.2,
        "policy": "Gaussian",
        "target_update_interval": 1,
        "automatic_entropy_tuning": True,
        "target_entropy": 0.5,
        "hidden_size": size,
        "device": "cpu",
        "lr": 1e-3,
    }

    def run():
        buffer, model = random_data(env, 400), ensemble(env, size, True, elites=3)
        model_env = ModelEnv(env, model, termination_fns.no_termination)
        agent = SACAgent(SAC(3, env.action_space, OmegaConf.create(learner)))
        imagined = ReplayBuffer(2 * batch, (3,), (1,))
        adam = torch.optim.Adam(model.parameters(), lr=1e-3)
        data = buffer.get_all()
        model.update_normalizer(data)
        for _ in range(250):
            rows = np.random.randint(len(data), size=(5, batch))
            model.update(data[rows], adam)
        observation, truncated = env.reset(seed=1)[0], False
        for _ in range(steps):
            if truncated:
                observation = env.reset()[0]
            observation, _, _, truncated, _ = step_env_and_add_to_buffer(
                env, observation, agent, {"sample": True}, buffer
            )
            for update in range(updates):
                if update % 2 == 0:
                    rollout_model_and_populate_sac_buffer(model_env, buffer, agent, imagined, True, 2, batch)
                agent.sac_agent.update_parameters(imagined, batch, update, reverse_mask=True)
        return steps

    return run


workloads = {
    "cem-64": lambda: cem(population=64, elites=8, iterations=3, horizon=20),
    "cem-400": lambda: cem(population=400, elites=40, iterations=5, horizon=30),
    "pets": lambda: pets(32, 32, 200, frequency=50, epochs=10, population=24, elites=4, iterations=2, horizon=20),
    "pets-fit": lambda: part_of_pets(frequency=1, population=2, elites=2, iterations=1, horizon=1),
    "pets-plan": lambda: part_of_pets(frequency=1_000_000, population=100, elites=10, iterations=2, horizon=15),
    "mbpo-64": lambda: mbpo(size=64, batch=120, updates=6),
    "mbpo-256": lambda: mbpo(size=256, batch=240, updates=6),
}
serve(workloads[workload]())
