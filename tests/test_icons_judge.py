import random
from pathlib import Path

import pytest
import torch

from benchmarks.icons_judge import Lesson, judge, lesson, loss_of, scores, train
from benchmarks.icons_network import Eye, EyeConfig
from benchmarks.icons_prompts import SYNONYMS, WANTED, Asked, prompts, synonyms
from benchmarks.thinned import thinned
from star_cli.data.icons.backgrounds import BACKGROUNDS
from star_cli.data.icons.catalogue import Catalogue, open_catalogue
from star_cli.data.icons.compose import compose_tensor
from star_cli.data.icons.fetch import icons_root
from star_cli.data.icons.layout import IconScene, Item
from star_cli.data.icons.scenes import is_held_out
from star_cli.errors import OptionError
from tests.data.icons.conftest import icon_folder  # noqa: F401 - a fixture

pytest.importorskip("resvg_py")

REAL = sorted(icons_root().glob("set-*.zip"))  # asked before tests get a cache of their own


@pytest.fixture
def catalogue(icon_folder: Path) -> Catalogue:  # noqa: F811
    return open_catalogue(icon_folder, objects=0)


@pytest.fixture
def real() -> Catalogue:
    if not REAL:
        pytest.skip("the icon package is not in the cache")
    return open_catalogue(REAL[0])


def test_prompts_show_what_training_never_saw(catalogue: Catalogue) -> None:
    asked = prompts(catalogue)
    assert asked == prompts(catalogue)
    assert len({one.prompt for one in asked}) == len(asked) == sum(WANTED.values())
    for kind, wanted in WANTED.items():
        assert sum(one.kind == kind for one in asked) == wanted
    for one in asked:
        assert one.scene is not None
        assert any(map(is_held_out, one.scene.pairs))
        assert 1 <= one.number <= 3
        assert (one.counts, one.background) == (one.scene.counts, one.scene.background)


def test_synonyms_are_no_words_of_icons(catalogue: Catalogue) -> None:
    asked = synonyms(catalogue)
    words = {one.prompt for one in asked}
    assert "a puppy" in words
    assert not words & {"a cat", "a whole cat", "an apple", "a red apple"}


def test_lessons_follow_from_their_step_and_tell_the_truth(catalogue: Catalogue) -> None:
    batch = lesson(catalogue, 3, batch_size=6)
    again = lesson(catalogue, 3, batch_size=6)
    assert torch.equal(batch.pixels, again.pixels)
    assert batch.things.sum(1).min() >= 1
    assert (batch.number + 1 >= batch.things.sum(1)).all()


def test_the_loss_is_least_where_the_answers_are_right(catalogue: Catalogue) -> None:
    eye = Eye(EyeConfig(catalogue.keys, BACKGROUNDS, width=4)).eval()
    batch = lesson(catalogue, 0, batch_size=4)
    seen = eye(batch.pixels)
    right = type(seen)(
        20 * batch.things - 10,
        20.0 * torch.nn.functional.one_hot(batch.number, 4),
        20.0 * torch.nn.functional.one_hot(batch.ground, len(BACKGROUNDS)),
        seen.features,
    )
    assert loss_of(right, batch) < 1.0 < loss_of(seen, batch)
    wrong = Lesson(batch.pixels, batch.things.roll(1, 1), batch.number, batch.ground)
    assert loss_of(right, wrong) > 10


def test_a_judge_learns_and_goes_on_where_it_was(catalogue: Catalogue, tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "judge.safetensors"
    train(catalogue, path, 1, 5, "cpu", said.append)
    first = Eye.load(path)
    train(catalogue, path, 2, 5, "cpu", said.append)
    second = Eye.load(path)
    assert torch.load(path.with_suffix(".state"), weights_only=True)["step"] == 2
    assert not torch.equal(first.things.weight, second.things.weight)
    assert second.config.keys == catalogue.keys


def test_a_judge_of_other_objects_is_not_gone_on_with(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    Eye(EyeConfig(catalogue.keys[::-1], BACKGROUNDS, width=4)).save(path)
    before = path.read_bytes()
    with pytest.raises(OptionError, match="trained on other objects"):
        train(catalogue, path, 1, 5, "cpu", print)
    assert path.read_bytes() == before


class _Oracle(torch.nn.Module):
    """Answers that are given."""

    def __init__(self, seen: object, config: EyeConfig):
        super().__init__()
        self.seen, self.config = seen, config

    def forward(self, pixels: torch.Tensor) -> object:
        return self.seen


def test_verdicts_compare_what_is_seen_with_what_was_asked() -> None:
    config = EyeConfig(("cat", "dog", "key"), BACKGROUNDS)
    things = torch.tensor([[3.0, 1.0, -2.0], [3.0, 1.0, -2.0], [3.0, 1.0, -2.0]])
    number = torch.tensor([[5.0, 0, 0, 0], [0, 5.0, 0, 0], [0, 5.0, 0, 0]])
    ground = torch.zeros(3, len(BACKGROUNDS))
    ground[:, BACKGROUNDS.index("grass")] = 1
    from benchmarks.icons_network import Seen

    eye = _Oracle(Seen(things, number, ground, torch.zeros(3, 2)), config)
    asked = [
        Asked("one", "a cat on grass", {"cat": 1}, "grass"),
        Asked("two", "a dog and a cat", {"dog": 1, "cat": 1}, "white"),
        Asked("counted", "two dogs on grass", {"dog": 2}, "grass"),
    ]
    verdicts, _ = judge(eye, torch.zeros(3, 3, 8, 8), asked)  # type: ignore[arg-type]
    assert [(one.things_ok, one.number_ok, one.background_ok) for one in verdicts] == [
        (True, True, True),
        (True, True, False),
        (False, True, True),
    ]
    told = scores(zip(asked, verdicts, strict=True))
    assert (told["one_object"], told["two_objects"]) == (100.0, 100.0)
    assert (told["number"], told["number_and_object"]) == (100.0, 0.0)
    assert told["background"] == pytest.approx(66.7)


@pytest.mark.slow
def test_the_real_icons_compose_and_have_a_hundred_synonyms(real: Catalogue) -> None:
    assert len(real.objects) == 400
    assert len(synonyms(real)) == SYNONYMS
    rng = random.Random(0)
    for thing in rng.sample(real.objects, 5):
        pixels = compose_tensor(real, IconScene("green", 0, (Item(thing.key, 0.5, 0.5, 0.68),)), 64)
        ground = compose_tensor(real, IconScene("green", 0, ()), 64)
        assert (pixels - ground).abs().mean() > 0.03, thing.key


@pytest.mark.parametrize(("length", "limit", "kept"), [(9, 3, [0, 3, 6]), (859, 287, None), (4, 9, [0, 1, 2, 3])])
def test_a_thinned_list_is_spread_over_the_whole(length: int, limit: int, kept: list[int] | None) -> None:
    found = thinned(range(length), limit)
    assert found == kept if kept else (len(found) == limit and found[-1] >= length - 3)
    assert thinned(range(length), None) == list(range(length))
