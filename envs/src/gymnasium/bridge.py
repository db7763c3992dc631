"""Serves copies of a Gymnasium environment to the program that started this process.

Arguments: the environment's id, the number of copies, `autoreset` or `single`, and `training` or
`evaluation`, which is the same for all but Atari games (class Atari).

Descriptor 1 is a socket to that program, descriptor 0 a pipe that it holds open for as long as it
lives. The socket carries frames: one byte that names the frame, the number of bytes that follow
(uint64), and these bytes. Numbers are in the machine's byte order, since both ends run on it.

  request                   answer
  R  seed (uint64)          observations; copy i is reset with seed + i
  S  actions                observations, rewards (float64), terminated, truncated (a byte each)
                            and, with autoreset, the final observation of each copy that ended
  P                         the copies, pickled
  U  pickled copies         nothing

An answer is a frame K with what the table says, or E with one line of text. The first frame, K
with a description of the environment in JSON or E, comes unasked.
"""

import array
import json
import os
import signal
import socket
import struct
import sys
import time

HEADER = struct.Struct("=cQ")
GRACE = 2.0  # seconds that environments get to close themselves when the program has ended
FLOATS = ("float16", "float32", "float64")
GYMNASIUM = "gymnasium==1.4.0"
ATARI = f"{GYMNASIUM} ale-py==0.12.1 opencv-python-headless==5.0.0.93"


class Refused(Exception):
    """Something the user can mend; the message says it all."""


def take_descriptors():
    """Takes the pipe and the socket away, so that nothing an environment reads or prints meets them."""
    lifeline, connection = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return lifeline, socket.socket(fileno=connection)


def stand_guard(lifeline, connection):
    """Leaves a process that ends its whole process group when the program has ended.

    An environment that is stuck, in C code even, never sees that its program is gone. The guard
    does nothing but wait for that, so it always sees it. A group of our own also keeps Ctrl-C
    away, which is the program's to handle.
    """
    os.setsid()
    worker = os.getpid()
    if os.fork() > 0:
        os.close(lifeline)
        return
    connection.close()
    os.read(lifeline, 1)  # returns when the last holder of the other end is gone
    deadline = time.monotonic() + GRACE
    while os.getppid() == worker and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(0, signal.SIGKILL)  # the worker, what environments started, and the guard itself


def one_line(error):
    """The last line of a traceback, and where it was raised."""
    text = " ".join(str(error).split())[:1000]
    if isinstance(error, Refused):
        return text
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace and trace.tb_frame.f_code.co_filename != "<string>":
        code = trace.tb_frame.f_code
        text += f" ({os.path.basename(code.co_filename)}, line {trace.tb_lineno}, in {code.co_name})"
    return text


def pack(code, values):
    """The bytes of an array, or of a list where NumPy is not there, as numbers of type `code`."""
    if numpy is None:
        return array.array(code, values).tobytes()
    return numpy.asarray(values, code).tobytes()


def describe(space, role, dtypes):
    """What the other end must know of a space; refuses those that it has nothing for."""
    if isinstance(space, gymnasium.spaces.Discrete):
        if role == "observation" and space.n > 2**24:
            raise Refused(f"its {space} observations are more than the {2**24} that numbers of 32 bits tell apart")
        return {"Discrete": {"n": int(space.n)}}
    if isinstance(space, gymnasium.spaces.Box) and str(space.dtype) in dtypes:
        # As text, because JSON has no infinity.
        low, high = ([repr(float(x)) for x in getattr(bound, "flat", bound)] for bound in (space.low, space.high))
        if low:
            shape = [int(length) for length in space.shape]
            return {"Box": {"shape": shape, "low": low, "high": high, "bytes": str(space.dtype) == "uint8"}}
    raise Refused(f"its {role} space {space} is not supported; supported are Discrete and Box of {', '.join(dtypes)}")


def observation_encoder(space):
    """A function from an observation to its bytes: float32, or uint8 where the space has these."""
    if isinstance(space, gymnasium.spaces.Discrete):
        start, n = int(space.start), int(space.n)

        def encode_index(observation):
            index = int(observation) - start
            if not 0 <= index < n:
                raise ValueError(f"observation {observation} is not in {space}")
            return struct.pack("=f", index)

        return encode_index
    code = "B" if str(space.dtype) == "uint8" else "f"
    size = array.array(code).itemsize
    for length in space.shape:
        size *= length

    def encode(observation):
        data = pack(code, observation)
        if len(data) != size:
            raise ValueError(f"an observation of {len(data)} bytes where {space} takes {size}")
        return data

    return encode


def action_decoder(space, num_envs):
    """A function from the bytes of all copies' actions to these actions."""
    if isinstance(space, gymnasium.spaces.Discrete):
        start = int(space.start)
        return lambda data: [start + index for index in memoryview(data).cast("I")]
    if numpy is not None:
        # astype copies: environments may write to their action.
        return lambda data: numpy.frombuffer(data, "f").astype(space.dtype).reshape(num_envs, *space.shape)

    def decode(data):
        numbers = memoryview(data).cast("f").tolist()
        size = len(numbers) // num_envs
        return [numbers[i * size : (i + 1) * size] for i in range(num_envs)]

    return decode


def set_dict(instance, state):
    instance.__dict__.update(state)


def rebuild_game(kind, args, kwargs, state):
    """An Atari game in this state of its console, which cannot be pickled itself."""
    game = kind(*args, **kwargs)
    game.ale.restoreState(state)
    return game


def pickle_whole(value):
    """Pickles what `value` is, not how it was built.

    Environments derived from EzPickle pickle the arguments of their constructor alone and would
    come back at the start of another episode.
    """
    import copyreg
    import io
    import pickle

    class Pickler(pickle.Pickler):
        def reducer_override(self, value):
            if not isinstance(value, gymnasium.utils.EzPickle):
                return NotImplemented
            attributes = dict(value.__dict__)
            console = attributes.pop("ale", None)
            if console is None:
                return copyreg.__newobj__, (type(value),), attributes, None, None, set_dict
            arguments = value._ezpickle_args, value._ezpickle_kwargs
            state = console.cloneState(include_rng=True)
            return rebuild_game, (type(value), *arguments, state), attributes, None, None, set_dict

    file = io.BytesIO()
    Pickler(file, protocol=4).dump(value)
    return file.getvalue()


class Atari:
    """A game of the Arcade Learning Environment as Mnih et al. (2015) have it, and all after them.

    Gymnasium's AtariPreprocessing begins a game with up to 30 no-ops, takes an action for four
    frames, and shows the maximum of the last two, in grey, 84 × 84. Added here:

    - the last four of these pictures are one observation, [84, 84, 4], the oldest first; a life's
      first picture fills them all;
    - FIRE is pressed for the agent at the start of a life, in games that have it, as some wait for it;
    - while training, a life that is lost ends the episode, though the game goes on in the next one,
      and rewards are clipped to [-1, 1]. In an evaluation an episode is a game with its true score.
    """

    FIRE = 1  # the index of this action, where a game has it
    FRAMES = 4
    SIDE = 84

    def __init__(self, env_id, training):
        probability = gymnasium.spec(env_id).kwargs["repeat_action_probability"]
        env = gymnasium.make(env_id, frameskip=1, repeat_action_probability=0.0, disable_env_checker=True)
        env = Sticky(env, probability)
        self.env = gymnasium.wrappers.AtariPreprocessing(
            env, noop_max=30, frame_skip=4, screen_size=self.SIDE, terminal_on_life_loss=False, grayscale_obs=True
        )
        self.training = training
        self.fires = "FIRE" in env.unwrapped.get_action_meanings()[self.FIRE : self.FIRE + 1]
        self.spec, self.action_space = env.spec, env.action_space
        self.observation_space = gymnasium.spaces.Box(0, 255, (self.SIDE, self.SIDE, self.FRAMES), "uint8")
        self.over, self.lives, self.frames = True, 0, []

    def reset(self, seed=None):
        if self.over or seed is not None:
            frame, info = self.env.reset(seed=seed)
            self.lives, self.frames = info["lives"], [frame.tobytes()]
        _, self.over = self.start_life()
        return self.observe(), {}

    def step(self, action):
        frame, reward, terminated, truncated, info = self.env.step(action)
        # The last life is the game's own end; some games count down to it early.
        life_lost = 0 < info["lives"] < self.lives
        self.lives = info["lives"]
        self.frames = [*self.frames[1:], frame.tobytes()]
        self.over = terminated or truncated
        if self.training:
            reward = max(-1.0, min(1.0, reward))
            terminated = terminated or life_lost
        elif life_lost and not self.over:
            # What an agent saw at the start of each life while training.
            more, self.over = self.start_life()
            reward, terminated = reward + more, self.over
        return self.observe(), reward, terminated, truncated, info

    def start_life(self):
        """Fires, if need be, and fills the stack; returns the reward and whether the game has ended."""
        reward, over = 0.0, False
        if self.fires:
            frame, reward, terminated, truncated, info = self.env.step(self.FIRE)
            self.lives, self.frames = info["lives"], [frame.tobytes()]
            over = terminated or truncated
        self.frames = self.frames[-1:] * self.FRAMES
        return reward, over

    def observe(self):
        """The frames, each pixel's values side by side."""
        pixels = bytearray(self.SIDE * self.SIDE * self.FRAMES)
        for i, frame in enumerate(self.frames):
            pixels[i :: self.FRAMES] = frame
        return pixels

    def close(self):
        self.env.close()


def define_sticky():
    """Defines what needs Gymnasium to have been imported."""
    global Sticky  # where pickle looks for it

    class Sticky(gymnasium.Wrapper):
        """In each frame the last action again, with some probability, instead of the one that was asked for.

        The emulator can do the same, but keeps the last action to itself: no state of it holds that.
        """

        def __init__(self, env, probability):
            super().__init__(env)
            self.probability, self.last = probability, 0  # NOOP

        def reset(self, **kwargs):
            self.last = 0
            return self.env.reset(**kwargs)

        def step(self, action):
            if self.unwrapped.np_random.random() >= self.probability:
                self.last = action
            return self.env.step(self.last)


def make_atari(env_id, training):
    try:
        import ale_py
        import cv2  # which AtariPreprocessing needs
    except ModuleNotFoundError as error:
        if error.name not in ("ale_py", "cv2"):
            raise
        raise Refused(
            f"{sys.executable} has no package {error.name}; install what Atari games need with "
            f"`{sys.executable} -m pip install {ATARI}`"
        ) from None
    gymnasium.register_envs(ale_py)
    # Each copy of a game would begin with two lines about its emulator.
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    define_sticky()
    return Atari(env_id, training)


def make(env_id, training):
    if env_id.startswith("ALE/"):
        return make_atari(env_id, training)
    return gymnasium.make(env_id, disable_env_checker=True)


class Server:
    """The copies, and what can be asked of them."""

    def __init__(self, env_id, num_envs, autoreset, training):
        try:
            self.envs = [make(env_id, training) for _ in range(num_envs)]
        except gymnasium.error.Error as error:
            # Unknown ids and packages that are missing: Gymnasium's message says what to do.
            raise Refused(str(error)) from None
        self.autoreset = autoreset
        env, dtypes = self.envs[0], FLOATS
        self.description = {
            "observation_space": describe(env.observation_space, "observation", (*FLOATS, "uint8")),
            "action_space": describe(env.action_space, "action", FLOATS),
            "max_episode_steps": env.spec.max_episode_steps,
            "reward_threshold": env.spec.reward_threshold,
        }
        self.encode = observation_encoder(env.observation_space)
        self.decode = action_decoder(env.action_space, num_envs)
        self.requests = {b"R": self.reset, b"S": self.step, b"P": self.save, b"U": self.load}

    def reset(self, data):
        (seed,) = struct.unpack("=Q", data)
        return b"".join(self.encode(env.reset(seed=seed + i)[0]) for i, env in enumerate(self.envs))

    def step(self, data):
        observations, rewards, terminations, truncations, finals = [], [], [], [], []
        for env, action in zip(self.envs, self.decode(data)):
            observation, reward, terminated, truncated, _ = env.step(action)
            observation = self.encode(observation)
            if self.autoreset and (terminated or truncated):
                finals.append(observation)
                observation = self.encode(env.reset()[0])
            observations.append(observation)
            rewards.append(reward)
            terminations.append(bool(terminated))
            truncations.append(bool(truncated))
        rewards = struct.pack(f"={len(rewards)}d", *rewards)
        return b"".join([*observations, rewards, bytes(terminations), bytes(truncations), *finals])

    def save(self, _):
        try:
            return pickle_whole(self.envs)
        except Exception as error:
            raise Refused(f"Python cannot pickle this environment, so no checkpoint can hold it: {one_line(error)}")

    def load(self, data):
        import pickle

        envs = pickle.loads(data)
        if [type(env) for env in envs] != [type(env) for env in self.envs]:
            raise Refused(f"the state is not of {len(self.envs)} copies of this environment")
        self.envs = envs
        return b""

    def close(self):
        for env in self.envs:
            env.close()


def send(connection, name, data):
    connection.sendall(HEADER.pack(name, len(data)) + data)


def send_error(connection, error):
    send(connection, b"E", one_line(error).encode("utf-8", "replace"))


def serve(connection, server):
    """Answers requests until the program closes its end."""
    requests = connection.makefile("rb")
    while len(header := requests.read(HEADER.size)) == HEADER.size:
        name, length = HEADER.unpack(header)
        data = requests.read(length)
        try:
            answer = server.requests[name](data)
        except BaseException as error:  # SystemExit too: an environment must not end its server
            send_error(connection, error)
        else:
            send(connection, b"K", answer)


def main():
    global gymnasium, numpy
    lifeline, connection = take_descriptors()
    stand_guard(lifeline, connection)
    env_id, num_envs, mode, purpose = sys.argv[1:]
    try:
        try:
            import gymnasium
        except ModuleNotFoundError as error:
            raise Refused(
                f"{sys.executable} has no package {error.name}; install it with `{sys.executable} -m pip install "
                f"{GYMNASIUM}`, or name another interpreter in PLAINRL_PYTHON"
            ) from None
        try:
            import numpy  # Gymnasium needs it; an environment that needs neither can do without
        except ModuleNotFoundError:
            numpy = None
        server = Server(env_id, int(num_envs), mode == "autoreset", purpose == "training")
    except BaseException as error:
        send_error(connection, error)
        return
    send(connection, b"K", json.dumps(server.description).encode())
    serve(connection, server)
    server.close()


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the program ended in the middle of a frame
