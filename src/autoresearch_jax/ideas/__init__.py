"""Changes of `train.py` with public evidence, as patches that are carried to any `train.py`."""
