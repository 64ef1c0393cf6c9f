"""Makes the starter and the judge: ``python -m lorasmith.starter.build --out DIR``."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # before anything here imports it
