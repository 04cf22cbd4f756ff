"""The data whose exact denoiser the tests know: numbers distributed as N(MEAN, STD^2)."""

MEAN, STD = 1.5, 0.5
