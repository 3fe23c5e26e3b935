"""The frozen numbers of an experiment. Change one and the scores before it no longer compare."""

TIME_BUDGET = 300  # seconds of training, compilation excluded
MAX_SEQ_LEN = 2048  # tokens a row of training and validation data holds
EVAL_TOKENS = 20_971_520  # validation targets that a score is averaged over
VOCAB_SIZE = 8192  # tokens, the four reserved ones included
