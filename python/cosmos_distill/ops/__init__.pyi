"""Fused, differentiable operators of video diffusion transformers. Importable without the trainer.

Importing this package is cheap: torch is imported when the first operator is used.

====================================  =========================================================
``adaln_modulate``                    LayerNorm or RMSNorm without affine, times (1 + scale), plus shift
``gated_residual_adaln``              x + gate * y, then the same on the sum; returns both
``gated_residual``                    x + gate * y
``qk_norm_rope``                      per-head RMSNorm of queries and keys, then rotary embedding
``attention``                         softmax(q k^T * scale) v, optionally with the log-sum-exp
``merge_attention``,                  partial results over disjoint keys, merged by it, and their
``attention_backward``                gradients
``renoise``, ``combine_guidance``,    distribution matching in x0 space
``vsd_direction``, ``vsd_loss``,
``fake_score_loss``
``generator_loss``,                   adversarial losses on logits
``discriminator_loss``
``keep_attention``                    for torch.utils.checkpoint: recompute all of a block but attention
``adamw_ema``                         AdamW and the average of its parameters, in one pass
====================================  =========================================================

All but ``merge_attention`` and ``combine_guidance``, which are plain torch, and ``keep_attention``, which
computes nothing, take ``backend=None | "reference" | ...``; see :mod:`cosmos_distill.ops.registry`.
"""

# What this package offers, and where it is: __init__.py reads this very list. Folders are not named like the
# functions they hold (attn, not attention): importing a folder binds its name in this package, which would
# hide the function.
from .adaln import adaln_modulate as adaln_modulate
from .adaln import gated_residual as gated_residual
from .adaln import gated_residual_adaln as gated_residual_adaln
from .adamw import AdamWStep as AdamWStep
from .adamw import adamw_ema as adamw_ema
from .attn import attention as attention
from .attn import attention_backward as attention_backward
from .attn import merge_attention as merge_attention
from .checkpoint import keep_attention as keep_attention
from .dm_loss import Preconditioned as Preconditioned
from .dm_loss import VSDForm as VSDForm
from .dm_loss import combine_guidance as combine_guidance
from .dm_loss import fake_score_loss as fake_score_loss
from .dm_loss import renoise as renoise
from .dm_loss import vsd_direction as vsd_direction
from .dm_loss import vsd_loss as vsd_loss
from .gan_loss import discriminator_loss as discriminator_loss
from .gan_loss import generator_loss as generator_loss
from .qknorm import qk_norm_rope as qk_norm_rope
