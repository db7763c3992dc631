"""Trains with SAC for discrete actions in PyTorch: train_torch.py sac_discrete STEPS THREADS.

Neither Stable-Baselines3 nor SBX has it: this is the form of CleanRL's sac_atari.py on networks 64-64 for CartPole-v1,
an update of 128 transitions in four steps. Learning goes on from run to run.
"""

import sys

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from measured import serve
from torch import nn

assert sys.argv[1] == "sac_discrete"
steps, threads = int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
env = gymnasium.make("CartPole-v1")
observation_dim, num_actions = env.observation_space.shape[0], int(env.action_space.n)


def network():
    hidden = [nn.Linear(observation_dim, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(64, num_actions))


actor, qf1, qf2, qf1_target, qf2_target = (network() for _ in range(5))
qf1_target.load_state_dict(qf1.state_dict())
qf2_target.load_state_dict(qf2.state_dict())
log_alpha = torch.zeros(1, requires_grad=True)
target_entropy = 0.15 * np.log(num_actions)
q_optimizer = torch.optim.Adam([*qf1.parameters(), *qf2.parameters()], lr=2e-3, eps=1e-4)
actor_optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3, eps=1e-4)
alpha_optimizer = torch.optim.Adam([log_alpha], lr=2e-3, eps=1e-4)

capacity = 100_000
observations = np.zeros((capacity, observation_dim), np.float32)
next_observations = np.zeros((capacity, observation_dim), np.float32)
actions = np.zeros((capacity, 1), np.int64)
rewards = np.zeros((capacity, 1), np.float32)
terminations = np.zeros((capacity, 1), np.float32)
generator = np.random.default_rng(1)


def probabilities(x):
    logits = actor(x)
    return F.softmax(logits, dim=1), F.log_softmax(logits, dim=1)


def update(size):
    rows = generator.integers(size, size=128)
    columns = observations, actions, rewards, next_observations, terminations
    s, a, r, s_next, terminated = (torch.from_numpy(column[rows]) for column in columns)
    alpha = log_alpha.exp().item()
    with torch.no_grad():
        probs, log_probs = probabilities(s_next)
        next_values = torch.min(qf1_target(s_next), qf2_target(s_next)) - alpha * log_probs
        target = r + 0.99 * (1 - terminated) * (probs * next_values).sum(1, keepdim=True)
    qf_loss = F.mse_loss(qf1(s).gather(1, a), target) + F.mse_loss(qf2(s).gather(1, a), target)
    q_optimizer.zero_grad()
    qf_loss.backward()
    q_optimizer.step()

    probs, log_probs = probabilities(s)
    with torch.no_grad():
        values = torch.min(qf1(s), qf2(s))
    actor_loss = (probs * (alpha * log_probs - values)).mean()
    actor_optimizer.zero_grad()
    actor_loss.backward()
    actor_optimizer.step()

    excess = (log_probs + target_entropy).detach()
    alpha_loss = (probs.detach() * (-log_alpha.exp() * excess)).mean()
    alpha_optimizer.zero_grad()
    alpha_loss.backward()
    alpha_optimizer.step()

    with torch.no_grad():
        for network, average in [(qf1, qf1_target), (qf2, qf2_target)]:
            for parameter, mean in zip(network.parameters(), average.parameters()):
                mean.lerp_(parameter, 0.1)


step, observation = 0, env.reset(seed=1)[0]


def run():
    global step, observation
    for _ in range(steps):
        row = step % capacity
        with torch.no_grad():
            logits = actor(torch.from_numpy(observation).unsqueeze(0))
            action = torch.distributions.Categorical(logits=logits).sample().item()
        observations[row], actions[row] = observation, action
        observation, rewards[row], terminated, truncated, _ = env.step(action)
        next_observations[row], terminations[row] = observation, terminated
        if terminated or truncated:
            observation = env.reset()[0]
        step += 1
        if step >= 100 and step % 4 == 0:
            update(min(step, capacity))
    return steps


serve(run)
