"""The film's tokenizer: causal, 4x4x4 to 16 channels, trained from the principal components of its clips.

    cosmos-distill recipes/pretrain_mini_tokenizer.py

Its export is the file that the package ships as ``mini-cv4x4x4``, with a report beside it.
"""

from typing import Literal

from cosmos_distill.config import EDM, Control, Data, Export, Optim, Recipe, Train, Trainer
from cosmos_distill.methods.autoencoder import Autoencoding


def recipe(
    scale: Literal["smoke", "mini"] = "mini",
    control: Control = "edge",
    seed: int = 0,
) -> Recipe:
    """Train the tokenizer of the film's clips.

    Args:
        scale: mini is the shipped tokenizer; smoke learns in seconds, and little.
        control: What takes the place of an eighth of the clips, so that it, too, survives.
        seed: Of the initial weights, the clips' order and the noise.
    """
    mini = scale == "mini"
    return Recipe(
        network="mini-cv4x4x4",
        control=control,
        schedule=EDM(sigma_data=1.0),  # pixels stay within [-1, 1]
        # 9 frames of 48 x 80: 1 + 8 / 4 = 3 latent frames of 12 x 20
        data=Data(
            source="film", tokenizer="pixels", frames=9, height=48, width=80, stride=2,
            max_condition_frames=0,
        ),
        stages={
            "pretrain": Train(
                method=Autoencoding(
                    student=Optim(
                        lr=1.5e-3, betas=(0.9, 0.99), weight_decay=1e-3, warmup_steps=100 if mini else 5,
                        cosine=True, clip_norm=1.0,
                    ),
                ),
                trainer=Trainer(
                    max_steps=2_000 if mini else 20,
                    global_batch=8,
                    micro_batch=8,
                    precision="fp32",
                    ema_decay=0.995 if mini else 0.8,
                    log_every=50 if mini else 5,
                    save_every=250 if mini else 10,
                    sample_every=500 if mini else 20,
                ),
            ),
            "export": Export(student_from="pretrain", precision="fp16"),  # 1.0 M x 2 bytes
        },
        seed=seed,
    )  # fmt: skip
