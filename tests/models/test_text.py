"""Text encoders: what they give, whatever the batch, the prompt or the library; and what they say when they cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from star_cli.errors import TextEncoderError
from star_cli.models.config import TextEncoderConfig
from star_cli.models.text import TextEncoder, load_text_encoder
from star_cli.models.text_clip import ClipTextEncoder
from star_cli.models.text_open_clip import OpenClipTextEncoder, save_open_clip_text
from star_cli.models.text_t5 import clean_caption

WIDTH, TOKENS = 16, 12
OPEN_CLIP = TextEncoderConfig(kind="open_clip", width=WIDTH, max_tokens=TOKENS)
CLIP = TextEncoderConfig(kind="clip", width=WIDTH, max_tokens=TOKENS)
T5 = TextEncoderConfig(kind="t5", width=WIDTH, max_tokens=TOKENS, pooling="mean_with_padding")
OPEN_CLIP_MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": TOKENS, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 2},
}
STRANGE_PROMPTS = (
    "",
    "   \n\t ",
    "\x00\x01\x1b[31m",
    "🎨🖼️ 👩‍🚀",
    "一只红色的圆圈在蓝色的正方形左边",
    "lone \ud83d surrogate",
    "bytes \udcff\udcfe",
    "<|endoftext|> <end_of_text> </s>",
    "a" * 5000,
)


def open_clip_folder(folder: Path) -> nn.Module:
    import open_clip

    torch.manual_seed(1)
    clip = open_clip.CLIP(**OPEN_CLIP_MODEL).eval()
    save_open_clip_text(clip, OPEN_CLIP_MODEL, folder / "text_encoder", dtype=torch.float32)
    return clip


def clip_folder(folder: Path, end_id: int | None = None, pad: str = "!") -> None:
    """A tiny tower in the layout of Stable Diffusion; its alphabet is bytes, so that every text has tokens."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())  # "!" comes first: id 0, as in CLIP
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: index for index, word in enumerate(words)}
    CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad).save_pretrained(folder / "tokenizer")
    torch.manual_seed(2)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = CLIPTextConfig(
        vocab_size=len(vocab), max_position_embeddings=TOKENS, eos_token_id=end_id or len(vocab) - 1, **sizes
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


def t5_folder(folder: Path) -> None:
    """A tiny encoder whose tokens are letters."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz.,"]
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    T5Tokenizer(vocab=[*specials, *letters], extra_ids=0).save_pretrained(folder / "tokenizer")
    torch.manual_seed(3)
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    T5EncoderModel(T5Config(vocab_size=32, **sizes)).save_pretrained(folder / "text_encoder")


@pytest.fixture(scope="module", params=["open_clip", "clip", "t5"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "open_clip":
        open_clip_folder(folder)
        return load_text_encoder(OPEN_CLIP, folder)
    {"clip": clip_folder, "t5": t5_folder}[request.param](folder)
    return load_text_encoder(replace(CLIP if request.param == "clip" else T5, source=str(folder)))


# Every encoder


def test_encoding_has_the_shapes_and_types_of_a_condition(encoder: TextEncoder) -> None:
    condition = encoder.encode(["a red circle", "", "a red circle"])
    assert condition.pooled.shape == (3, WIDTH)
    assert condition.states.shape == (3, TOKENS, WIDTH)
    assert condition.mask.shape == (3, TOKENS)
    assert condition.pooled.dtype == condition.states.dtype == torch.float32
    assert condition.mask.dtype == torch.bool
    assert not condition.pooled.requires_grad
    assert torch.equal(condition.states[0], condition.states[2])


def test_encoding_does_not_depend_on_the_batch(encoder: TextEncoder) -> None:
    prompts = ["a red star", "a", "", "many more words than the tower reads in one go", "a red star"]
    together = encoder.encode(prompts)
    for row, prompt in enumerate(prompts):
        alone = encoder.encode([prompt])
        assert torch.equal(alone.pooled[0], together.pooled[row])
        assert torch.equal(alone.states[0], together.states[row])
        assert torch.equal(alone.mask[0], together.mask[row])
    in_one_pass = encoder.encode(prompts, rows=8)
    torch.testing.assert_close(in_one_pass.states, together.states, rtol=0, atol=1e-5)


def test_empty_prompt_keeps_the_marks_of_start_and_end(encoder: TextEncoder) -> None:
    marks = 1 if encoder.config.kind == "t5" else 2
    condition = encoder.encode([""])
    assert condition.mask.sum() == marks
    assert encoder.words_cut("") == ""
    assert condition.pooled.isfinite().all()


def test_no_prompts_give_an_empty_condition(encoder: TextEncoder) -> None:
    assert encoder.encode([]).states.shape == (0, TOKENS, WIDTH)


def test_one_string_is_no_list_of_prompts(encoder: TextEncoder) -> None:
    with pytest.raises(TypeError, match="list of prompts"):
        encoder.encode("a cat")


@pytest.mark.parametrize("prompt", STRANGE_PROMPTS, ids=range(len(STRANGE_PROMPTS)))
def test_strange_prompt_is_encoded(encoder: TextEncoder, prompt: str) -> None:
    condition = encoder.encode([prompt])
    assert condition.pooled.isfinite().all()
    assert condition.mask.any()
    encoder.words_cut(prompt)


def test_words_cut_are_those_past_the_limit(encoder: TextEncoder) -> None:
    marks = 1 if encoder.config.kind == "t5" else 2
    per_word = encoder._count_tokens("x x") - encoder._count_tokens("x")
    fit = (TOKENS - marks) // per_word
    assert encoder.words_cut(" ".join(["x"] * fit)) == ""
    assert encoder.words_cut(" ".join(["x"] * fit) + "  y,\n z ") == "y,\n z"


@pytest.mark.parametrize("prompt", ["red blue " * 2200, "圆" * 20_000, "qzjxk" * 4000, "🎨" * 20_000, "\x07 " * 10_000])
def test_very_long_prompt_is_cut(encoder: TextEncoder, prompt: str) -> None:
    encoder.encode([prompt])
    cut = encoder.words_cut(prompt)
    assert prompt.rstrip().endswith(cut)
    # bells are no tokens to CLIP, and the tiny T5 takes any run of unknown signs as one token: there all of it is read
    assert len(cut) > 19_000 or "\x07" in prompt or (encoder.config.kind == "t5" and not prompt.isascii())


def test_cut_words_do_not_reach_the_features(encoder: TextEncoder) -> None:
    prompt = "a b c d e f g h i j k l m n o p"
    cut = encoder.words_cut(prompt)
    read = prompt.removesuffix(cut)
    assert cut
    assert torch.equal(encoder.encode([prompt]).states, encoder.encode([read + "x y z " * 10]).states)


def test_wrong_width_is_refused(encoder: TextEncoder, tmp_path: Path) -> None:
    makers: dict[str, Callable[[Path], Any]] = {"open_clip": open_clip_folder, "clip": clip_folder, "t5": t5_folder}
    makers[encoder.config.kind](tmp_path)
    source = str(tmp_path / "text_encoder") if encoder.config.kind == "open_clip" else str(tmp_path)
    with pytest.raises(TextEncoderError, match="is 16 wide, expected 24"):
        load_text_encoder(replace(encoder.config, source=source, width=24))


@pytest.mark.parametrize("config", [OPEN_CLIP, CLIP, T5], ids=lambda config: config.kind)
def test_missing_folder_says_what_to_place_where(config: TextEncoderConfig, tmp_path: Path) -> None:
    with pytest.raises(TextEncoderError, match=r"folder .*text_encoder is missing") as caught:
        load_text_encoder(config, tmp_path)
    assert caught.value.hint is not None
    (tmp_path / "text_encoder").mkdir()
    with pytest.raises(TextEncoderError, match=r"has no .*config\.json") as caught:
        load_text_encoder(config, tmp_path)
    assert caught.value.hint is not None
    assert "must hold" in caught.value.hint


# The two tests of hub names rely on HF_HUB_OFFLINE=1 of tests/conftest.py; without it they would wait for the network.


@pytest.mark.parametrize("config", [CLIP, T5], ids=lambda config: config.kind)
def test_hub_name_offline_says_what_to_do(config: TextEncoderConfig) -> None:
    with pytest.raises(TextEncoderError, match="nobody/nothing cannot be loaded") as caught:
        load_text_encoder(replace(config, source="nobody/nothing"))
    assert caught.value.hint is not None
    assert "folder" in caught.value.hint


# CLIP: one maths, two libraries


class FixedTokens:
    """Stands for either tokenizer: rows of tokens that end with the largest id and are padded with zeros."""

    def __init__(self, tokens: Tensor):
        self.tokens = tokens

    def __call__(self, texts: list[str], **options: Any) -> Any:
        from transformers import BatchEncoding

        if "context_length" in options:
            return self.tokens
        end = self.tokens.argmax(dim=1)
        mask = (torch.arange(self.tokens.shape[1]) <= end[:, None]).long()
        return BatchEncoding({"input_ids": self.tokens, "attention_mask": mask})


def hugging_face_names(tensors: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """The tensors of an open_clip text tower under transformers' names."""
    named = {
        "embeddings.token_embedding.weight": tensors["token_embedding.weight"],
        "embeddings.position_embedding.weight": tensors["positional_embedding"],
        "final_layer_norm.weight": tensors["ln_final.weight"],
        "final_layer_norm.bias": tensors["ln_final.bias"],
    }
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    parts["attn.out_proj"] = "self_attn.out_proj"
    for block in range(blocks):
        theirs, ours = f"transformer.resblocks.{block}.", f"encoder.layers.{block}."
        for kind in ("weight", "bias"):
            for old, new in parts.items():
                named[f"{ours}{new}.{kind}"] = tensors[f"{theirs}{old}.{kind}"]
            fused = tensors[f"{theirs}attn.in_proj_{kind}"].chunk(3)
            named.update({f"{ours}self_attn.{n}_proj.{kind}": t for n, t in zip("qkv", fused, strict=True)})
    return named


@pytest.mark.parametrize("dropped_by", ["both towers", "a shorter tower", "none"])
def test_open_clip_and_transformers_agree(dropped_by: str) -> None:
    """Stable Diffusion 2.1 stores open_clip's ViT-H-14 without its last block, in transformers' layout."""
    from open_clip.transformer import TextTransformer
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(4)
    theirs = TextTransformer(context_length=TOKENS, vocab_size=99, width=WIDTH, heads=2, layers=3, output_dim=8).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    blocks = 2 if dropped_by == "a shorter tower" else 3
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 2, "vocab_size": 99}
    same = CLIPTextModel(
        CLIPTextConfig(
            num_hidden_layers=blocks, max_position_embeddings=TOKENS, hidden_act="gelu", eos_token_id=2, **sizes
        )
    )
    same.load_state_dict(hugging_face_names(theirs.state_dict(), blocks), strict=False)
    tokens = torch.tensor([[97, 5, 6, 7, 98] + [0] * 7, [97, 98] + [0] * 10, [97, *range(3, 13), 98]])
    dropped = 0 if dropped_by == "none" else 1
    ours = OpenClipTextEncoder(replace(OPEN_CLIP, drop_last_blocks=dropped), theirs, FixedTokens(tokens))
    other = ClipTextEncoder(replace(CLIP, drop_last_blocks=dropped - (3 - blocks)), same, FixedTokens(tokens))
    first, second = (encoder.encode(["x", "y", "z"], rows=3) for encoder in (ours, other))
    assert torch.equal(first.mask, second.mask)
    torch.testing.assert_close(first.pooled, second.pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(first.states[first.mask], second.states[second.mask], rtol=0, atol=1e-5)


def test_pooled_is_the_state_at_the_end_of_text(tmp_path: Path) -> None:
    open_clip_folder(tmp_path)
    condition = load_text_encoder(OPEN_CLIP, tmp_path).encode(["a red circle", "a red circle " * 9])
    for row in range(2):
        end = int(condition.mask[row].sum()) - 1
        assert torch.equal(condition.pooled[row], condition.states[row, end])


@pytest.mark.parametrize("pad", ["!", "<|endoftext|>"])
@pytest.mark.parametrize("end_id", [2, None], ids=["legacy id", "own id"])
def test_clip_finds_the_end_of_text(tmp_path: Path, pad: str, end_id: int | None) -> None:
    clip_folder(tmp_path, end_id, pad)
    condition = load_text_encoder(replace(CLIP, source=str(tmp_path))).encode(["a red!", "far too long a prompt"])
    assert condition.mask.sum(dim=1).tolist() == [7, TOKENS]
    assert torch.equal(condition.pooled[0], condition.states[0, 6])
    assert torch.equal(condition.pooled[1], condition.states[1, -1])


def test_clip_reads_flat_folders_and_the_names_of_old_files(tmp_path: Path) -> None:
    clip_folder(tmp_path)
    expected = load_text_encoder(replace(CLIP, source=str(tmp_path))).encode(["a cat"])
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (*(tmp_path / "tokenizer").iterdir(), *(tmp_path / "text_encoder").iterdir()):
        (flat / file.name).write_bytes(file.read_bytes())
    new_names = load_file(flat / "model.safetensors").items()
    tensors = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in new_names}
    tensors["text_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
    save_file(tensors, flat / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(load_text_encoder(clip_in(flat)).encode(["a cat"]).states, expected.states)


def clip_in(folder: Path) -> TextEncoderConfig:
    return replace(CLIP, source=str(folder))


def test_tower_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    clip_folder(tmp_path)
    file = tmp_path / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    lost = next(key for key in tensors if key.endswith("final_layer_norm.bias"))
    save_file({key: value for key, value in tensors.items() if key != lost}, file, metadata={"format": "pt"})
    with pytest.raises(TextEncoderError, match=r"lacks .*final_layer_norm\.bias"):
        load_text_encoder(clip_in(tmp_path))


def test_loading_writes_nothing_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clip_folder(tmp_path)
    capfd.readouterr()
    encoder = load_text_encoder(clip_in(tmp_path))
    encoder.words_cut("long " * 200)
    assert capfd.readouterr() == ("", "")


# open_clip folders


def test_saved_tower_gives_the_features_of_the_trained_one(tmp_path: Path) -> None:
    clip = open_clip_folder(tmp_path)
    encoder = load_text_encoder(OPEN_CLIP, tmp_path)
    prompts = ["a red circle", ""]
    with torch.no_grad():
        expected = clip.encode_text(encoder.tokenizer(prompts, context_length=TOKENS))
    torch.testing.assert_close(encoder.encode(prompts).pooled @ clip.text_projection, expected, rtol=0, atol=1e-6)
    save_open_clip_text(clip, OPEN_CLIP_MODEL, tmp_path / "half")
    half = load_text_encoder(replace(OPEN_CLIP, source="half"), tmp_path)
    assert half.encode(prompts).pooled.dtype == torch.float32
    torch.testing.assert_close(half.encode(prompts).pooled, encoder.encode(prompts).pooled, rtol=0, atol=1e-2)


def test_open_clip_reads_the_saved_folder(tmp_path: Path) -> None:
    import open_clip

    clip = open_clip_folder(tmp_path)
    folder = tmp_path / "text_encoder"
    assert open_clip.get_tokenizer(f"local-dir:{folder}").context_length == TOKENS
    fresh = open_clip.CLIP(**json.loads((folder / "open_clip_config.json").read_text())["model_cfg"])
    outcome = open_clip.load_checkpoint(fresh, str(folder / "open_clip_model.safetensors"), strict=False)
    assert all(key.startswith("visual.") or key == "logit_scale" for key in outcome.missing_keys)
    assert not outcome.unexpected_keys
    assert torch.equal(fresh.token_embedding.weight, clip.token_embedding.weight)


def test_shorter_context_gives_the_same_states(tmp_path: Path) -> None:
    open_clip_folder(tmp_path)
    long = load_text_encoder(OPEN_CLIP, tmp_path).encode(["a cat"])
    short = load_text_encoder(replace(OPEN_CLIP, max_tokens=6), tmp_path).encode(["a cat"])
    torch.testing.assert_close(short.states[:, :4], long.states[:, :4], rtol=0, atol=1e-6)
    with pytest.raises(TextEncoderError, match="reads 12 tokens, not 77"):
        load_text_encoder(replace(OPEN_CLIP, max_tokens=77), tmp_path)


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "open_clip_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "open_clip_model.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("ln_final.bias"), "lacks ln_final.bias"),
        (lambda tensors: tensors.update({"transformer.x": torch.ones(1)}), "do not belong: transformer.x"),
        (lambda tensors: tensors.update({"ln_final.bias": torch.ones(3)}), r"ln_final.bias is \(3,\), expected \(16"),
    ],
    ids=["missing", "foreign", "shape"],
)
def test_damaged_folder_is_refused_by_name(tmp_path: Path, change: Callable[..., Any], said: str) -> None:
    open_clip_folder(tmp_path)
    change_tensors(tmp_path / "text_encoder", change)
    with pytest.raises(TextEncoderError, match=said):
        load_text_encoder(OPEN_CLIP, tmp_path)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    open_clip_folder(tmp_path)
    file = tmp_path / "text_encoder" / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TextEncoderError, match="cannot be read"):
        load_text_encoder(OPEN_CLIP, tmp_path)


def test_other_kind_of_tower_is_refused(tmp_path: Path) -> None:
    open_clip_folder(tmp_path)
    file = tmp_path / "text_encoder" / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["text_cfg"]["embed_cls"] = True
    file.write_text(json.dumps(config))
    with pytest.raises(TextEncoderError, match=r"no plain CLIP tower.*embed_cls"):
        load_text_encoder(OPEN_CLIP, tmp_path)


def test_hub_form_reads_only_the_text_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    clip = open_clip_folder(tmp_path)
    tensors = clip.state_dict().items()
    whole = {key if key.startswith(("visual", "logit")) else f"text.{key}": value for key, value in tensors}
    save_file(whole, tmp_path / "whole.safetensors")
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: dict(OPEN_CLIP_MODEL))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"hf_hub": "x/y"})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: str(tmp_path / "whole.safetensors"))
    fetched = load_text_encoder(replace(OPEN_CLIP, source="Tiny:ours")).encode(["a cat"])
    assert torch.equal(fetched.states, load_text_encoder(OPEN_CLIP, tmp_path).encode(["a cat"]).states)


@pytest.mark.parametrize("source", ["ViT-H-14", "ViT-H-14:nothing", "nothing:laion2b_s32b_b79k"])
def test_unknown_hub_form_is_refused(source: str) -> None:
    with pytest.raises(TextEncoderError, match="open_clip has no model") as caught:
        load_text_encoder(replace(OPEN_CLIP, source=source))
    assert "ViT-H-14:laion2b_s32b_b79k" in str(caught.value.hint)


def test_hub_form_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TextEncoderError, match="cannot be fetched") as caught:
        load_text_encoder(replace(OPEN_CLIP, source="ViT-H-14:laion2b_s32b_b79k", width=1024, max_tokens=77))
    assert "open_clip_model.safetensors" in str(caught.value.hint)


# T5


def test_t5_pools_over_the_padding_too(tmp_path: Path) -> None:
    t5_folder(tmp_path)
    encoder = load_text_encoder(replace(T5, source=str(tmp_path)))
    condition = encoder.encode(["a cat"])
    assert condition.mask.sum() == 7  # "▁", "a", "▁", "c", "a", "t" and the end
    torch.testing.assert_close(condition.pooled, condition.states.mean(dim=1), rtol=0, atol=0)
    at_end = load_text_encoder(replace(T5, source=str(tmp_path), pooling="end_of_text")).encode(["a cat"])
    assert torch.equal(at_end.pooled, condition.states[:, 6])


def test_captions_are_cleaned_when_the_config_says_so(tmp_path: Path) -> None:
    t5_folder(tmp_path)
    plain = load_text_encoder(replace(T5, source=str(tmp_path), clean_captions=True))
    assert torch.equal(plain.encode(["A <b>cat</b> www.x.org"]).states, plain.encode(["a cat"]).states)


@pytest.mark.parametrize(
    ("caption", "clean"),
    [
        ("A small red circle, left of a blue square.", "a small red circle, left of a blue square"),
        ("See https://example.org/x?y=1 for a CAT!!!", "see for a cat!"),
        ("&lt;b&gt;bold&lt;/b&gt; &amp;amp; plain", "bold & plain"),
        ("IMG_1234.jpg of a dog — by @someone #dogs 1024x768", "of a dog - by"),
        ("\u201cquoted\u201d \u2018words\u2019 ★★ 12345678", "quoted\" 'words"),
        ("mail me@example.org", "mail"),
        ("猫在桌子上", "猫在桌子上"),
        ("", ""),
    ],
)
def test_cleaning_leaves_plain_words(caption: str, clean: str) -> None:
    assert clean_caption(caption) == clean


def test_cleaning_twice_is_cleaning_once_for_plain_words() -> None:
    once = clean_caption("An old photo (1920) of 3 dogs & a 50% off sign")
    assert once == clean_caption(once)
