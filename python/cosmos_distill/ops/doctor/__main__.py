"""``python -m cosmos_distill.ops.doctor``."""

import sys

from . import main

sys.exit(main())
