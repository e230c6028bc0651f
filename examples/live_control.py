"""Act: a policy is cut per action, and workers are lost, or late, while it plays.

    python examples/live_control.py acrobot --out runs/control

The games are gymnasium's: `pip install gymnasium`, and `pip install 'gymnasium[box2d]'` for lander. For each an expert
is found (cartpole, acrobot: a linear policy by the cross-entropy method) or given (lander: the rule that comes with the
game). What it would do in the states that it and a clumsier player of it come through is the training data; a network
learns it, is cut into workers, and plays. What counts is the return of an episode.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from figures import sensai, table
from torch import Tensor, nn

from sensai_serve.bundles import Bundle
from sensai_serve.merge.lost_workers import ScoredInputs

Policy = Callable[[np.ndarray], int]
"""The action for an observation."""
HIDDEN = 256


@dataclass(frozen=True)
class Game:
    """A game of gymnasium, and how its policy is cut."""

    name: str
    actions: tuple[str, ...]
    assignment: tuple[object, ...]
    """Options of ``sensai prune`` that say who covers which actions."""


GAMES = {
    "cartpole": Game("CartPole-v1", ("left", "right"), ("--assignment", "full", "--redundancy", 3)),
    "acrobot": Game("Acrobot-v1", ("back", "none", "forth"), ("--assignment", "cyclic", "--redundancy", 2)),
    "lander": Game("LunarLander-v3", ("none", "left", "main", "right"), ("--assignment", "cyclic", "--redundancy", 3)),
}


class Mlp(nn.Module):
    """Two hidden layers."""

    def __init__(self, n_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(input_shape[0], HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, n_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Observations [N, readings] to logits [N, actions]."""
        return self.layers(x)  # type: ignore[no-any-return]


def play(env: Any, policy: Policy, seeds: Sequence[int], *, late: bool = False) -> list[float]:
    """The return of an episode for each seed.

    Args:
        env: a game.
        policy: what plays.
        seeds: of the episodes.
        late: every action comes one control step late: the one before is done again until it is there.
    """
    returns = []
    for seed in seeds:
        state, _ = env.reset(seed=seed)
        total, over, action = 0.0, False, None
        while not over:
            wanted = policy(np.asarray(state, np.float32))
            state, reward, ended, cut, _ = env.step(wanted if action is None or not late else action)
            total, over, action = total + float(reward), ended or cut, wanted
        returns.append(total)
    return returns


def linear(weights: np.ndarray) -> Policy:
    """The action whose row of `weights` [actions, readings + 1] gives an observation the most."""
    return lambda state: int((weights[:, :-1] @ state + weights[:, -1]).argmax())


def search(env: Any, rounds: int, tried: int, seed: int = 0) -> Policy:
    """A linear policy by the cross-entropy method: keep the best eighth, draw around them, again.

    Source: Rubinstein, "The Cross-Entropy Method for Combinatorial and Continuous Optimization", 1999.
    """
    draw = np.random.default_rng(seed)
    shape = (int(env.action_space.n), int(env.observation_space.shape[0]) + 1)
    mean, spread = np.zeros(shape), np.ones(shape)
    for number in range(rounds):
        candidates = mean + spread * draw.normal(size=(tried, *shape))
        seeds = [1000 * number + n for n in range(3)]  # the same games for all, others in each round
        worth = [np.mean(play(env, linear(weights), seeds)) for weights in candidates]
        best = candidates[np.argsort(worth)[-max(tried // 8, 2) :]]
        mean, spread = best.mean(axis=0), best.std(axis=0) + 0.2 / (number + 1)
        print(f"round {number + 1} of {rounds}: the best return {max(worth):.0f}, the mean {np.mean(worth):.0f}")
    return linear(mean)


def expert_of(game: str, env: Any, *, quick: bool) -> Policy:
    """Who is learnt from."""
    if game != "lander":
        return search(env, *((2, 8) if quick else (8, 32)))
    from gymnasium.envs.box2d.lunar_lander import heuristic

    return lambda state: int(heuristic(env.unwrapped, state))


def gather(env: Any, expert: Policy, states: int, clumsy: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States [N, readings] that a player comes through who does anything now and then, and the expert's actions [N]."""
    draw = np.random.default_rng(seed)
    x, y = list[np.ndarray](), list[int]()
    while len(x) < states:
        state, _ = env.reset(seed=10_000 + len(x))
        over, share = False, draw.choice([0.0, clumsy])
        while not over and len(x) < states:
            x.append(np.asarray(state, np.float32))
            y.append(expert(state))
            action = int(draw.integers(env.action_space.n)) if draw.random() < share else y[-1]
            state, _, ended, cut, _ = env.step(action)
            over = ended or cut
    return np.stack(x), np.asarray(y)


class Workers:
    """A bundle that plays, with some of its workers lost or late."""

    def __init__(self, bundle: Bundle) -> None:
        from sensai_serve.local import load

        self.classifier = load(bundle)
        self.plan, self.n_workers = bundle.merge_plan, bundle.assignment.n_workers
        self.norm = bundle.manifest.input.normalisation

    def policy(self, lost: Callable[[], Sequence[int]]) -> Policy:
        """Plays by the merged answer of all workers but those that `lost` names anew for each control step."""

        def act(state: np.ndarray) -> int:
            x = ((state - np.float32(self.norm.mean)) / np.float32(self.norm.std)).astype(np.float32)[None]
            found = int(ScoredInputs(self.plan, self.classifier.scores(x)).labels(lost())[0])
            return max(found, 0)

        return act


def of_reference(bundle: Bundle) -> Policy:
    """Plays by the network before pruning."""
    from export.sessions import session

    network, norm = session(bundle.reference() or b""), bundle.manifest.input.normalisation

    def act(state: np.ndarray) -> int:
        x = ((state - np.float32(norm.mean)) / np.float32(norm.std)).astype(np.float32)[None]
        return int(network.run(None, {bundle.manifest.input.name: x})[0].argmax())

    return act


def compare(env: Any, expert: Policy, bundle: Bundle, episodes: int) -> list[tuple[str, ...]]:
    """Rows of the table: who plays, the mean return and its standard error, the worst episode."""
    seeds = [1_000_000 + n for n in range(episodes)]
    workers, draw = Workers(bundle), np.random.default_rng(0)
    every = range(workers.n_workers)

    def of_sets(size: int) -> list[float]:
        sets = list(combinations(every, size))
        share, returns = max(episodes // len(sets), 1), list[float]()
        for at, lost in enumerate(sets):
            policy = workers.policy(lambda lost=lost: lost)  # type: ignore[misc]
            returns += play(env, policy, seeds[at * share : (at + 1) * share])
        return returns

    all_there = workers.policy(tuple)
    played = {
        "the expert": play(env, expert, seeds),
        "reference": play(env, of_reference(bundle), seeds),
        f"merged, {len(every)} workers": play(env, all_there, seeds),
        "one worker lost": of_sets(1),
        **({"two workers lost": of_sets(2)} if len(every) > 2 else {}),
        "one worker late in each control step, not waited for": play(
            env, workers.policy(lambda: (int(draw.integers(len(every))),)), seeds
        ),
        "one worker late by a control step, waited for": play(env, all_there, seeds, late=True),
        "reference, late by a control step": play(env, of_reference(bundle), seeds, late=True),
    }
    return [
        (name, f"{np.mean(r):.1f}", f"{np.std(r) / len(r) ** 0.5:.1f}", f"{min(r):.1f}", str(len(r)))
        for name, r in played.items()
    ]


def main(args: list[str] | None = None, make: Callable[[str], Any] | None = None) -> None:
    """Find an expert, learn from it, cut, and play.

    Args:
        args: the command line.
        make: makes a game of its name; gymnasium's where None.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("game", choices=GAMES)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/control"), help="a directory; what is there is not made anew"
    )
    parser.add_argument("--episodes", type=int, default=100, help="for each row of the table")
    parser.add_argument("--quick", action="store_true", help="next to no search and training, to see it run")
    chosen = parser.parse_args(args)
    if make is None:
        import gymnasium

        make = gymnasium.make
    game, out, quiet = GAMES[chosen.game], chosen.out / chosen.game, ["--quiet", "--threads", "1"]
    env = make(game.name)
    expert = expert_of(chosen.game, env, quick=chosen.quick)
    out.mkdir(parents=True, exist_ok=True)
    data = out / "states.npz"
    if not data.exists():
        x, y = gather(env, expert, 400 if chosen.quick else 40_000, clumsy=0.3)
        np.savez(data, x=x, y=y, labels=game.actions)
    weights, run, bundle = out / "policy.safetensors", out / "run", out / "bundle"
    model = ["--data", f"npz:{data}", "--model", "live_control:Mlp"]
    if not weights.exists():
        sensai("train", *model, "--out", weights, "--rate", 0.05, "--epochs", 2 if chosen.quick else 40, *quiet)
    if not bundle.exists():
        budget = [64, "--images", 32] if chosen.quick else [600_000, "--images", 100_000]
        sensai("prune", *model, "--weights", weights, "--out", run, *game.assignment, "--macs", 0.25,
               "--recover-images", *budget, *quiet)  # fmt: skip
        sensai("export", run, "--out", bundle, "--quiet", *(["--pad-channels", 1] if chosen.quick else []))
    opened = Bundle.open(bundle)
    columns = (f"{game.name}: who acts", "mean return", "standard error", "worst episode", "episodes")
    table(columns, compare(env, expert, opened, chosen.episodes), out / "figures.md")
    times = opened.manifest.provenance["latency_us"]
    print(f"one core: reference {times['reference']:.0f} us, slowest worker {max(times['subnets']):.0f} us")


if __name__ == "__main__":
    main()
