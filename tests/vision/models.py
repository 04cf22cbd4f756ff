"""Tiny random networks that look at frames, saved as transformers saves the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def depth(folder: Path, seed: int = 0, metric: bool = False) -> Any:
    """Depth Anything V2, whose backbone is a DINOv2 of four layers."""
    import transformers as t

    torch.manual_seed(seed)
    backbone = t.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
    )  # fmt: skip
    said = t.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[4, 4, 4, 4],
        fusion_hidden_size=4, head_hidden_size=4, patch_size=14,
        depth_estimation_type="metric" if metric else "relative", max_depth=20 if metric else 1,
    )  # fmt: skip
    model = t.DepthAnythingForDepthEstimation(said).eval()
    model.save_pretrained(folder)
    t.DPTImageProcessor(
        size={"height": 28, "width": 28}, keep_aspect_ratio=True, ensure_multiple_of=14
    ).save_pretrained(folder)
    return model


def segformer(folder: Path, seed: int = 0, classes: int = 5) -> Any:
    """Segformer, which gives every pixel a class."""
    import transformers as t

    torch.manual_seed(seed)
    said = t.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 8],
        num_attention_heads=[1, 1], decoder_hidden_size=8, patch_sizes=[3, 3], strides=[2, 2],
        mlp_ratios=[1, 1], num_labels=classes,
    )  # fmt: skip
    model = t.SegformerForSemanticSegmentation(said).eval()
    model.save_pretrained(folder)
    t.SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


def mask2former(folder: Path, seed: int = 0, classes: int = 4) -> Any:
    """Mask2Former on a Swin, for semantic, instance and panoptic segmentation."""
    import transformers as t

    torch.manual_seed(seed)
    backbone = t.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    said = t.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_layers=1,
        decoder_layers=2, encoder_feedforward_dim=16, dim_feedforward=16, num_attention_heads=2,
        num_queries=6, num_labels=classes,
    )  # fmt: skip
    model = t.Mask2FormerForUniversalSegmentation(said).eval()
    model.save_pretrained(folder)
    t.Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return model


def sam(folder: Path, seed: int = 0) -> Any:
    """SAM, which finds masks at points."""
    import transformers as t

    torch.manual_seed(seed)
    eyes = t.SamVisionConfig(
        hidden_size=16, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=32,
        patch_size=8, mlp_dim=16, global_attn_indexes=[1], window_size=2, num_pos_feats=8,
    )  # fmt: skip
    prompts = t.SamPromptEncoderConfig(
        hidden_size=16, image_size=32, patch_size=8, mask_input_channels=4, image_embedding_size=4
    )
    decoder = t.SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=16, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=16
    )
    said = t.SamConfig(vision_config=eyes, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    model = t.SamModel(said).eval()
    model.save_pretrained(folder)
    processor = t.SamImageProcessor(size={"longest_edge": 32}, pad_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return model


def sam2(folder: Path, seed: int = 0) -> Any:
    """SAM 2, which looks at pictures through torchvision."""
    import transformers as t

    torch.manual_seed(seed)
    backbone = t.Sam2HieraDetConfig(
        hidden_size=8, image_size=[64, 64], blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 1, 1, 1],
        window_size_per_stage=[4, 2, 2, 2], global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    eyes = t.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=16,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )  # fmt: skip
    prompts = t.Sam2PromptEncoderConfig(hidden_size=16, image_size=64, patch_size=16, mask_input_channels=4)
    decoder = t.Sam2MaskDecoderConfig(
        hidden_size=16, mlp_dim=16, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=16
    )
    said = t.Sam2Config(vision_config=eyes, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    model = t.Sam2Model(said).eval()
    model.save_pretrained(folder)
    sides = {"height": 64, "width": 64}
    t.Sam2ImageProcessor(size=sides, mask_size={"height": 16, "width": 16}).save_pretrained(folder)
    return model


def vitpose(folder: Path, seed: int = 0, points: int = 17) -> Any:
    """ViTPose, which finds the key points of one person."""
    import transformers as t

    torch.manual_seed(seed)
    backbone = t.VitPoseBackboneConfig(
        image_size=[32, 24], patch_size=[8, 8], hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        out_indices=[2],
    )  # fmt: skip
    said = t.VitPoseConfig(
        backbone_config=backbone, num_labels=points, use_simple_decoder=True, scale_factor=4
    )
    model = t.VitPoseForPoseEstimation(said).eval()
    model.save_pretrained(folder)
    t.VitPoseImageProcessor(size={"height": 32, "width": 24}).save_pretrained(folder)
    return model


def yolos(folder: Path, seed: int = 0) -> Any:
    """YOLOS, which finds things; every thing is a person."""
    import transformers as t

    torch.manual_seed(seed)
    said = t.YolosConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=[32, 48],
        patch_size=8, num_detection_tokens=3, num_labels=1, id2label={0: "person"}, label2id={"person": 0},
    )  # fmt: skip
    model = t.YolosForObjectDetection(said).eval()
    model.save_pretrained(folder)
    t.YolosImageProcessor(size={"height": 32, "width": 48}, do_pad=False).save_pretrained(folder)
    return model
