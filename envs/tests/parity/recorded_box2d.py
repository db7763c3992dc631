"""Registers `Recorded-v0`: the environment of `recording.json` beside this file, with the recorded
random draws in place of a generator. A reset with seed k begins the recording's episode k."""

import json
import pathlib

import gymnasium
import numpy

RECORDING = json.loads(pathlib.Path(__file__).with_name("recording.json").read_text())


def plain(value):
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


class Draws:
    """Hands out the results of recorded calls [method, arguments, result], which must be repeated."""

    def __init__(self, calls):
        self.calls = list(calls)

    def __getattr__(self, method):
        def draw(*args, **kwargs):
            call = [method, plain([*args, *kwargs.values()])]
            if not self.calls or self.calls[0][:2] != call:
                raise RuntimeError(f"drew {call}, recorded are {self.calls[:1]}")
            result = self.calls.pop(0)[2]
            # Environments write to the arrays they drew: each draw is a new one.
            return numpy.array(result) if isinstance(result, list) else result

        return draw


class Recorded(gymnasium.Wrapper):
    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.episode = RECORDING["episodes"][seed]
        self.t = 0
        return self.with_draws(self.episode["random_reset"], self.env.reset)

    def step(self, action):
        draws = [["uniform", [-1, 1], result] for result in self.episode["random"][self.t]]
        self.t += 1
        return self.with_draws(draws, lambda: self.env.step(action))

    def with_draws(self, calls, function):
        draws = self.env.unwrapped.np_random = Draws(calls)
        result = function()
        if draws.calls:
            raise RuntimeError(f"did not draw {draws.calls}")
        return result


original = gymnasium.make(RECORDING["env_id"], disable_env_checker=True, **RECORDING["kwargs"])
gymnasium.register(
    "Recorded-v0",
    entry_point=lambda: Recorded(original),
    max_episode_steps=original.spec.max_episode_steps,
    reward_threshold=original.spec.reward_threshold,
)
