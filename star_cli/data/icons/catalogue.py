"""The things that scenes are made of: what they are called, where they stand, what may be done to them.

`vocabulary.txt` names the most useful ones by hand. The other icons follow by rule: those of kinds that can be drawn as
things, under the label that the words package gives them, with the words that are said of no other emoji as synonyms.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

from star_cli.data.icons.fetch import Emoji, IconSet, open_icons
from star_cli.data.icons.looks import Look, looks
from star_cli.data.icons.render import IconRenders
from star_cli.errors import DataError, OptionError

Stance = Literal["ground", "sky", "water", "free"]
DEFAULT_OBJECTS = 400
_ROW = re.compile(r"(?P<icon>[\w-]+): (?P<names>[^\[\]]+?)(?: \[(?P<flags>[^\]]+)\])?")
_FIXED = re.compile(r"an? |the |some |.*\*$|.*'s ")

# kinds of emoji (meta/groups.json of the words package) that are things, with category and stance
_KINDS: dict[int, tuple[str, Stance]] = (
    dict.fromkeys((34, 35, 36, 37, 39), ("animals", "ground"))
    | {38: ("animals", "water"), 46: ("food", "free"), 47: ("food", "free"), 48: ("food", "free")}
    | dict.fromkeys((40, 41), ("plants", "ground"))
    | dict.fromkeys((42, 43, 44, 45), ("food", "free"))
    | dict.fromkeys((51, 52), ("buildings", "ground"))
    | {54: ("vehicles", "ground"), 55: ("vehicles", "water"), 56: ("vehicles", "sky"), 59: ("weather", "sky")}
    | dict.fromkeys((0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13), ("faces", "free"))
    | dict.fromkeys(
        (14, 60, 61, 62, 63, 64, 65, 67, 68, 69, 70, 71, 72, 73, 75, 76, 77, 78, 79, 80, 81), ("things", "free")
    )
)
# left out although their kind is not: clocks and moons that hardly differ, signs made of letters, pictures of scenes
_LEFT_OUT = re.compile(
    r"oclock|thirty$|-moon(-face)?$|button|japanese-(?!castle|dolls)|map-of|mahjong|flower-playing|suit$|sunrise|"
    r"sunset|cityscape|night-with|bridge-at|fog|milky|moon-viewing|globe|speaker-|mobile-phone-|-mailbox|-with-|"
    r"shooting-star|^fireworks|sparkler|^desert$|white-flower|^metro$|cyclone|elevator|in-clouds|motorway|railway-track|"
    r"kaaba|baggage|customs|passport|left-luggage|heart-suit|level-slider|control-knobs|chart|medal$|"
    r"^(id|atm|cigarette|blood|middle|x-ray|sari|briefs|drop-of-blood|love-hotel|label|knife)"
)
# said of one emoji only, and yet no name of the thing: what one does with it, feels about it, or meets it in
_NO_SYNONYM = re.compile(
    r".*(ing|ed|ly|ful|ous|able|ic|ive|y|less)$|^.{1,3}$|.*[^a-z].*|(australia|bamboo|curious|fluffy|jump|lazy|slow|"
    r"silly|strong|order|boss|swag|shut|keep|danger|disaster|drought|climate|change|fever|panic|relief|trouble|"
    r"habitat|diet|ripe|sour|taste|trunk|class|spin|turn|save|float|alarm|alert|shine|gamble|museum|pool|world|"
    r"champs|slay|award|direct|melted|noodle|flavor|carbs|birth|summer|accident|nothing|bottoms|cheers|freedom|cuffs|compress|list|calculation|force|suction|healthier|power|natural|hail|"
    r"stubborn|evidence|proof|location|assistance|choo|aviation|banner|toppings|spore|lust|ultimate|flop|underarm|voip|"
    r"marker|slate|cardio|hearth|heartpulse|prophecy|grow|decor)"
)


@dataclass(frozen=True)
class IconObject:
    """One kind of thing."""

    key: str
    """What captions call it most often; no other object is called so."""
    icon: str
    category: str
    stance: Stance
    names: tuple[str, ...]
    """The key, then its synonyms."""
    fixed_names: frozenset[str]
    """Names said as they stand, with no article, adjective or plural: "the sun"."""
    is_mass: bool
    """Not counted: some bread."""
    is_plural: bool
    """Always several: some grapes."""
    may_flip: bool
    """Its mirror image is the same thing."""
    may_turn: bool
    """It is the same thing when turned a little."""
    look: Look
    is_common: bool = False
    """One of those that scenes of several things may keep to, see `SceneMix.common`."""
    body_names: tuple[str, ...] = ()
    """For the whole animal where another object is its face: the names of that one, said with a verb."""

    @property
    def may_be_counted(self) -> bool:
        """There can be two of it."""
        return not (self.is_mass or self.is_plural) and bool(self.free_names)

    @property
    def free_names(self) -> tuple[str, ...]:
        """Names that take an article, an adjective, a plural."""
        return tuple(name for name in self.names if name not in self.fixed_names)


@dataclass(frozen=True)
class Catalogue:
    """Objects, the most useful first, and where their pictures are. Picklable."""

    objects: tuple[IconObject, ...]
    renders: IconRenders

    @cached_property
    def by_key(self) -> dict[str, IconObject]:
        """Objects by their key."""
        return {thing.key: thing for thing in self.objects}

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Keys in order."""
        return tuple(self.by_key)

    @cached_property
    def common(self) -> tuple[IconObject, ...]:
        """The common ones."""
        return tuple(thing for thing in self.objects if thing.is_common)

    @property
    def fingerprint(self) -> str:
        """Changes when other pictures or captions would come out."""
        words = "|".join(f"{thing.icon}:{','.join(thing.names)}" for thing in self.objects)
        return f"{self.renders.icons.fingerprint}-{len(self.objects)}-{zlib.crc32(words.encode()):08x}"

    def find(self, word: str) -> IconObject | None:
        """The object that a word names."""
        return next((thing for thing in self.objects if word in thing.names), None)


def open_catalogue(
    where: Path | None = None,
    objects: int = DEFAULT_OBJECTS,
    on_message: Callable[[str], None] | None = None,
    on_icon: Callable[[int, int], None] | None = None,
) -> Catalogue:
    """The first objects of the vocabulary, with their icons.

    Args:
        where: see `open_icons`.
        objects: how many; 0 for all.
        on_message: told what takes long.
        on_icon: called with icons rendered and their number, on first use.
    Raises:
        DataError: the icon set is not there, or has none of the objects.
        OptionError: fewer than 0 objects.
    """
    if objects < 0:
        raise OptionError(f"there cannot be {objects} objects", "give 0 for all of them")
    icons = open_icons(where, on_message)
    rows = list(_rows(icons))[: objects or None]
    if not rows:
        raise DataError(f"{icons.path} has none of the icons that scenes are made of")
    renders = IconRenders(icons)
    measured = looks(renders, [row.icon for row in rows], on_icon)
    return Catalogue(tuple(row.with_look(measured[row.icon]) for row in rows), renders)


@dataclass(frozen=True)
class _Row:
    """An object before its icon has been looked at."""

    icon: str
    names: tuple[str, ...]
    category: str
    stance: Stance
    flags: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()
    body_names: tuple[str, ...] = ()

    def with_look(self, look: Look) -> IconObject:
        return IconObject(
            key=self.names[0],
            icon=self.icon,
            category=self.category,
            stance=self.stance,
            names=self.names,
            fixed_names=self.fixed,
            is_mass="mass" in self.flags,
            is_plural="plural" in self.flags,
            may_flip="still" not in self.flags and self.category != "faces",
            may_turn="still" not in self.flags and self.category in ("food", "things") and self.stance == "free",
            look=look,
            is_common="common" in self.flags,
            body_names=self.body_names,
        )


def _rows(icons: IconSet) -> Iterator[_Row]:
    """All objects of a set: those named by hand in their order, then those by rule in the set's."""
    there = set(icons.icons)
    by_hand = vocabulary()
    yield from (row for row in by_hand if row.icon in there)
    yield from _by_rule(icons, by_hand)


@cache
def vocabulary() -> tuple[_Row, ...]:
    """The rows of vocabulary.txt."""
    rows: dict[str, _Row] = {}
    category, stance = "", "free"
    for number, line in enumerate(files(__package__).joinpath("vocabulary.txt").read_text("utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith("=="):
            _, category, stance = line.split()
            continue
        match = _ROW.fullmatch(line)
        assert match is not None, f"vocabulary.txt, line {number}: {line}"
        flags = frozenset((match["flags"] or "").split())
        body = next((flag.removeprefix("body=") for flag in flags if flag.startswith("body=")), None)
        written = [name.strip() for name in match["names"].split(",")]
        names = tuple(name.rstrip("*") for name in written)
        fixed = frozenset(name.rstrip("*") for name in written if _FIXED.match(name))
        own_stance = next((flag for flag in flags if flag in get_args(Stance)), stance)
        body_names = () if body is None else tuple(n for n in rows[body].names if "face" not in n)
        rows[match["icon"]] = _Row(match["icon"], names, category, own_stance, flags, fixed, body_names)  # type: ignore[arg-type]  # a Stance
    return tuple(rows.values())


def _by_rule(icons: IconSet, by_hand: tuple[_Row, ...]) -> Iterator[_Row]:
    taken = {name for row in by_hand for name in row.names}
    named = {row.icon for row in by_hand}
    emoji = {slug(one.label): one for one in icons.emoji}
    uses = Counter(tag for one in icons.emoji for tag in set(one.tags))
    for icon in icons.icons:
        said = emoji.get(icon)
        if said is None or icon in named or said.subgroup not in _KINDS or _LEFT_OUT.search(icon):
            continue
        category, stance = _KINDS[said.subgroup]
        label = said.label.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        synonyms = _synonyms(said, uses) if category in ("animals", "food", "plants", "things") else ()
        names = tuple(name for name in (label, *synonyms) if name not in taken)
        if not names or names[0] != label:
            continue
        taken.update(names)
        yield _Row(icon, names, category, stance, frozenset(["plural"] if names[0].endswith("s") else []))


def _synonyms(said: Emoji, uses: Counter[str]) -> Iterator[str]:
    """Words said of this emoji and no other, that can stand for the thing."""
    for tag in said.tags:
        if uses[tag] == 1 and not _NO_SYNONYM.fullmatch(tag) and tag not in said.label:
            yield tag


def slug(label: str) -> str:
    """A label as the icon set spells it: "mother's hat" is "mothers-hat"."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"['’.!“”]", "", label.lower())).strip("-")  # noqa: RUF001
