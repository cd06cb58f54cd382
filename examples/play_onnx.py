"""One game of an exported agent: python play_onnx.py FILE.onnx [SEED]. Needs onnxruntime, numpy and ale-py only."""

import sys

import ale_py.roms
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1  # a decision is too small to share
options.add_session_config_entry("session.x64quantprecision", "1")  # int8 computes exactly, on every processor alike
session = onnxruntime.InferenceSession(sys.argv[1], options)
about = session.get_modelmeta().custom_metadata_map
seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
rng = np.random.default_rng(seed)
ale = ale_py.ALEInterface()
ale.setInt("random_seed", seed)
ale.setFloat("repeat_action_probability", 0.0)
ale.setInt("max_num_frames_per_episode", 108_000)  # half an hour: some agents can play on without end
ale.loadROM(ale_py.roms.get_rom_path(about["game"]))
actions = ale.getMinimalActionSet() if about["action_set"] == "minimal" else ale.getLegalActionSet()


def average(pixels: int) -> np.ndarray:
    """Weights of each of 84 mean values over equal parts of a line of pixels."""
    edges, pixel = np.linspace(0, pixels, 85)[:, None], np.arange(pixels)
    return np.clip(np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel), 0, None) * 84 / pixels


height, width = ale.getScreenDims()
rows, columns = average(height), average(width).T
stack, score, lives = np.zeros((1, 4, 84, 84), np.uint8), 0, 0
for _ in range(rng.integers(30)):  # idle frames, as in the games it was evaluated in (protocol noop)
    ale.act(ale_py.Action.NOOP)
while not ale.game_over() and not ale.game_truncated():
    outputs = session.run(None, {"observations": stack})[0][0]
    noise = rng.gumbel(size=outputs.shape) if about["head"] == "policy" else 0  # a policy is sampled from
    action = actions[np.argmax(outputs + noise)]
    if about["fire_on_life_loss"] == "true" and ale.lives() != lives:
        action = ale_py.Action.FIRE
    lives, frames = ale.lives(), []
    for _ in range(4):  # every decision lasts for four frames; the last two are shown together
        score += ale.act(action)
        frames.append(ale.getScreenGrayscale())
    frame = rows @ np.maximum(frames[-1], frames[-2]) @ columns
    stack = np.concatenate([stack[:, 1:], np.rint(frame).astype(np.uint8)[None, None]], axis=1)
print(f"{about['game']}, {about['format']}: {score:g} points")
