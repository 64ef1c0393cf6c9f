"""Makes the starter and the judge: ``python -m lorasmith.starter.build --out DIR``."""
