"""Cut the full reference set down to the copies in `golden/`: `python -m tests.reference.cut_goldens FOLDER`.

FOLDER is the reference's own `golden/`. What stays is exactly as recorded; what goes is told by `CUTS`. Images go, and
with them all that needs the shared encoder and decoder, whose weights are too large for the repository: copies check
the quantiser, the rotary positions, the transformer, the filters and the scale loop, not the convolutional network. Of
the JSON files the descriptions of tensors go.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

THROUGH_THE_NETWORK = r"in/img|out/rec.*|out/total_c2i|out/grad_total_c2i/.*|out/grad_vq_.*/(encoder|quant_conv)\..*"
CUTS = {  # case: regular expression of the tensors that go
    "rope": r"(in|out)/[3-9]/.*",
    "sampling": r"",  # none
    "upscale": r"",
    "vqvae_share4": THROUGH_THE_NETWORK,
    "vqvae_share1": THROUGH_THE_NETWORK,
    "vqvae_share0": THROUGH_THE_NETWORK,
    "vqvae_share4_ten_scales": THROUGH_THE_NETWORK,
    "star_forward_rope": r"",  # none
    "star_forward_token_drop": r"out/.*/logits",  # the loss is made of them
    "star_infer_256style": r"out/.*/img|out/(b2_.*|cfg4_per_sample)/raw/.*",  # guided logits are made of the raw ones
    "star_sampler_1024": r"out/img|out/step_raw/./[1-4]",  # those of step 0: of the ordinary head, which runs once
    "var_adaln": r"out/.*/(img|raw/.*|hidden/.*)",
}
WHOLE = ["mask_schedule.json", "phi_selection.json"]


def cut(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name, gone in CUTS.items():
        tensors = load_file(source / f"{name}.safetensors")
        kept = {key: tensor for key, tensor in tensors.items() if not re.fullmatch(gone, key)}
        save_file(kept, target / f"{name}.safetensors")
        facts = json.loads((source / f"{name}.json").read_text())
        facts.pop("tensors", None)
        if name == "rope":
            facts["configurations"] = [one for one in facts["configurations"] if f"out/{one['index']}/table_re" in kept]
        (target / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    for name in WHOLE:
        shutil.copyfile(source / name, target / name)


if __name__ == "__main__":
    cut(Path(sys.argv[1]), Path(__file__).parent / "golden")
