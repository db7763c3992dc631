"""Steps environments with random actions: step.py LIBRARY ENV_ID NUM_ENVS STEPS.

LIBRARY is gymnasium (its SyncVectorEnv) or envpool (one thread, waiting for every step). The
actions are drawn beforehand and used again and again; STEPS counts those of all environments.
"""

import sys

import numpy as np
from measured import serve

library, env_id, num_envs, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if library == "gymnasium":
    import gymnasium

    envs = gymnasium.make_vec(env_id, num_envs=num_envs, vectorization_mode="sync")
    space = envs.single_action_space
else:
    import envpool

    envs = envpool.make(env_id, env_type="gymnasium", num_envs=num_envs, num_threads=1)
    space = envs.action_space

generator = np.random.default_rng(1)
if hasattr(space, "n"):
    actions = generator.integers(space.n, size=(256, num_envs), dtype=space.dtype)
else:
    actions = generator.uniform(space.low, space.high, size=(256, num_envs, *space.shape))
    actions = actions.astype(space.dtype)
envs.reset()


def run():
    calls = steps // num_envs
    for call in range(calls):
        envs.step(actions[call % 256])
    return calls * num_envs


serve(run)
