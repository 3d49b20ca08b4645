"""What a scene shows, as answers to questions with numbered choices: for losses that ask, and for judges."""

from __future__ import annotations

from star_cli.data.icons.backgrounds import BACKGROUNDS
from star_cli.data.icons.catalogue import Catalogue
from star_cli.data.icons.layout import PLACES, RELATIONS, SIZES, IconScene


def label_choices(catalogue: Catalogue) -> tuple[int, ...]:
    """The number of answers to each question that `labels` answers."""
    slot = (1 + len(catalogue.objects), 5, len(SIZES))
    return len(BACKGROUNDS), len(RELATIONS), len(PLACES), *(slot * 3)


def labels(catalogue: Catalogue, shown: IconScene) -> list[int]:
    """What a scene shows, as answers to questions: background, relation, place, then for each of up to three kinds of
    things which it is (0: none), how many there are, and its size.
    """
    told = [BACKGROUNDS.index(shown.background), RELATIONS.index(shown.relation), list(PLACES).index(shown.place)]
    sizes = {item.key: item.size for item in shown.items}
    for key, number in shown.counts.items():
        told += [1 + catalogue.keys.index(key), number, SIZES.index(sizes[key])]
    return told + [0] * (len(label_choices(catalogue)) - len(told))
