"""Texts that the published pipelines guide away from: their words are part of the teachers' guidance."""

CRUDE_GAME = (
    "The video captures a game playing, with bad crappy graphics and cartoonish frames. It represents a "
    "recording of old outdated games. The lighting looks very fake. The textures are very raw and basic. The "
    "geometries are very primitive. The images are very pixelated and of poor CG quality. There are many "
    "subtitles in the footage. Overall, the video is unrealistic at all."
)
"""Of Cosmos-Transfer1 (its distillation, too: scripts/save_negative_prompt.py) and Cosmos-Transfer2.5
(cosmos_transfer2/config.py)."""
POOR_QUALITY = (
    "The video captures a series of frames showing ugly scenes, static with no motion, motion blur, "
    "over-saturation, shaky footage, low resolution, grainy texture, pixelated images, poorly lit areas, "
    "underexposed and overexposed scenes, poor color balance, washed out colors, choppy sequences, jerky "
    "movements, low frame rate, artifacting, color banding, unnatural transitions, outdated special effects, "
    "fake elements, unconvincing visuals, poorly edited content, jump cuts, visual noise, and flickering. "
    "Overall, the video is of poor quality."
)
"""Of Cosmos-Predict2.5 (cosmos_predict2/config.py)."""
