"""The learning side: DeepSpeed engines for policy, PRM and TCG, and their objectives as small pure functions.

Learners take token ids and give back checkpoints and numbers. What may not enter: vLLM, W&B, prompts and tokenizers,
anything of `actors` or `cluster`.
"""
