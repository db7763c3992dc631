"""A stand-in for Gymnasium with small environments that behave well or badly, for gymnasium_bridge.rs."""

import itertools
import os
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


def make(env_id, disable_env_checker):
    known = {cls.__name__ + "-v0": cls for cls in [*Count.__subclasses__(), Count, Outside]}
    if env_id not in known:
        raise Error(f"Environment `{env_id}` doesn't exist.\nDid you mean: `Count`?")
    return known[env_id]()
