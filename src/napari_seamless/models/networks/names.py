"""Names of architectures that a form offers; no torch in here, the widget opens without it."""

MONAI_NETWORKS = (
    "AttentionUnet",
    "BasicUNet",
    "BasicUNetPlusPlus",
    "DynUNet",
    "FlexibleUNet",
    "HighResNet",
    "MedNeXt",
    "SegResNet",
    "SegResNetDS",
    "SegResNetVAE",
    "SwinUNETR",
    "UNETR",
    "UNet",
    "VNet",
)
CONNECTOMICS_NETWORKS = (
    "monai_basic_unet3d",
    "monai_unet",
    "monai_unetr",
    "monai_swin_unetr",
    "mednext",
    "rsunet",
)


def names() -> tuple[str, ...]:
    """Return the names that a form offers: networks of MONAI, and of PyTorch Connectomics."""
    return MONAI_NETWORKS + CONNECTOMICS_NETWORKS
