"""Classes by number and by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from star_cli.classes import find_class
from star_cli.errors import OptionError


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("207", 207),
        (" 0 ", 0),
        ("golden retriever", 207),
        ("Golden  Retriever", 207),
        ("golden ret", 207),
        ("tench", 0),
        ("Tinca tinca", 0),
        ("tench, Tinca tinca", 0),
    ],
)
def test_class_is_found_by_number_name_synonym_and_beginning(text: str, label: int) -> None:
    assert find_class(text, 1000) == label


@pytest.mark.parametrize(
    ("text", "sentence", "hint"),
    [
        ("1000", "--class must be a number from 0 to 999 or a name, not 1000", None),
        ("-1", "--class must be a number from 0 to 999 or a name, not -1", None),
        ("crane", "--class 'crane' may be 134 (crane), 517 (crane)", "give the number of one of them"),
        ("great white", "--class 'great white' may be", "give the number"),
        ("goldn retriever", "--class 'goldn retriever' is no class of this model", "golden retriever"),
        ("retriever", "--class 'retriever' is no class of this model", "labrador retriever"),
        ("xyzzy", "--class 'xyzzy' is no class of this model", "give the number or a name"),
        ("", "--class '' is no class of this model", "give the number or a name"),
    ],
)
def test_what_is_no_class_is_refused_with_what_is_near(text: str, sentence: str, hint: str | None) -> None:
    with pytest.raises(OptionError) as caught:
        find_class(text, 1000)
    assert sentence in str(caught.value)
    assert (hint or "") in str(caught.value.hint or "")


def test_names_are_those_of_imagenet_alone() -> None:
    assert find_class("7", 10) == 7
    with pytest.raises(OptionError, match="names are known for the 1000 classes of ImageNet, not for 10"):
        find_class("tench", 10)


def test_a_number_imports_no_names() -> None:
    code = (
        "import sys; from star_cli.classes import find_class; find_class('7', 1000); assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
