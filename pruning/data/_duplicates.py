"""Exact copies of training examples in the test part, which make an accuracy look better than it is."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from pruning.notices import say


def warn_of_duplicates(
    name: str, training: Sequence[Hashable], test: Sequence[Hashable], what: tuple[Sequence[object], Sequence[object]]
) -> None:
    """Say how many examples of the test part are in the training part too.

    Args:
        name: of the source.
        training: a digest of each example of the training part.
        test: and of the test part.
        what: what to call each example of both parts.
    """
    place = {digest: at for at, digest in enumerate(training)}
    both = [at for at, digest in enumerate(test) if digest in place]
    if both:
        here, there = what[1][both[0]], what[0][place[test[both[0]]]]
        say(
            f"{name}: {len(both)} of {len(test)} examples of the test part are in the training part too, {here} as "
            f"{there} for one: the accuracy will look better than it is"
        )
