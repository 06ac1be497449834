"""The catalogue's entries: sizes, input, licence and source of every encoder that has a name here.

Numbers are those that the authors publish (model cards, code, checkpoints); the tests hold the timm models' sizes and
parameter counts against timm. Licences are of the weights; read them where the weights lie before you rely on one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slideloom.config.encoder_entry import EncoderEntry
from slideloom.config.model import NormalisationConfig

__all__ = ["ANY", "ENTRIES"]

#: Stands for a model's own name.
ANY = "<name>"
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_OPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
#: What is meant by 20 times, µm per pixel.
_X20 = (0.40, 0.60)
#: From 5 to 40 times.
_X5_TO_X40 = (0.20, 2.40)
_CELLVIT = "https://github.com/TIO-IKIM/CellViT"
_CELLVIT_PP = "https://github.com/TIO-IKIM/CellViT-plus-plus"
_SAM = "https://github.com/facebookresearch/segment-anything"
_CELLVIT_LICENCE = "CellViT: Apache-2.0 with Commons Clause, PanNuke CC BY-NC-SA 4.0"
_NC_ND = "CC BY-NC-ND 4.0"
_TERMS = "agree to the terms on the model's page"
_SWIGLU = {"mlp_layer": "swiglu_packed", "act_layer": "silu"}


def _virtues(name: str, summary: str, licence: str, **more: Any) -> EncoderEntry:
    about: dict[str, Any] = {
        "token_px": 8,
        "width": 512,
        "depth": 16,
        "heads": 8,
        "params": 34_008_064,
        "tile_px": 128,
        "mpp_um": (0.9, 1.1),
        "files": (f"{name.replace('/', '-')}/model.safetensors",),
        "source": "https://huggingface.co/bunnelab/virtues",
    }
    return EncoderEntry(
        name,
        "virtues",
        "markers",
        summary,
        embedding=True,
        # Clipped at each image's own quantile, then the mean and deviation of the training set.
        normalisation=NormalisationConfig(scope="training", clip="slide", clip_quantile=0.99, log1p=True),
        licence=licence,
        **(about | more),
    )


def _cellvit(
    arch: str, summary: str, width: int | None, depth: int | None, heads: int | None, **more: Any
) -> EncoderEntry:
    about: dict[str, Any] = {"token_px": 16, "tile_px": 256, "mean": _HALF[0], "std": _HALF[1]}
    sizes: dict[str, Any] = {"width": width, "depth": depth, "heads": heads}
    return EncoderEntry(f"cellvit/{arch}", "cellvit", "rgb", summary, arch=arch, **(about | sizes | more))


def _timm(
    name: str,
    summary: str,
    hub: str,
    arch: str,
    settings: Mapping[str, Any],
    sizes: tuple[int, int, int, int],
    **more: Any,
) -> EncoderEntry:
    """``sizes``: width, depth, heads, parameters."""
    width, depth, heads, params = sizes
    about: dict[str, Any] = {
        "token_px": 14,
        "prefix_tokens": 1,
        "tile_px": 224,
        "mpp_um": _X20,
        "source": f"https://huggingface.co/{hub}",
        "files": tuple(f"{hub.split('/')[1]}/{file}" for file in ("pytorch_model.bin", "model.safetensors")),
    }
    return EncoderEntry(
        name,
        "timm",
        "rgb",
        summary,
        arch=arch,
        settings={"img_size": 224, **settings},
        width=width,
        depth=depth,
        heads=heads,
        params=params,
        **(about | more),
    )


_MARKERS = (
    EncoderEntry(
        "mean_marker",
        "mean_marker",
        "markers",
        "mean of each normalised marker in squares of patch_px (8 or 16): the baseline",
        weights=False,
        token_px=8,
        free_token=True,
        depth=1,
        params=0,
        normalisation=NormalisationConfig(scope="training", clip="training", clip_quantile=0.999, log1p=True),
        source="Slideloom",
    ),
    EncoderEntry(
        "mean_rgb",
        "mean_marker",
        "rgb",
        "mean of red, green and blue in squares of patch_px (8 or 16): the baseline of RGB, and for networks that read "
        "the image alone",
        weights=False,
        token_px=8,
        free_token=True,
        width=3,
        depth=1,
        params=0,
        mean=_HALF[0],
        std=_HALF[1],
        source="Slideloom",
    ),
    _virtues(
        "virtues",
        "VirTues of any published key scheme; sizes are read from the checkpoint",
        "of the weights",
        files=("model.safetensors",),
    ),
    _virtues("virtues/sp31", "VirTues trained on 31 spatial proteomics sets", "MIT"),
    _virtues("virtues/sp32", "VirTues trained on 32 spatial proteomics sets", "CC BY-NC 4.0"),
    _virtues("virtues/imc14", "VirTues trained on 14 imaging mass cytometry sets", "CC BY-NC 4.0"),
    _virtues(
        "virtues/tiny",
        "VirTues with 8 blocks of width 64: for tests and demonstrations, there are no published weights",
        "none",
        width=64,
        depth=8,
        heads=4,
        params=313_216,
        source="Slideloom",
        files=(),
        tile_px=None,
        mpp_um=None,
    ),
)

_CELLVITS = (
    _cellvit(
        "vit256",
        "ViT-256 (ViT-S/16): of a CellViT, or the plain DINO file of HIPT",
        384,
        12,
        6,
        params=21_665_664,
        prefix_tokens=1,
        licence=f"{_CELLVIT_LICENCE}; HIPT: Apache-2.0 with Commons Clause",
        source=f"{_CELLVIT}; https://github.com/mahmoodlab/HIPT",
        files=("CellViT-256-x40.pth", "CellViT-256-x20.pth", "CellViT-256-x40-AMP.pth", "vit256_small_dino.pth"),
    ),
    _cellvit(
        "sam_b",
        "image encoder of SAM-B: of a CellViT, of SAM or of MedSAM",
        768,
        12,
        12,
        tile_px=1024,
        params=88_883_456,
        licence="SAM, MedSAM: Apache-2.0",
        source=f"{_SAM}; https://github.com/bowang-lab/MedSAM",
        files=("sam_vit_b_01ec64.pth", "medsam_vit_b.pth"),
    ),
    _cellvit(
        "sam_l",
        "image encoder of SAM-L: of a CellViT or of SAM",
        1024,
        24,
        16,
        tile_px=1024,
        params=307_425_280,
        licence="SAM: Apache-2.0",
        source=_SAM,
        files=("sam_vit_l_0b3195.pth",),
    ),
    _cellvit(
        "sam_h",
        "image encoder of SAM-H: of a CellViT (trained at 256 px) or of SAM (1024 px)",
        1280,
        32,
        16,
        params=636_107_520,
        licence=f"{_CELLVIT_LICENCE}; SAM: Apache-2.0",
        source=f"{_CELLVIT}; {_SAM}",
        files=(
            "CellViT-SAM-H-x40.pth",
            "CellViT-SAM-H-x20.pth",
            "CellViT-SAM-H-x40-AMP.pth",
            "sam_vit_h_4b8939.pth",
        ),
    ),
    _cellvit(
        "uni",
        "UNI (ViT-L/16) as a CellViT++ holds it",
        1024,
        24,
        16,
        params=303_350_784,
        prefix_tokens=1,
        licence=f"UNI: {_NC_ND}",
        gated="agree to UNI's terms",
        source=_CELLVIT_PP,
    ),
    _cellvit(
        "virchow",
        "Virchow (ViT-H/14) as a CellViT++ holds it, with the GELU gate of its code",
        1280,
        32,
        16,
        token_px=14,
        params=631_229_184,
        prefix_tokens=1,
        licence="CellViT++: Apache-2.0 with Commons Clause, PanNuke CC BY-NC-SA 4.0; Virchow: Apache-2.0",
        gated="agree to Virchow's terms",
        source=_CELLVIT_PP,
        files=("CellViT-Virchow-x40-AMP.pth",),
    ),
    _cellvit(
        "virchow2",
        "Virchow2 (ViT-H/14, four registers) as a CellViT++ holds it, with the GELU gate of its code",
        1280,
        32,
        16,
        token_px=14,
        params=631_239_424,
        prefix_tokens=5,
        licence=f"Virchow2: {_NC_ND}",
        gated="agree to Virchow2's terms",
        source=_CELLVIT_PP,
    ),
    _cellvit(
        "vit",
        "a CellViT whose encoder has sizes of its own; they are read from the checkpoint",
        None,
        None,
        None,
        prefix_tokens=1,
        licence="of the weights",
        source=_CELLVIT,
    ),
)

_FOUNDATION = (
    _timm(
        "uni",
        "UNI: ViT-L/16, DINOv2 on 100,000 slides",
        "MahmoodLab/UNI",
        "vit_large_patch16_224",
        {"init_values": 1e-5},
        (1024, 24, 16, 303_350_784),
        token_px=16,
        licence=_NC_ND,
        gated=_TERMS,
    ),
    _timm(
        "uni2_h",
        "UNI2-h: ViT-H/14 with 8 registers, H&E and IHC",
        "MahmoodLab/UNI2-h",
        "vit_giant_patch14_224",
        {
            "embed_dim": 1536,
            "depth": 24,
            "num_heads": 24,
            "mlp_ratio": 2.66667 * 2,
            "init_values": 1e-5,
            "reg_tokens": 8,
            "no_embed_class": True,
            **_SWIGLU,
        },
        (1536, 24, 24, 681_394_176),
        prefix_tokens=9,
        licence=_NC_ND,
        gated=_TERMS,
    ),
    _timm(
        "virchow",
        "Virchow: ViT-H/14, DINOv2 on 1.5 million slides",
        "paige-ai/Virchow",
        "vit_huge_patch14_224",
        {"mlp_ratio": 5.3375, "init_values": 1e-5, **_SWIGLU},
        (1280, 32, 16, 631_229_184),
        licence="Apache-2.0",
        gated=_TERMS,
    ),
    _timm(
        "virchow2",
        "Virchow2: ViT-H/14 with 4 registers, 3.1 million slides at 5 to 40 times",
        "paige-ai/Virchow2",
        "vit_huge_patch14_224",
        {"mlp_ratio": 5.3375, "init_values": 1e-5, "reg_tokens": 4, **_SWIGLU},
        (1280, 32, 16, 631_239_424),
        prefix_tokens=5,
        mpp_um=_X5_TO_X40,
        licence=_NC_ND,
        gated=_TERMS,
    ),
    _timm(
        "h_optimus_0",
        "H-optimus-0: ViT-g/14 with 4 registers, 500,000 slides",
        "bioptimus/H-optimus-0",
        "vit_giant_patch14_reg4_dinov2",
        {"init_values": 1e-5},
        (1536, 40, 24, 1_134_774_272),
        prefix_tokens=5,
        mean=_OPTIMUS[0],
        std=_OPTIMUS[1],
        licence="Apache-2.0",
    ),
    _timm(
        "h_optimus_1",
        "H-optimus-1: ViT-g/14 with 4 registers, a million slides",
        "bioptimus/H-optimus-1",
        "vit_giant_patch14_reg4_dinov2",
        {"init_values": 1e-5},
        (1536, 40, 24, 1_134_774_272),
        prefix_tokens=5,
        mean=_OPTIMUS[0],
        std=_OPTIMUS[1],
        licence=_NC_ND,
        gated=_TERMS,
    ),
    _timm(
        "prov_gigapath",
        "Prov-GigaPath's tile encoder: ViT-g/16, 171,000 slides",
        "prov-gigapath/prov-gigapath",
        "vit_giant_patch14_dinov2",
        # The architecture's name says 14; the published model has tokens of 16 px.
        {"patch_size": 16},
        (1536, 40, 24, 1_134_953_984),
        token_px=16,
        licence="Apache-2.0 with conditions of use",
        gated=_TERMS,
        files=("prov-gigapath/pytorch_model.bin",),
    ),
    _timm(
        "h0_mini",
        "H0-mini: ViT-B/14 with 4 registers, distilled from H-optimus-0",
        "bioptimus/H0-mini",
        "vit_base_patch14_reg4_dinov2",
        {"mlp_ratio": 5.33334, "init_values": 1e-5, **_SWIGLU},
        (768, 12, 12, 85_739_520),
        prefix_tokens=5,
        mean=_OPTIMUS[0],
        std=_OPTIMUS[1],
        licence=_NC_ND,
        gated=_TERMS,
    ),
    _timm(
        "phikon",
        "Phikon: ViT-B/16, iBOT on TCGA; published in the layout of transformers",
        "owkin/phikon",
        "vit_base_patch16_224",
        # The published model runs in transformers' ViT, whose normalisations add 1e-12 to the variance.
        {"norm_eps": 1e-12},
        (768, 12, 12, 85_798_656),
        token_px=16,
        licence="Owkin non-commercial licence",
    ),
    _timm(
        "phikon_v2",
        "Phikon-v2: ViT-L/16, DINOv2 on public slides; published in the layout of transformers",
        "owkin/phikon-v2",
        "vit_large_patch16_224",
        {"init_values": 1e-5},
        (1024, 24, 16, 303_350_784),
        token_px=16,
        licence="Owkin non-commercial licence",
        files=("phikon-v2/model.safetensors",),
    ),
    EncoderEntry(
        f"timm/{ANY}",
        "timm",
        "rgb",
        "any plain vision transformer of timm with tokens of 8, 14 or 16 px",
        licence="of the weights",
        source="https://github.com/huggingface/pytorch-image-models",
    ),
)

#: Every entry, in the order they are shown.
ENTRIES = (*_MARKERS, *_CELLVITS, *_FOUNDATION)
