"""Networks of other libraries behind the denoise seam, one file each."""
