"""A stand-in for Gymnasium with small environments that behave well or badly, for gymnasium_bridge.rs."""

import array
import itertools
import math
import os
import random
import signal
import stat
import subprocess
import sys
from types import SimpleNamespace


class Discrete:
    def __init__(self, n, start=0):
        self.n, self.start = n, start

    def __repr__(self):
        return f"Discrete({self.n}, start={self.start})"


class Box:
    def __init__(self, low, high, shape, dtype="float32"):
        low, high = ([bound] * math.prod(shape) if isinstance(bound, int) else bound for bound in (low, high))
        self.low, self.high, self.shape, self.dtype = low, high, shape, dtype


class Dict:
    def __repr__(self):
        return "Dict('a': Discrete(2),\n     'b': Discrete(3))"


class Error(Exception):
    pass


class EzPickle:
    def __getstate__(self):
        return {}


spaces = SimpleNamespace(Discrete=Discrete, Box=Box, Dict=Dict)
error = SimpleNamespace(Error=Error)
utils = SimpleNamespace(EzPickle=EzPickle)


class Count:
    """Observes (10 seed + episode, steps so far, last action); the reward is the steps plus 1/8.

    Episodes have four steps; even episodes terminate, odd ones are truncated.
    """

    spec = SimpleNamespace(max_episode_steps=4, reward_threshold=2.5)
    observation_space = Box([float("-inf"), 0.0, 5.0], [float("inf"), 4.0, 7.0], (3,))
    action_space = Discrete(3, start=5)

    def reset(self, seed=None):
        if seed is not None:
            self.seed, self.episode = seed, -1
        self.episode += 1
        self.t, self.action = 0, 5
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        self.action = action
        ends = self.t == 4
        return self.observe(), self.t + 0.125, ends and self.episode % 2 == 0, ends and self.episode % 2 == 1, {}

    def observe(self):
        return [10 * self.seed + self.episode, self.t, self.action]

    def close(self):
        pass


class CountEz(EzPickle, Count):
    pass


class Lambda(Count):
    def __init__(self):
        self.function = lambda: None


class Pixels(Count):
    observation_space = Box([0] * 4, [255] * 4, (2, 2, 1), "uint8")

    def observe(self):
        return [0, 127, 128, 255 - self.t]


class State(Count):
    observation_space = Discrete(5, start=10)

    def observe(self):
        return 10 + self.t


class Outside(State):
    def observe(self):
        return 15


class Vector(Count):
    """Observes its action."""

    observation_space = Box([-2.5, -2.5], [2.5, 0.1], (2,), "float64")
    action_space = Box([-1.0, -1.0], [1.0, 1.0], (2,))

    def observe(self):
        return self.action if self.t > 0 else [0.0, 0.0]


class Noisy(Count):
    """Prints wherever it can, reads standard input, and would start a new frame by either."""

    def __init__(self):
        self.greet()

    def greet(self):
        print("K" * 50)
        sys.stdout.write("E")
        os.write(1, b"K\0\0\0")
        subprocess.run(["echo", "a child process prints"])
        if sys.stdin.read() != "" or os.read(0, 1) != b"":
            raise RuntimeError("standard input is not empty")

    def step(self, action):
        self.greet()
        return super().step(action)


class Raises(Count):
    def step(self, action):
        raise ValueError("the second line\n   matters too")


class Exits(Count):
    def step(self, action):
        sys.exit(3)


class Dies(Count):
    def step(self, action):
        os._exit(7)


class Crashes(Count):
    def step(self, action):
        os.kill(os.getpid(), signal.SIGSEGV)


class Short(Count):
    def observe(self):
        return [1.0, 2.0]


class Scribbles(Count):
    """Writes to the socket itself."""

    def step(self, action):
        for fd in range(3, 64):
            try:
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    os.write(fd, b"not a frame at all\n")
            except OSError:
                pass
        return super().step(action)


class Stuck(Count):
    """Never returns from a step, inside of C code that never looks at signals or other threads."""

    def step(self, action):
        subprocess.Popen(["sleep", "1000"])
        print("stuck", flush=True)
        sum(itertools.repeat(0))


class StuckStart(Count):
    def __init__(self):
        sum(itertools.repeat(0))


class Dictionary(Count):
    observation_space = Dict()


class Integers(Count):
    action_space = Box([0], [9], (1,), "int64")


class Needy(Count):
    def __init__(self):
        raise Error("Box2D is not installed, you can install it with\n  `pip install swig`, then `pip install it`")


class Broken(Count):
    def __init__(self):
        raise RuntimeError("no display")


class Console:
    """What an Atari game runs on, which cannot be pickled."""

    def __reduce__(self):
        raise TypeError("cannot pickle 'Console' object")

    def cloneState(self, include_rng):
        return self.t, self.lives, include_rng

    def restoreState(self, state):
        self.t, self.lives, with_rng = state
        assert with_rng


class Game(EzPickle):
    """Two lives, of which each DIE takes one; every pixel shows 50 times the game, plus its steps so far."""

    spec = SimpleNamespace(max_episode_steps=None, reward_threshold=None)
    action_space = Discrete(3)
    rewards = [7.0, 2.0, -3.0]
    second = "FIRE"

    def __init__(self, frameskip, repeat_action_probability):
        assert repeat_action_probability == 0.0
        arguments = {"frameskip": frameskip, "repeat_action_probability": repeat_action_probability}
        self._ezpickle_args, self._ezpickle_kwargs = (), arguments
        self.np_random = random.Random(1)
        self.unwrapped, self.frameskip, self.game, self.ale = self, frameskip, -1, Console()

    def get_action_meanings(self):
        return ["NOOP", self.second, "DIE"]

    def reset(self, seed=None):
        self.game += 1
        self.ale.t, self.ale.lives = 0, 2
        return self.picture(), {"lives": 2}

    def step(self, action):
        self.ale.t += 1
        self.ale.lives -= action == 2
        return self.picture(), self.rewards[action], self.ale.lives == 0, False, {"lives": self.ale.lives}

    def picture(self):
        return array.array("B", [50 * self.game + self.ale.t]) * 84 * 84

    def close(self):
        pass


class Wrapper:
    def __init__(self, env):
        self.env, self.unwrapped, self.frameskip = env, env.unwrapped, env.frameskip
        self.spec, self.action_space, self.close = env.spec, env.action_space, env.close


class Calm(Game):
    """Begins by itself."""

    second = "UP"


def spec(env_id):
    return SimpleNamespace(kwargs={"repeat_action_probability": 0.0})


def preprocessing(env, **settings):
    expected = dict(noop_max=30, frame_skip=4, screen_size=84, terminal_on_life_loss=False, grayscale_obs=True)
    if settings != expected or env.frameskip != 1:
        raise Error(f"{settings}")
    return env


def register_envs(module):
    assert module.__name__ == "ale_py"


wrappers = SimpleNamespace(AtariPreprocessing=preprocessing)


def make(env_id, disable_env_checker, **arguments):
    if env_id in ("ALE/Game-v5", "ALE/Calm-v5"):
        return {"ALE/Game-v5": Game, "ALE/Calm-v5": Calm}[env_id](**arguments)
    known = {cls.__name__ + "-v0": cls for cls in [*Count.__subclasses__(), Count, Outside]}
    if env_id not in known:
        raise Error(f"Environment `{env_id}` doesn't exist.\nDid you mean: `Count`?")
    return known[env_id]()
